"""Writes text from a bundle, and measures what its cache gains over recomputing everything."""

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from esolm.data_prep.progress import ProgressBar, phase
from esolm.data_prep.tokenizers import Tokenizer, has_tokenizer, load_tokenizer
from esolm.model.objectives import objective_kind
from esolm.model.objectives.base import SCHEDULE_OPTIONS
from esolm.pipeline.errors import ConfigError, ExportError
from esolm.pipeline.export.manifest import NAME, verify_bundle
from esolm.pipeline.export.writer import DTYPES, read_model

# What a bundle is computed in: int8 is a matter of the linear layers, the rest is fp32 then.
COMPUTED_IN = (*DTYPES, "int8")


@dataclass(frozen=True)
class Bundle:
    """A verified bundle in memory. tokenizer: None if the bundle carries none."""

    path: Path
    model: Any
    tokenizer: Tokenizer | None
    record: dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What to write; see the options of `esolm generate`. None stands for the bundle's default."""

    alpha_0: float | None = None
    num_steps: int | None = None
    length: int | None = None
    top_p: float | None = None
    temperature: float | None = None
    seed: int | None = 0
    num_samples: int = 1
    prompt: str = ""
    schedule: str | None = None
    top_k: int | None = None
    max_new_tokens: int | None = None
    guesses: int | None = None
    cuda_graphs: bool | None = None
    ignore_eos: bool = False
    adaptive: bool | None = None

    def options(self) -> dict[str, Any]:
        """Returns the keyword arguments for the bundle's `generate`."""
        own = ("prompt", "ignore_eos")
        found = {key: value for key, value in asdict(self).items()
                 if key not in own and value is not None}  # fmt: skip
        return found | ({"eos_token_id": None} if self.ignore_eos else {})


@dataclass(frozen=True)
class Generation:
    """The samples that were written.

    texts: one for each sample, up to its end; without a tokenizer they are the token ids as
    numbers. sequences: padded behind the ends. nfe: the number of forward passes.
    tokens_per_second: counts the tokens written in all samples, but not the prompt.
    """

    texts: list[str]
    sequences: Tensor
    nfe: int
    seconds: float
    tokens_per_second: float


@dataclass(frozen=True)
class Comparison:
    """The median seconds of cached and uncached decoding, timed in turns, and their ratio.

    identical_in: the dtype in which both gave the same tokens.
    """

    ratio: float
    cached_seconds: float
    uncached_seconds: float
    repeats: int
    identical_in: str


class DecodingProgress:
    """Shows how many of a generation's forward passes are done: a streamer of `generate`."""

    def __init__(self) -> None:
        self._bar: ProgressBar | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.__exit__()

    def put(self, tokens: Tensor) -> None:
        """Takes the prompt and the text, neither of which is shown."""

    def put_plan(self, passes: int) -> None:
        self._bar = ProgressBar("forward passes", passes)
        self._bar.__enter__()

    def put_draft(self, draft: Tensor) -> None:
        assert self._bar is not None, "the plan comes first"
        self._bar.advance()

    def end(self) -> None:
        """The last pass has been counted."""


class PrintedText:
    """Prints a text as far as it is whole from the left: a streamer of `generate`."""

    def __init__(self, bundle: Bundle) -> None:
        if bundle.tokenizer is None:
            raise ConfigError(f"{bundle.path} carries no tokenizer: there is no text to stream")
        self._tokenizer, self._shown = bundle.tokenizer, ""
        self._ids: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        print(flush=True)

    def put(self, tokens: Tensor) -> None:
        """Takes the prompt, then what is written; half a character waits for its other half."""
        self._ids += tokens[0].tolist()
        text = self._tokenizer.decode_with_specials(self._ids).rstrip("\ufffd")
        print(text[len(self._shown) :], end="", flush=True)
        self._shown = text

    def end(self) -> None:
        """All is printed."""


def check_bundle(path: Path, dtype: str | None = None) -> dict[str, Any]:
    """Checks that every byte of a bundle is as exported, and returns what its export.json holds.

    Raises ExportError if a file was altered, ConfigError if there is no bundle or it cannot be
    computed in this dtype.
    """
    if dtype is not None and dtype not in COMPUTED_IN:
        raise ConfigError(f"the dtype is '{dtype}'; choose of {', '.join(COMPUTED_IN)}")
    if not (path / NAME).is_file():
        raise ConfigError(f"{path} is no bundle: it has no {NAME}; make one with esolm export")
    return verify_bundle(path)


def load_bundle(path: Path, dtype: str | None = None) -> Bundle:
    """Checks that every byte of a bundle is as exported, and loads it, on the GPU if there is one.

    dtype: of COMPUTED_IN; without it a CPU computes in fp32, a GPU in what it was stored in. The
    code that runs is this repository's, not the copy in the bundle. Raises as `check_bundle`, and
    DataError if its tokenizer cannot be loaded.
    """
    with phase(f"read {path}"):
        record = check_bundle(path, dtype)
        tokenizer = load_tokenizer(path) if has_tokenizer(path) else None
        model = _model_in(dtype, path)
    return Bundle(path, model, tokenizer, record)


def _model_in(dtype: str | None, path: Path) -> Any:
    device = decoding_device()
    if dtype is None and device.type == "cpu":
        dtype = "fp32"
    weights = None if dtype is None else DTYPES["fp32" if dtype == "int8" else dtype]
    model = read_model(path, weights).to(device)
    try:
        return model.in_int8() if dtype == "int8" else model
    except ValueError as error:
        raise ConfigError(str(error)) from error


def decoding_device() -> torch.device:
    """Returns the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def ignored_options(bundle: Bundle, request: Request) -> list[str]:
    """Returns the fields of a request that are given but mean nothing to the network's decoder."""
    decoding = objective_kind(bundle.model.config.objective).decoding
    heeded = () if decoding is None else decoding.options
    given = [name for name in SCHEDULE_OPTIONS if getattr(request, name) is not None]
    return [name for name in given if name not in heeded]


def generate(
    bundle: Bundle, request: Request, use_cache: bool = True, streamer: Any = None
) -> Generation:
    """Writes the samples. Raises ConfigError if an option is out of range."""
    prompt = _prompt_ids(bundle, request)
    started = time.perf_counter()
    try:
        output = bundle.model.generate(
            prompt, use_cache=use_cache, streamer=streamer, return_dict_in_generate=True,
            **request.options(),
        )  # fmt: skip
    except ValueError as error:
        raise ConfigError(str(error)) from error
    sequences = output.sequences.cpu()  # waits for a GPU
    seconds = time.perf_counter() - started
    rows = [row[:end].tolist() for row, end in zip(sequences, output.lengths, strict=True)]
    if bundle.tokenizer is None:
        texts = [" ".join(map(str, row)) for row in rows]
    else:
        texts = [bundle.tokenizer.decode_with_specials(row) for row in rows]
    return Generation(texts, sequences, output.nfe, seconds, output.num_written / seconds)


def compare(bundle: Bundle, request: Request, repeats: int = 3) -> Comparison | None:
    """Times cached and uncached decoding of one request in turns and checks that they agree.

    Returns None if there is no cache. Uncached decoding recomputes all tokens written so far in
    every pass. Raises ExportError if the two give different tokens in float64 too; in lower
    precision a tie within rounding error can fall either way.
    """
    if not bundle.model.has_cache:
        return None
    seconds: dict[bool, list[float]] = {True: [], False: []}
    # A bar within a generation would wait for the GPU after every pass, and be timed with it.
    with ProgressBar("timed generations", 2 * repeats) as progress:
        for _ in range(repeats):
            cached = generate(bundle, request)
            progress.advance()
            uncached = generate(bundle, request, use_cache=False)
            progress.advance()
            seconds[True].append(cached.seconds)
            seconds[False].append(uncached.seconds)
    dtype = bundle.model.dtype
    if not torch.equal(cached.sequences, uncached.sequences):
        _check_in_float64(bundle, request)
        dtype = torch.float64
    fast, slow = statistics.median(seconds[True]), statistics.median(seconds[False])
    return Comparison(slow / fast, fast, slow, repeats, str(dtype).removeprefix("torch."))


def _check_in_float64(bundle: Bundle, request: Request) -> None:
    dtype = bundle.model.dtype
    bundle.model.double()
    try:
        with phase("compare in float64"):
            cached = generate(bundle, request)
            uncached = generate(bundle, request, use_cache=False)
    finally:
        bundle.model.to(dtype)
    wrong = int((cached.sequences != uncached.sequences).sum())
    if wrong:
        raise ExportError(f"{wrong} tokens differ between cached and uncached decoding")


def _prompt_ids(bundle: Bundle, request: Request) -> Tensor | None:
    config = bundle.model.config
    if not request.prompt:
        if config.first_is_given and config.bos_token_id is None:
            raise ConfigError(
                f"{bundle.path} predicts no first token and does not know its bos: import or "
                "export the network again with its --tokenizer (an import takes --bos-id too)"
            )
        return None
    if bundle.tokenizer is None:
        raise ConfigError(f"{bundle.path} carries no tokenizer, so it takes no --prompt")
    ids = bundle.tokenizer.encode(request.prompt, recognise_specials=True)
    return torch.tensor([ids] * request.num_samples, dtype=torch.int64)
