"""Many prompts in one batch that is refilled as texts are done, and text with gaps."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esolm.data_prep.progress import ProgressBar
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.export.bundle.generation_esolm import EsoLMGenerationConfig
from esolm.pipeline.export.bundle.habits_esolm import translated
from esolm.pipeline.generate import Bundle, Request

ROWS = 16
GAP = re.compile(r"\[\[(\d+)(?:-(\d+))?\]\]")


@dataclass(frozen=True)
class Filled:
    """text: all of it. lengths: tokens of each gap. parts: the text of each gap. nfe: passes."""

    text: str
    lengths: list[int]
    parts: list[str]
    nfe: int


def fill(bundle: Bundle, request: Request, text: str) -> Filled:
    """Fills the gaps of a text. Raises ConfigError for what cannot be filled."""
    segments: list[Any] = []
    gaps, end = [], 0
    for found in GAP.finditer(text):
        segments.append(_ids(bundle, text[end : found.start()]))
        least = int(found[1])
        gaps.append(len(segments))
        segments.append((least, int(found[2] or least)))
        end = found.end()
    segments.append(_ids(bundle, text[end:]))
    options = request.options()
    for name in ("num_samples", "length", "max_new_tokens"):
        options.pop(name, None)
    try:
        infilled = bundle.model.infill(segments, **options)
    except ValueError as error:
        raise ConfigError(f"--infill: {error}") from error
    assert bundle.tokenizer is not None, "_ids has looked"
    parts, first = [], 0
    for number, segment in enumerate(infilled.segments):
        if number in gaps:
            tokens = infilled.tokens.tolist()
            front = bundle.tokenizer.decode(tokens[:first])
            parts.append(bundle.tokenizer.decode(tokens[: first + len(segment)])[len(front) :])
        first += len(segment)
    whole = bundle.tokenizer.decode(infilled.tokens.tolist())
    return Filled(whole, infilled.lengths, parts, infilled.nfe)


def read_prompts(path: Path) -> list[str]:
    """The lines of a file, or of standard input for `-`. Raises ConfigError with the line."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompts {path}: {error}") from error
    prompts = []
    for number, line in enumerate(text.splitlines(), start=1):
        if path.suffix != ".jsonl" and not line.startswith('{"prompt"'):
            prompts.append(line)
            continue
        try:
            prompts.append(json.loads(line)["prompt"])
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"--prompts {path}, line {number}: no JSON object with a field 'prompt'"
            ) from None
    return prompts


def write_all(bundle: Bundle, request: Request, prompts: list[str]) -> Iterator[tuple[str, str]]:
    """Yields each prompt with the text behind it, in their order; prompt i is sample i.

    Of n samples a prompt comes n times in a row, and its sample j is sample n i + j of the seed.
    Raises ConfigError for the first prompt that cannot be written.
    """
    options = bundle.model.generation_config.to_dict() | translated(request.options())
    samples = options.pop("num_samples")
    settings = EsoLMGenerationConfig(**options)
    prompts = [prompt for prompt in prompts for _ in range(samples)]
    ids = [_ids(bundle, prompt) for prompt in prompts]
    new = settings.max_new_tokens
    sizes = [settings.length if new is None else len(each) + new for each in ids]
    config = bundle.model.config
    batch = settings.batch(bundle.model, ROWS, max(sizes, default=1))
    waiting = list(enumerate(zip(ids, sizes, strict=True)))[::-1]
    running: dict[int, Any] = {}
    done: dict[int, str] = {}
    told = 0
    with ProgressBar("prompts", len(prompts)) as progress:
        while told < len(prompts):
            while waiting and batch.free_rows:
                number, (given, size) = waiting.pop()
                tokens = given + [config.mask_token_id] * (size - len(given))
                seed = 0 if settings.seed is None else settings.seed
                try:
                    running[number] = batch.add(
                        settings.request(tokens, config.mask_token_id, seed, number)
                    )
                except ValueError as error:
                    raise ConfigError(f"prompt {number // samples + 1}: {error}") from error
            batch.step()
            for number in [n for n, writing in running.items() if writing.is_done]:
                writing = running.pop(number)
                text = batch.tokens(writing)[: writing.ends_at].tolist()
                done[number] = _behind(bundle, text, len(ids[number]))
                batch.remove(writing)
                progress.advance()
            while told in done:
                yield prompts[told], done.pop(told)
                told += 1


def _behind(bundle: Bundle, tokens: list[int], size: int) -> str:
    """Text of the tokens behind the first so many."""
    assert bundle.tokenizer is not None, "_ids has looked"
    front = bundle.tokenizer.decode_with_specials(tokens[:size])
    return bundle.tokenizer.decode_with_specials(tokens)[len(front) :]


def _ids(bundle: Bundle, text: str) -> list[int]:
    if bundle.tokenizer is None:
        raise ConfigError(f"{bundle.path} carries no tokenizer, so it takes no text")
    return list(bundle.tokenizer.encode(text, recognise_specials=True))
