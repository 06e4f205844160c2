"""The datasets that a configuration names: opened together, with everything wrong with them."""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from esolm.data_prep.errors import DataError
from esolm.data_prep.verify import tokenizer_problems
from esolm.model.settings import setting_problems
from esolm.pipeline.checkpoint.commit import newest_valid
from esolm.pipeline.data.dataset import TokenDataset
from esolm.pipeline.data.index import BEST_FIT
from esolm.pipeline.data.mixture import MixtureReader, MixtureSource, SourceUse
from esolm.pipeline.data.packed_rows import PackedRows
from esolm.pipeline.data.reader import content_of
from esolm.pipeline.errors import CheckpointError
from esolm.pipeline.run.data_sections import DataSection, SourceSection
from esolm.pipeline.run.directory import RunDirectory
from esolm.pipeline.run.sections import RunConfig

_NAME = re.compile(r"[\w.-]+")


def named_sources(data: DataSection) -> list[SourceSection]:
    """Returns every dataset that a configuration names, with its name and its bound of epochs.

    `data.path` is one source. Nothing is checked.
    """
    return [
        SourceSection(
            path=source.path,
            weight=source.weight,
            epochs_max=source.epochs_max or data.epochs_max,
            name=source.name or Path(source.path).absolute().name,
        )
        for source in data.sources or [SourceSection(path=data.path)]
    ]


def source_paths(data: DataSection) -> list[str]:
    """Returns the folder of every dataset that a configuration names."""
    return [source.path for source in named_sources(data)]


def open_sources(config: RunConfig) -> tuple[list[MixtureSource], list[str]]:
    """Returns the train splits that could be opened, and everything that is wrong with any.

    The tokenizer must be that of the tokens: the run keeps a copy, which its export needs.
    """
    problems = source_problems(config.data)
    opened = []
    for source in named_sources(config.data):
        if config.data.sources and not source.path:
            continue
        try:
            dataset = TokenDataset(source.path, "train", config.data.verify != "none")
            opened.append(MixtureSource(source.name, dataset, source.weight, source.epochs_max))
            problems += _split_problems(config, dataset)
            problems += tokenizer_problems(dataset.path, dataset.manifest)
        except DataError as error:
            problems.append(str(error))
    if config.data.verify != "none":
        problems += _checksum_problems(opened)
    return opened, problems + _kinship_problems(opened)


def open_split(config: RunConfig, split: str) -> list[MixtureSource]:
    """Returns a split of every dataset, without checks. Raises DataError for the first bad one."""
    checked = config.data.verify != "none"
    return [
        MixtureSource(each.name, TokenDataset(each.path, split, checked), each.weight)
        for each in named_sources(config.data)
    ]


def reader_of(config: RunConfig, sources: Sequence[MixtureSource]) -> MixtureReader:
    """Returns the reader of the samples of a run from its beginning."""
    data, seq_len = config.data, config.train.seq_len
    return MixtureReader(sources, seq_len, config.seed, data.shuffle, data.packing)


def uses_of(config: RunConfig, sources: Sequence[MixtureSource]) -> list[SourceUse]:
    """Returns what a run takes of each source by its last step.

    It goes on from its newest checkpoint, if there is one; whether that is of the same run is for
    the training to say. Raises DataError for settings that no reader takes.
    """
    reader, train = reader_of(config, sources), config.train
    num_samples = train.steps * train.global_batch_size
    with suppress(CheckpointError, DataError):
        found = newest_valid(RunDirectory(config.run.dir).checkpoints)
        if found is not None and (state := found[1].run["data"]):
            reader.adopt(state, True, found[1].run["data_path"])
            to_come = max(0, train.steps - found[1].step) * train.global_batch_size
            num_samples = state["consumed_samples"] + to_come
    return reader.uses(num_samples)


def epoch_problems(reader: MixtureReader, num_samples: int) -> list[str]:
    """Says which sources are read more often than they may be by the end of so many samples."""
    return [use.problem for use in reader.uses(num_samples) if use.problem]


def source_problems(data: DataSection) -> list[str]:
    """Says what is wrong with `data.sources` before any dataset is looked at."""
    if not data.sources:
        return []
    problems = []
    if data.path:
        problems.append(
            f"data.path is {data.path} and data.sources are given as well: a run reads one or the "
            "others; leave out one, or empty it by data.path= or data.sources=[]"
        )
    names: dict[str, int] = {}
    for number, (given, source) in enumerate(zip(data.sources, named_sources(data), strict=True)):
        key = f"data.sources[{number}]"
        problems += setting_problems(given, f"{key}.")
        if not given.path:
            problems.append(f"{key}.path is missing: the folder of a dataset")
            continue
        if not _NAME.fullmatch(source.name):
            problems.append(
                f"{key}.name is '{source.name}'; give it one of letters, digits and . - _, as it "
                "stands in the names of metrics"
            )
        if source.name in names:
            problems.append(
                f"{key} is called '{source.name}', as data.sources[{names[source.name]}] is: give "
                "one of them another name"
            )
        names.setdefault(source.name, number)
    return problems


def _split_problems(config: RunConfig, dataset: TokenDataset) -> list[str]:
    """Names the splits that hold no whole sequence.

    Raises DataError if there is no valid split, or no index of the packing.
    """
    seq_len, packing = config.train.seq_len, config.data.packing
    content = content_of(seq_len, packing)
    if content < 1:
        return [f"train.seq_len is {seq_len}; data.packing {packing} takes 3 at least"]
    splits = [dataset]
    if config.train.valid_every_steps > 0:
        splits.append(TokenDataset(dataset.path, "valid", config.data.verify != "none"))
    return [
        f"split '{split.split}' of {dataset.path} has {split.num_tokens} tokens, too few for "
        f"one sequence of train.seq_len {config.train.seq_len}: make that smaller, or tokenize "
        "more text (for the valid split: with a larger --valid-fraction)"
        for split in splits
        if split.num_tokens < content
        or (packing == BEST_FIT and not PackedRows(split, seq_len).num_rows)
    ]


def _checksum_problems(sources: Sequence[MixtureSource]) -> list[str]:
    """Names sources whose tokens have no checksums, beside others whose tokens have some."""
    without = [s for s in sources if not all(shard.crc_name for shard in s.dataset.shards)]
    if len(without) == len(sources):
        return []
    return [
        f"source '{source.name}' ({source.dataset.path}) is of format 1, without checksums of its "
        "tokens, and a mixture looks at those of all sources or of none: tokenize it again, or set "
        "data.verify to none"
        for source in without
    ]


def _kinship_problems(sources: Sequence[MixtureSource]) -> list[str]:
    """Names datasets of another tokenizer than the first one's, and such as are there twice."""
    problems, seen = [], dict[str, MixtureSource]()
    for source in sources:
        first, dataset = sources[0].dataset, source.dataset
        if dataset.manifest.tokenizer != first.manifest.tokenizer:
            problems.append(
                f"source '{source.name}' ({dataset.path}) was made with another tokenizer "
                f"({dataset.tokenizer_fingerprint[:12]}, {dataset.vocab_size} ids) than "
                f"'{sources[0].name}' ({first.tokenizer_fingerprint[:12]}, {first.vocab_size} "
                "ids): tokenize one of them again with the other's"
            )
        same = seen.setdefault(dataset.fingerprint, source)
        if same is not source:
            problems.append(
                f"source '{source.name}' ({dataset.path}) has the tokens of '{same.name}' "
                f"({same.dataset.path}): give one of them the weight of both"
            )
    return problems
