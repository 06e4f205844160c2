"""Zero-shot corpora: a configuration file says which local file holds one and how it is cut."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from esolm.data_prep.bad_documents import BadDocuments
from esolm.data_prep.documents import iterate_documents
from esolm.data_prep.errors import DataError
from esolm.data_prep.formats import ReadOptions
from esolm.data_prep.known_formats import ANY
from esolm.data_prep.sources import find_files
from esolm.data_prep.tokenizers import Tokenizer
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.evaluate.detokenize import DETOKENIZERS
from esolm.pipeline.evaluate.rows import ArrayRows, Int64Array, limited
from esolm.pipeline.evaluate.subject import Subject

CONFIGS = Path(__file__).parents[2] / "configs" / "suite"


@dataclass
class SuiteConfig:
    """One corpus; a file under configs/suite/ holds these keys."""

    title: str = MISSING
    file: str = MISSING
    """The file, or folder of files, expected in the folder of --files; it may be .gz or .zst."""
    source: str = MISSING
    """Where a person finds it; the message says so when it is missing."""
    text_key: str = "text"
    """The key that holds the text in JSONL files."""
    unit: str = "document"
    """What is one text of a text file: `document`, `line`, or `line_with_break`, with its end."""
    detokenizer: str = "none"
    """A key of `esolm.pipeline.evaluate.detokenize.DETOKENIZERS`."""
    first_character: int = 0
    """Where the part of a document that is measured begins."""
    seq_len: int = 0
    """The tokens of a row; 0 stands for as many as the network was trained on."""
    wrap_special: bool = True
    """Whether rows begin with bos and end with eos, as those of the published figures do."""
    end_of_text: bool = False
    """Whether eos is put after every text."""


def load_suite(name: str) -> SuiteConfig:
    """Loads the suite of a name in configs/suite/, or of a YAML file.

    Raises ConfigError if there is none, or if a value in it cannot be.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else CONFIGS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in CONFIGS.glob("*.yaml")))
        raise ConfigError(f"there is no suite '{name}'; choose of {known}, or name a YAML file")
    try:
        content = OmegaConf.load(path)
        merged = OmegaConf.merge(OmegaConf.structured(SuiteConfig), content)
        assert isinstance(merged, DictConfig)
        suite = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from error
    assert isinstance(suite, SuiteConfig)
    problems = [
        f"{path}: {key} is '{value}'; choose of {', '.join(allowed)}"
        for key, value, allowed in (
            ("unit", suite.unit, ("document", "line", "line_with_break")),
            ("detokenizer", suite.detokenizer, tuple(DETOKENIZERS)),
        )
        if value not in allowed
    ]
    if problems:
        raise ConfigError(problems)
    return suite


def suite_rows(
    name: str, files: Path | None, subject: Subject, seq_len: int | None, limit: int | None
) -> ArrayRows:
    """Packs a corpus into rows under the network's own tokenizer; tokens left over are dropped.

    Raises DataError if its file is missing, with what to put where, or too short for one row.
    """
    suite = load_suite(name)
    if files is None:
        raise ConfigError("--suite needs --files DIR, the folder that holds its corpora")
    if subject.tokenizer is None:
        raise ConfigError(f"{subject.path} carries no tokenizer; name one by --tokenizer")
    length = seq_len or suite.seq_len or subject.seq_len
    tokens = _pack(suite, files, subject.tokenizer, length, limit)
    if not len(tokens):
        raise DataError(f"{files / suite.file} is too short for a single row of {length} tokens")
    return ArrayRows(suite.title, tokens[: limited(len(tokens), limit)], subject.tokenizer)


def _texts(suite: SuiteConfig, files: Path) -> Iterator[str]:
    path = files / suite.file
    if not path.exists():
        raise DataError(
            f"{path} is missing. Put {suite.title} there ({suite.source}); nothing is downloaded."
        )
    detokenize = DETOKENIZERS[suite.detokenizer]
    options = ReadOptions(suite.text_key)
    for document in iterate_documents(find_files([path], told=ANY), BadDocuments(), options):
        text = document.text[suite.first_character :]
        if suite.unit == "document":
            yield detokenize(text)
        else:
            for line in text.splitlines(keepends=suite.unit == "line_with_break"):
                yield detokenize(line)


def _pack(
    suite: SuiteConfig, files: Path, tokenizer: Tokenizer, length: int, limit: int | None
) -> Int64Array:
    """Puts all texts end to end and cuts them into rows, int64 [N, length].

    limit: no text is read once there are tokens for so many rows.
    """
    bos, eos = tokenizer.vocabulary.bos_id, tokenizer.vocabulary.eos_id
    if (suite.wrap_special and bos is None) or (eos is None and _needs_eos(suite)):
        raise ConfigError("the tokenizer has no bos or eos, which this suite puts between rows")
    content = length - 2 if suite.wrap_special else length
    if content < 1:
        raise ConfigError(f"rows of {length} tokens leave no room between bos and eos")
    stream: list[int] = []
    for text in _texts(suite, files):
        stream += tokenizer.encode(text, recognise_specials=True)
        if suite.end_of_text and eos is not None:
            stream.append(eos)
        if limit is not None and len(stream) >= limit * content:
            break
    count = len(stream) // content
    rows = np.array(stream[: count * content], dtype=np.int64).reshape(count, content)
    if suite.wrap_special:
        ends = np.ones((count, 1), dtype=np.int64)
        rows = np.concatenate([ends * (bos or 0), rows, ends * (eos or 0)], axis=1)
    return rows


def _needs_eos(suite: SuiteConfig) -> bool:
    return suite.wrap_special or suite.end_of_text
