"""The passes of a task must have read the same documents: they speak of them by number."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from esolm.data_prep import reading
from esolm.data_prep.errors import DataError
from esolm.data_prep.jobs import prepare_output
from esolm.data_prep.passes import passes_of
from tests.data_prep.corpus import make_job, write_jsonl


def test_a_pass_that_read_something_else(
    tokenizer_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_jsonl(tmp_path / "corpus.jsonl", 20)
    job = make_job(corpus, tokenizer_directory, tmp_path / "data", dedup="corpus")
    prepare_output(job, tokenizer_directory, overwrite=False)
    compare, choose, tokenize = passes_of(job)
    everything = reading.iterate_documents

    def all_but_the_first(*arguments: Any) -> Iterator[Any]:
        return islice(everything(*arguments), 1, None)

    with monkeypatch.context() as patch:
        patch.setattr(reading, "iterate_documents", all_but_the_first)
        compare.run(job, 0, lambda num_bytes: None)
    choose.run(job, 0, lambda num_bytes: None)
    with pytest.raises(DataError, match=r"'documents': 20\b.*'documents': 19\b.* --overwrite"):
        tokenize.run(job, 0, lambda num_bytes: None)
    assert not list((job.out / "shards").glob("*.tar"))
    prepare_output(job, tokenizer_directory, overwrite=True)
    for each in passes_of(job):
        each.run(job, 0, lambda num_bytes: None)
    assert tokenize.is_done(job, 0)
