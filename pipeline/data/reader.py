"""Training samples by their global number."""

from typing import Any

import numpy as np
import numpy.typing as npt

from esolm.data_prep.errors import DataError
from esolm.pipeline.data.dataset import TokenDataset
from esolm.pipeline.data.index import BEST_FIT, CONTINUOUS, PACKINGS, WRAPPED, SampleIndex
from esolm.pipeline.data.packed_rows import PackedRows, Pieces

Int64Array = npt.NDArray[np.int64]

# What a checkpoint that does not say it was trained on.
FORMER = {"packing": CONTINUOUS}


def content_of(seq_len: int, packing: str) -> int:
    """Return how many tokens of the stream a row takes."""
    return seq_len - 2 if packing == WRAPPED else seq_len


def finished(rows: Int64Array, packing: str, dataset: TokenDataset) -> Int64Array:
    """Return rows [N, L] of the stream as they are trained on; wrapped they are [N, L + 2]."""
    if packing != WRAPPED:
        return rows
    ends = ((0, 0), (1, 1))
    return np.pad(rows, ends, constant_values=(dataset.bos_id, dataset.eos_id))


def state_problems(state: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Say how a checkpoint's state differs from what the settings give now, but for its place."""
    state = FORMER | state
    consumed = state.get("consumed_samples")
    problems = []
    if not isinstance(consumed, int) or consumed < 0:
        problems.append(f"consumed_samples: {consumed} is not a number of samples")
    return problems + [
        f"{key}: {state.get(key)} in the checkpoint, {value} here"
        for key, value in here.items()
        if key != "consumed_samples" and state.get(key) != value
    ]


class SampleReader:
    """Samples of `seq_len` tokens of a split.

    packing: `continuous` are tokens as they stand in the stream, of which the end is dropped;
    `wrapped` are bos, seq_len - 2 such tokens, eos; `best_fit` are whole documents as far as they
    can be, see `esolm.data_prep.packing`.

    A batch is asked for by the global numbers of its samples, so it is the same for every number of
    data-parallel ranks and after every restart.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        seq_len: int,
        seed: int,
        shuffle: str = "global",
        packing: str = CONTINUOUS,
    ) -> None:
        """Raise DataError when the split has too few tokens for a single sequence, and of best_fit
        when its index is not there."""
        if packing not in PACKINGS:
            raise DataError(f"packing is '{packing}', must be one of: {', '.join(PACKINGS)}.")
        self._content = content_of(seq_len, packing)
        if self._content < 1:
            least = seq_len - self._content + 1
            raise DataError(f"seq_len is {seq_len}, must be at least {least}.")
        self._packed = PackedRows(dataset, seq_len) if packing == BEST_FIT else None
        self.num_sequences = dataset.num_tokens // self._content
        if self._packed is not None:
            self.num_sequences = self._packed.num_rows
        if not self.num_sequences:
            raise DataError(
                f"{dataset.path} has {dataset.num_tokens} tokens in split '{dataset.split}', too "
                f"few for one sequence of {seq_len}. Use a smaller train.seq_len, or tokenize more "
                "text (for the valid split: a larger --valid-fraction)."
            )
        self.dataset = dataset
        self.seq_len, self.packing = seq_len, packing
        self.index = SampleIndex(self.num_sequences, seed, shuffle)

    def read(self, global_sample_indices: Int64Array) -> Int64Array:
        """Return the tokens [N, L] of global samples [N]."""
        _, sequences = self.index.locate(global_sample_indices)
        rows = np.empty((len(sequences), self._content), dtype=np.int64)
        pieces = self.pieces(sequences)
        self.dataset.read_into(rows, pieces.places(self._content), pieces.starts, pieces.sizes)
        return finished(rows, self.packing, self.dataset)

    def pieces(self, sequences: Int64Array) -> Pieces:
        """Return what of the stream the rows with these numbers [N] are made of."""
        if self._packed is not None:
            return self._packed.pieces(sequences)
        number, sizes = np.arange(len(sequences)), np.full(len(sequences), self._content)
        return Pieces(number, np.zeros_like(number), sequences * self._content, sizes)

    def state(self, consumed_samples: int) -> dict[str, Any]:
        """Return all that a checkpoint must keep to continue at sample `consumed_samples`."""
        return {
            "consumed_samples": consumed_samples,
            "seed": self.index.seed,
            "dataset_fingerprint": self.dataset.fingerprint,
            "seq_len": self.seq_len,
            "shuffle": self.index.shuffle,
            "packing": self.packing,
        }

    def check_state(self, state: dict[str, Any]) -> None:
        """Raise DataError listing every way in which a checkpoint's data differs from this."""
        here = self.state(0)
        if state.get("dataset_fingerprint") == self.dataset.former_fingerprint:
            # The checkpoint is older than the manifest, which was merged anew.
            here["dataset_fingerprint"] = self.dataset.former_fingerprint
        if problems := state_problems(state, here):
            raise DataError(
                f"The checkpoint was trained on other samples than {self.dataset.path} gives now:\n"
                + "\n".join(f"  {problem}" for problem in problems)
                + "\nRestore the dataset and settings of the run, or start a new run directory."
            )
