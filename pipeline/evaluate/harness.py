"""Makes a bundle a model of lm-evaluation-harness; this needs the optional extra `lm-eval`.

Importing this module registers the name `esolm`, for `--model esolm --model_args path=BUNDLE`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esolm.data_prep.progress import ProgressBar
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.evaluate.scoring import Scorer, windows
from esolm.pipeline.evaluate.task_options import decoding_of, share_out
from esolm.pipeline.generate import Request, load_bundle

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise ConfigError(
        "the harness needs the package lm-eval: pip install 'esolm[lm-eval]'"
    ) from error

Pair = tuple[list[int], list[int]]


@register_model("esolm")
class EsoLMHarness(LM):  # type: ignore[misc]
    """Left-to-right likelihoods of Eso-LM and `ar` networks, and two-phase generation.

    path: a bundle with a tokenizer. batch_size: the requests of one forward pass. alpha_0,
    num_steps, top_p, temperature: how `generate_until` decodes; by default it is greedy, left to
    right. The do_sample, temperature and top_p that a task sets take precedence.
    """

    def __init__(
        self,
        path: str,
        batch_size: int | str = 8,
        alpha_0: float = 0.0,
        num_steps: int = 64,
        top_p: float = 1.0,
        temperature: float = 0.0,
        max_gen_toks: int = 256,
        **_: Any,
    ) -> None:
        super().__init__()
        self._bundle = load_bundle(Path(path))
        if self._bundle.tokenizer is None:
            raise ConfigError(f"{path} carries no tokenizer, which the harness needs")
        self._tokenizer = self._bundle.tokenizer
        known = self._tokenizer.vocabulary
        self._length: int = self._bundle.model.config.seq_len
        self._eos_id = known.eos_id
        first_id = known.eos_id if known.bos_id is None else known.bos_id
        self._scorer = Scorer(self._bundle.model, first_id)
        self._batch_size = int(batch_size) if str(batch_size).isdigit() else 8
        self._decoding = Request(
            alpha_0=alpha_0, num_steps=num_steps, top_p=top_p, temperature=temperature
        )
        self._max_gen_toks = max_gen_toks

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Returns (log p of the continuation given the context, whether it is the greedy one)."""
        pairs = [self._encode(*request.args) for request in requests]
        return self._score(pairs)

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Returns log p of whole texts, which are cut into windows of the training length."""
        totals = []
        for request in requests:
            pairs = windows(self._ids(request.args[0]), self._length)
            totals.append(sum(log_p for log_p, _ in self._score(pairs)))
        return totals

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Returns the text written after each context, up to the first of its `until` strings."""
        texts = []
        with ProgressBar("generate", len(requests)) as progress:
            for request in requests:
                texts.append(self._generate(request.args[0], dict(request.args[1])))
                progress.advance()
        return texts

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, recognise_specials=True)

    def _encode(self, context: str, continuation: str) -> Pair:
        """Returns the token ids of both; spaces that end the context go to the continuation.

        A pair that is too long for the training length loses the beginning of its context.
        """
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        whole = self._ids(stripped + continuation)
        front = self._ids(stripped)
        if whole[: len(front)] == front:
            back = whole[len(front) :]
        else:  # a token reaches over the boundary
            back = self._ids(continuation)
        back = back[-self._length :]
        return front[max(0, len(front) + len(back) - self._length) :], back

    def _score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """Scores the longest pairs first, so that the lengths in a batch are alike.

        The answers are returned in the order of the pairs.
        """
        order = sorted(range(len(pairs)), key=lambda i: -sum(map(len, pairs[i])))
        answers: dict[int, tuple[float, bool]] = {}
        with ProgressBar("score", -(-len(order) // self._batch_size)) as progress:
            for start in range(0, len(order), self._batch_size):
                batch = order[start : start + self._batch_size]
                scores = self._scorer.score([pairs[i] for i in batch])
                for number, score in zip(batch, scores, strict=True):
                    answers[number] = (score.log_p, score.is_greedy)
                progress.advance()
        return [answers[number] for number in range(len(pairs))]

    def _generate(self, context: str, options: dict[str, Any]) -> str:
        until = options.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        most = int(options.get("max_gen_toks", self._max_gen_toks))
        prompt, new = share_out(self._length, self._ids(context), most)
        written = self._write(prompt, len(prompt) + new, decoding_of(self._decoding, options))
        if self._eos_id in written:
            written = written[: written.index(self._eos_id)]
        text = self._tokenizer.decode(written)
        ends = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else text

    def _write(self, prompt: list[int], length: int, decoding: Request) -> list[int]:
        import torch

        ids = torch.tensor([prompt], dtype=torch.int64) if prompt else None
        options = {**decoding.options(), "length": length}
        output = self._bundle.model.generate(ids, **options)
        tokens: list[int] = output[0, len(prompt) :].tolist()
        return tokens
