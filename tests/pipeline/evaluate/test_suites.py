"""Zero-shot corpora: the shipped files, packing, detokenisation, what a missing file says."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from esolm.data_prep.errors import DataError
from esolm.data_prep.tokenizers import load_tokenizer, save_tokenizer, train_model
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.evaluate.detokenize import DETOKENIZERS
from esolm.pipeline.evaluate.rows import ArrayRows
from esolm.pipeline.evaluate.subject import Subject, open_subject
from esolm.pipeline.evaluate.suites import CONFIGS, load_suite, suite_rows
from tests.data_prep.corpus import text_of

NAMES = ["ag_news", "arxiv", "lambada", "lm1b", "ptb", "pubmed", "text8", "wikitext"]


@pytest.fixture(scope="module")
def subject(make_run: Callable[[str], Path]) -> Subject:
    return open_subject(make_run("esolm_b"), None, torch.device("cpu"))


def test_all_suites_of_the_paper_are_there() -> None:
    assert sorted(path.stem for path in CONFIGS.glob("*.yaml")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named_with_what_belongs_there(
    name: str, subject: Subject, tmp_path: Path
) -> None:
    suite = load_suite(name)
    with pytest.raises(DataError) as raised:
        suite_rows(name, tmp_path, subject, None, None)
    for part in (str(tmp_path / suite.file), suite.title, suite.source, "nothing is downloaded"):
        assert part in str(raised.value)


@pytest.mark.parametrize("name", NAMES)
def test_every_suite_reads_a_file_of_its_form(name: str, subject: Subject, tmp_path: Path) -> None:
    suite = load_suite(name)
    text = "ba be bin bor bus ca ce cin . da de , " * 12
    path = tmp_path / suite.file
    if suite.file.endswith(".jsonl"):
        path.write_text("\n".join(json.dumps({suite.text_key: text}) for _ in range(4)))
    elif name == "lm1b":
        path.mkdir()
        (path / "news.en.heldout-00000-of-00050").write_text(f"{text}\n" * 2)
        (path / "news.en.heldout-00001-of-00050").write_text(f"{text}\n" * 2)
    elif name == "text8":
        suite_file = tmp_path / "text8.yaml"
        shipped = (CONFIGS / "text8.yaml").read_text()
        suite_file.write_text(shipped.replace("95000000", "5").replace("256", "16"))
        path.write_text("skip " + text * 4)
        name = str(suite_file)
    else:
        path.write_text(f"{text}\n" * 4)
    rows = suite_rows(name, tmp_path, subject, None, None)
    limited = suite_rows(name, tmp_path, subject, None, 3)
    assert rows.num_rows > 3 == limited.num_rows
    assert np.array_equal(rows.tokens[:3], limited.tokens)
    expected = DETOKENIZERS[suite.detokenizer](text)
    assert_packed(rows, subject, expected, wrapped=suite.wrap_special)


def assert_packed(rows: ArrayRows, subject: Subject, text: str, wrapped: bool) -> None:
    tokenizer = subject.tokenizer
    assert tokenizer is not None
    assert rows.tokens.shape[1] == subject.seq_len
    content = rows.tokens
    if wrapped:
        assert (content[:, 0] == tokenizer.vocabulary.bos_id).all()
        assert (content[:, -1] == tokenizer.vocabulary.eos_id).all()
        content = content[:, 1:-1]
    ids = tokenizer.encode(text)[:-5]  # what stands around the text may share its last tokens
    assert content.flatten()[: len(ids)].tolist() == ids


def test_bytes_are_those_of_the_text(subject: Subject) -> None:
    tokenizer = subject.tokenizer
    assert tokenizer is not None
    texts = ["ba be bi", "zwei Größen, 3 €\n", "\u2581 mark", "日本語 and \U0001f600"]
    for text in texts:
        ids = np.array([tokenizer.encode(text)])
        assert tokenizer.num_bytes(ids).tolist() == [len(text.encode())]
    whole = np.array(tokenizer.encode(texts[3]))
    assert tokenizer.vocabulary.eos_id is not None
    cut = [np.array([[*part, tokenizer.vocabulary.eos_id]]) for part in np.array_split(whole, 5)]
    total = sum(int(tokenizer.num_bytes(part)[0]) for part in cut)
    assert total == len(texts[3].encode()), "also where a row cuts a character"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("none", " a , b ", " a , b "),
        ("wikitext", " = Title = \n", " = Title =\n"),
        ("wikitext", "1 @,@ 000 @-@ mile ( 5 @.@ 2 km ) ; it 's", "1,000-mile (5.2 km); it's"),
        ("wikitext", ' said " yes " , then', ' said "yes", then'),
        ("ptb", "the company 's <unk> is n't worth $ N N N", "the company's ? isn't worth $1 1 N"),
        ("lm1b", 'He said : " it \'s ( not ) $ 5 ? "', 'He said: "it\'s (not) $5?"'),
        ("lm1b", "That was all .", "That was all."),
        ("lambada", " \u201cyes\u201d, he said ", '\n"yes", he said'),
        ("scientific_papers", "a @-@ b , c ?", "a-b, c?"),
    ],
)
def test_detokenizers(name: str, text: str, expected: str) -> None:
    assert DETOKENIZERS[name](text) == expected


def test_bad_requests(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no suite 'nowhere'; choose of ag_news"):
        suite_rows("nowhere", tmp_path, subject, None, None)
    with pytest.raises(ConfigError, match="needs --files"):
        suite_rows("ptb", None, subject, None, None)
    (tmp_path / "ptb.valid.txt").write_text("ba\n")
    with pytest.raises(DataError, match="too short for a single row"):
        suite_rows("ptb", tmp_path, subject, None, None)
    with pytest.raises(ConfigError, match="leave no room"):
        suite_rows("ptb", tmp_path, subject, 2, None)
    bad = tmp_path / "bad.yaml"
    bad.write_text("title: x\nfile: y\nsource: z\nunit: word\ndetokenizer: moses\n")
    with pytest.raises(ConfigError) as raised:
        load_suite(str(bad))
    assert len(raised.value.problems) == 2
    bad.write_text("titel: x\n")
    with pytest.raises(ConfigError, match="titel"):
        load_suite(str(bad))
    without = Subject(**dict(vars(subject), tokenizer=None))
    with pytest.raises(ConfigError, match=re.escape("name one by --tokenizer")):
        suite_rows("ptb", tmp_path, without, None, None)


def test_a_tokenizer_of_other_ids_is_refused(
    make_run: Callable[[str], Path], make_bundle: Callable[[str], Path], judge: Path, tmp_path: Path
) -> None:
    """One of transformers with another vocabulary; one of our own that differs in its pieces."""
    own = make_run("esolm_b") / "tokenizer"
    size = load_tokenizer(own).info.vocab_size
    texts = [text_of(i)[::-1] for i in range(200)]
    other = tmp_path / "other"
    save_tokenizer(train_model(texts, size), other)
    for network in (make_run("esolm_b"), make_bundle("esolm_b")):
        for directory in (judge, other):
            with pytest.raises(ConfigError, match="has another vocabulary"):
                open_subject(network, None, torch.device("cpu"), directory)
        assert open_subject(network, None, torch.device("cpu"), own).tokenizer is not None


@pytest.mark.parametrize(
    ("num_rows", "mask_id", "fingerprint"), [(401, 3, None), (300, 4, None), (300, 3, "other")]
)
def test_vocabularies_that_do_not_fit(
    subject: Subject, num_rows: int, mask_id: int, fingerprint: str | None
) -> None:
    small = replace(subject, vocab_size=400, mask_id=3)
    small.check_vocabulary(Path("fits"), 400, 3, None)
    small.check_vocabulary(Path("fits"), 300, 3, small.fingerprint)
    with pytest.raises(ConfigError, match=f"{num_rows} ids, mask {mask_id}"):
        small.check_vocabulary(Path("no"), num_rows, mask_id, fingerprint)
