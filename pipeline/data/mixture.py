"""Training samples of one dataset or several, by their global number."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esolm.data_prep.errors import DataError
from esolm.pipeline.data.dataset import TokenDataset, stream_of
from esolm.pipeline.data.index import BEST_FIT, CONTINUOUS, permute_each
from esolm.pipeline.data.packed_rows import Pieces
from esolm.pipeline.data.quotas import shares_of
from esolm.pipeline.data.reader import SampleReader, content_of, finished, state_problems
from esolm.pipeline.data.segments import MixtureIndex, MixtureSegment, SourceShare
from esolm.pipeline.data.token_stream import TokenStream

Int64Array = npt.NDArray[np.int64]

HOW_TO_CHANGE = (
    "Restore the sources of the run, or let it go on with these from its next sample on by "
    "data.change_sources=true: what stays goes on where it was, and the change is recorded."
)


@dataclass(frozen=True)
class MixtureSource:
    """A dataset and its part in a mixture. epochs_max: most times it may be read; 0: any."""

    name: str
    dataset: TokenDataset
    weight: float = 1.0
    epochs_max: float = 0.0

    def share(self) -> SourceShare:
        """What is recorded of it."""
        dataset = self.dataset
        return SourceShare(dataset.fingerprint, self.weight, self.name, str(dataset.path.resolve()))


class MixtureReader:
    """The samples of a run, rows of `seq_len` tokens of one source or of several in turn.

    A batch is asked for by the global numbers of its samples, so it is the same for every number of
    data-parallel ranks and after every restart. With one source the samples are those of its
    `SampleReader`.
    """

    def __init__(
        self,
        sources: Sequence[MixtureSource],
        seq_len: int,
        seed: int,
        shuffle: str = "global",
        packing: str = CONTINUOUS,
    ) -> None:
        """sources: of different datasets. Raise DataError when one has too few tokens for a row."""
        self.sources = tuple(sources)
        self.seq_len, self.seed, self.shuffle, self.packing = seq_len, seed, shuffle, packing
        self._readers = {
            each.dataset.fingerprint: SampleReader(each.dataset, seq_len, seed, shuffle, packing)
            for each in sources
        }
        assert len(self._readers) == len(self.sources)
        self._bounds = {s.dataset.fingerprint: s.epochs_max for s in sources if s.epochs_max}
        self._follow([self._segment(0)])

    def read(self, global_sample_indices: Int64Array) -> Int64Array:
        """Return the tokens [N, L] of global samples [N].

        Raises DataError for one of a source that was read `epochs_max` times.
        """
        if len(self.index.fingerprints) == 1:
            self._refuse_exhausted(np.zeros_like(global_sample_indices), global_sample_indices)
            return self._readers[self.index.fingerprints[0]].read(global_sample_indices)
        numbers, sequences = self.locate(global_sample_indices)
        stream, firsts, _ = self._joined
        length = content_of(self.seq_len, self.packing)
        if self.packing != BEST_FIT:
            rows = stream.read_many(firsts[numbers] + sequences * length, length)
            return finished(rows, self.packing, self.sources[0].dataset)
        rows = np.empty((len(numbers), length), dtype=np.int64)
        pieces = self._pieces(numbers, sequences)
        stream.read_into(rows, pieces.places(length), pieces.starts, pieces.sizes)
        return rows

    def locate(self, global_sample_indices: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Return (number of the source [N], index of the sequence in it [N]) of global samples.

        Raises DataError as `read` does.
        """
        numbers, occurrences = self.index.locate(global_sample_indices)
        self._open_former(numbers)
        self._refuse_exhausted(numbers, occurrences)
        sizes = self._joined[2]
        epochs, positions = np.divmod(occurrences, sizes[numbers])
        if self.shuffle == "global":
            positions = permute_each(positions, sizes, numbers, self.seed, epochs)
        return numbers, positions

    def _pieces(self, numbers: Int64Array, sequences: Int64Array) -> Pieces:
        """Return what of the sources end to end the sequences [N] of sources [N] are made of."""
        firsts, found = self._joined[1], []
        for number in np.unique(numbers).tolist():
            here = np.flatnonzero(numbers == number)
            its = self._readers[self.index.fingerprints[number]].pieces(sequences[here])
            place = (here[its.rows], its.columns, its.starts + firsts[number], its.sizes)
            found.append(place)
        return Pieces(*map(np.concatenate, zip(*found, strict=True)))

    def _refuse_exhausted(self, numbers: Int64Array, occurrences: Int64Array) -> None:
        for fingerprint, epochs in self._bounds.items():
            reader = self._readers[fingerprint]
            mine = occurrences[numbers == self.index.fingerprints.index(fingerprint)]
            if int(mine.max(initial=-1)) >= epochs * reader.num_sequences:
                raise DataError(
                    f"{reader.dataset.path} is exhausted: its {reader.num_sequences} sequences "
                    f"were read {epochs:g} times, which is its epochs_max. Raise that, or train "
                    "fewer steps."
                )

    def _follow(self, segments: Sequence[MixtureSegment]) -> None:
        """Let samples lie where these segments say."""
        self.index = MixtureIndex(segments, self.seed)
        self._forget_joined()

    def _forget_joined(self) -> None:
        self.__dict__.pop("_joined", None)

    @cached_property
    def _joined(self) -> tuple[TokenStream, Int64Array, Int64Array]:
        """The sources that are open end to end, so that a batch is read in one go.

        Also where each begins in the stream, and its number of rows, by the numbers of sources.
        """
        known = [self._readers.get(fingerprint) for fingerprint in self.index.fingerprints]
        sizes = [reader.num_sequences if reader else 1 for reader in known]
        tokens = np.array([reader.dataset.num_tokens if reader else 0 for reader in known])
        stream = stream_of([reader.dataset for reader in known if reader])
        return stream, np.cumsum(tokens) - tokens, np.array(sizes, dtype=np.int64)

    def _open_former(self, numbers: Int64Array) -> None:
        """Open sources that the run had before; only a look back asks for their samples."""
        missing = {
            self.index.fingerprints[number] for number in np.unique(numbers).tolist()
        } - self._readers.keys()
        if missing:
            self._readers |= {fingerprint: self._former(fingerprint) for fingerprint in missing}
            self._forget_joined()

    def _former(self, fingerprint: str) -> SampleReader:
        """Return the reader of a source that the run had before."""
        shares = [share for segment in self.index.segments for share in segment.shares]
        was = next(share for share in shares if share.fingerprint == fingerprint)
        try:
            dataset = TokenDataset(was.path, "train")
        except DataError as error:
            raise DataError(
                f"A sample of '{was.name}' was asked for, a source of the run before they were "
                f"changed, which cannot be read where it was: {error}"
            ) from error
        if fingerprint not in (dataset.fingerprint, dataset.former_fingerprint):
            raise DataError(
                f"A sample of '{was.name}' was asked for, a source of the run before they were "
                f"changed; {was.path} now holds other tokens. Put back what was there."
            )
        return SampleReader(dataset, self.seq_len, self.seed, self.shuffle, self.packing)

    def state(self, consumed_samples: int) -> dict[str, Any]:
        """Return all that a checkpoint must keep to continue at sample `consumed_samples`."""
        if len(self.index.fingerprints) == 1:
            return self._readers[self.index.fingerprints[0]].state(consumed_samples)
        segments = [asdict(segment) for segment in self.index.segments]
        return {"consumed_samples": consumed_samples, **self._settings(), "segments": segments}

    def adopt(
        self, state: dict[str, Any], may_change: bool = False, data_path: str = ""
    ) -> list[str]:
        """Go on from a checkpoint's state; return what has changed in the sources, in words.

        may_change: whether other sources or weights than before may begin at the checkpoint's
        sample. data_path: where the checkpoint's only dataset lay.

        Raises DataError listing every way in which the checkpoint's data differs from this.
        """
        alone = len(self.sources) == 1 and "segments" not in state
        if alone and not may_change:
            self._readers[self.sources[0].dataset.fingerprint].check_state(state)
            return []
        problems = state_problems(state, self._settings())
        segments = [self._as_known(segment) for segment in segments_of(state, data_path)]
        changes = _changes(segments[-1].shares, self._segment(0).shares)
        if problems or (changes and not may_change):
            raise DataError(
                "The checkpoint was trained on other samples than the sources give now:\n"
                + "\n".join(f"  {each}" for each in problems + changes)
                + f"\n{HOW_TO_CHANGE if changes else 'Restore the settings of the run.'}"
            )
        if changes:
            begin = state["consumed_samples"]
            # What nothing was read of is no part of the run.
            segments = [segment for segment in segments if segment.first_sample < begin]
            segments.append(self._segment(begin))
        self._follow(segments)
        return changes

    def names(self) -> dict[int, str]:
        """Return the name of each source that is here, by its number."""
        numbers = self.index.fingerprints.index
        return {numbers(source.dataset.fingerprint): source.name for source in self.sources}

    def uses(self, num_samples: int) -> list["SourceUse"]:
        """Return what the first num_samples samples of the run take of each source that is here."""
        taken = dict(zip(self.index.fingerprints, self.index.taken(num_samples), strict=True))
        shares = shares_of([source.weight for source in self.sources])
        return [
            SourceUse(
                source.name,
                float(share),
                taken[source.dataset.fingerprint],
                self._readers[source.dataset.fingerprint].num_sequences,
                source.epochs_max,
            )
            for source, share in zip(self.sources, shares, strict=True)
        ]

    def _settings(self) -> dict[str, Any]:
        settings = {"seed": self.seed, "seq_len": self.seq_len, "shuffle": self.shuffle}
        return {**settings, "packing": self.packing}

    def _segment(self, first_sample: int) -> MixtureSegment:
        return MixtureSegment(first_sample, tuple(source.share() for source in self.sources))

    def _as_known(self, segment: MixtureSegment) -> MixtureSegment:
        """Return a segment with the sources that are here under their present fingerprints.

        The checkpoint may be older than a manifest, which was merged anew.
        """
        shares = []
        for share in segment.shares:
            for source in self.sources:
                dataset = source.dataset
                if share.fingerprint in (dataset.fingerprint, dataset.former_fingerprint):
                    share = replace(source.share(), weight=share.weight)
            shares.append(share)
        return MixtureSegment(segment.first_sample, tuple(shares))


@dataclass(frozen=True)
class SourceUse:
    """What a run takes of a source. share: of the samples to come. samples: sequences read."""

    name: str
    share: float
    samples: int
    num_sequences: int
    epochs_max: float

    @property
    def epochs(self) -> float:
        """How often the source is read."""
        return self.samples / self.num_sequences

    @property
    def problem(self) -> str | None:
        """What there is to say if it is read more often than it may be."""
        if not self.epochs_max or self.epochs <= self.epochs_max:
            return None
        return (
            f"source '{self.name}' would be read {self.epochs:.3g} times, {self.samples} rows of "
            f"its {self.num_sequences}, which is more than its epochs_max {self.epochs_max:g}: "
            "train fewer steps, give it a smaller weight, or raise epochs_max"
        )


def segments_of(state: dict[str, Any], data_path: str = "") -> list[MixtureSegment]:
    """Return the segments of a checkpoint's state; that of one dataset is a mixture of one.

    data_path: where that one lay.
    """
    if "segments" not in state:
        name = Path(data_path).name or "the dataset of before"
        share = SourceShare(state.get("dataset_fingerprint", ""), 1.0, name, data_path)
        return [MixtureSegment(0, (share,))]
    return [
        MixtureSegment(
            segment["first_sample"], tuple(SourceShare(**share) for share in segment["shares"])
        )
        for segment in state["segments"]
    ]


def _changes(before: Sequence[SourceShare], now: Sequence[SourceShare]) -> list[str]:
    """Say how the sources have changed; their order and their names are no part of the data."""
    old = {share.fingerprint: share for share in before}
    new = {share.fingerprint: share for share in now}
    old_shares = dict(zip(old, shares_of([share.weight for share in before]), strict=True))
    new_shares = dict(zip(new, shares_of([share.weight for share in now]), strict=True))
    called = {share.name for share in before}
    changes = [
        f"source '{share.name}' ({share.path}) "
        + ("is another dataset than before" if share.name in called else "is new")
        for fingerprint, share in new.items()
        if fingerprint not in old
    ]
    changes += [
        f"source '{share.name}'{share.path and f' ({share.path})'} is gone"
        for fingerprint, share in old.items()
        if fingerprint not in new
    ]
    return changes + [
        f"source '{new[fingerprint].name}': {float(share):.6g} of the samples before, "
        f"{float(new_shares[fingerprint]):.6g} now"
        for fingerprint, share in old_shares.items()
        if fingerprint in new and share != new_shares[fingerprint]
    ]
