"""The sections of a configuration that say what a run reads, and what that is made from."""

from dataclasses import dataclass, field

from esolm.model.settings import BELOW_ONE, COUNT, NOT_NEGATIVE, POSITIVE, Range, setting
from esolm.pipeline.data.block_cache import DEFAULT_BYTES, SMALLEST_BYTES
from esolm.pipeline.data.index import CONTINUOUS, PACKINGS, SHUFFLES


@dataclass
class SourceSection:
    """One entry of data.sources."""

    path: str = setting("", "A dataset made by `esolm prep merge`, its folder or its address.")
    weight: float = setting(1.0, "Its part of the samples, in any unit.", POSITIVE)
    epochs_max: float = setting(
        0.0, "Most times that it may be read; 0: as `data.epochs_max` says.", NOT_NEGATIVE
    )
    name: str = setting("", "What metrics call it; empty: as its folder is called.")


@dataclass
class DataSection:
    path: str = setting(
        "",
        "A dataset made by `esolm prep merge`, its folder or its address "
        "(`s3://`, `https://` ...); this or `data.sources` is required.",
    )
    sources: list[SourceSection] = field(
        default_factory=list,
        metadata={
            "help": "Several datasets of one tokenizer, each with `path`, `weight`, `epochs_max` "
            "and `name`; see [data](data.md#mixtures)."
        },
    )
    epochs_max: float = setting(
        0.0, "Most times that a dataset may be read in the whole run; 0: any.", NOT_NEGATIVE
    )
    change_sources: bool = setting(
        False,
        "Let a resumed run go on with other datasets or weights than its checkpoint's, from the "
        "next sample on.",
    )
    packing: str = setting(
        CONTINUOUS,
        "What a row is: `continuous`, seq_len tokens of the stream as they stand; `wrapped`, bos, "
        "seq_len - 2 of them, eos, as in the published training on OpenWebText; `best_fit`, whole "
        "documents as far as they can be, see [data](data.md#packing).",
        choices=PACKINGS,
    )
    shuffle: str = setting("global", "`global` or `none`.", choices=SHUFFLES)
    verify: str = setting(
        "sizes",
        "What is checked of the dataset: `none`; `sizes` of files at the start and checksums of "
        "tokens while they are read; `sampled`: also some tokens of every shard at the start; "
        "`full`: also every byte. Its tokenizer is checked in any case.",
        choices=("none", "sizes", "sampled", "full"),
    )
    on_corrupt: str = setting(
        "error",
        "What damaged tokens do that are met while they are read: `error` ends the run; "
        "`quarantine` puts another row of the same source in the place of each that touches them; "
        "see [data](data.md#damaged-tokens).",
        choices=("error", "quarantine"),
    )
    cache_dir: str = setting(
        "",
        "Where tokens from an address are kept on a node; empty: a folder in its `TMPDIR`.",
    )
    cache_bytes: int = setting(
        DEFAULT_BYTES,
        "Most bytes of tokens from addresses that are kept on a node.",
        Range(SMALLEST_BYTES),
    )
    prefetch: int = setting(4, "Global batches prepared ahead.", within=COUNT)


@dataclass
class PrepSection:
    """The corpus that data.path is made from; only `esolm submit --stages prep` reads it."""

    inputs: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Files, directories, patterns, commands or @lists; see [data](data.md#input)."
        },
    )
    from_python_stdlib: bool = setting(False, "Also take the library of the running Python.")
    format: str = setting(
        "auto",
        "What inputs hold: `auto`, by their names; `text`, `lines`, `jsonl`, `json`, `parquet`,"
        " `arrow`, `tar`, `warc`.",
    )
    text_key: str = setting("text", "The key of JSON objects, or the column, with the text.")
    on_bad_document: str = setting("error", "`error` or `skip`.", choices=("error", "skip"))
    max_bad: int = setting(
        -1, "Most bad documents and files to skip in all; -1: any number.", Range(-1)
    )
    max_document_bytes: int = setting(1 << 27, "A longer document is a bad one.", COUNT)
    id_key: str = setting("", "The key of JSON objects, or the column, with a document's name.")
    metadata: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Fields that are kept of each document; see [data](data.md#kept-fields)."
        },
    )
    tokenizer: str = setting(
        "", "A tokenizer's directory; it is trained on the same corpus if it does not exist."
    )
    vocab_size: int = setting(32000, "Pieces of a tokenizer that has to be trained.")
    max_sentences: int = setting(
        100000, "Most pieces of text (about 1,000 characters each) to train it on.", COUNT
    )
    clean: list[str] = field(
        default_factory=list,
        metadata={"help": "Stages that documents pass; see [data](data.md#cleaning)."},
    )
    dedup: str = setting(
        "task",
        "Where repeats are dropped: in a `task`, in the `corpus`; `near`: near-duplicates, too.",
        choices=("task", "corpus", "near"),
    )
    tasks: int = setting(16, "Tasks of the job array.", COUNT)
    valid_fraction: float = setting(0.01, "Share of documents to validate on.", BELOW_ONE)
    shard_tokens: int = setting(100000000, "Tokens after which a shard ends.", COUNT)
