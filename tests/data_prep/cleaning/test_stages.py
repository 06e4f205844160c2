"""Stages of cleaning: one's own, decontamination, and what is reported of them."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import pytest

from esolm.data_prep import cleaning
from esolm.data_prep.bad_documents import JsonLinesFile
from esolm.data_prep.cleaning import contamination
from esolm.data_prep.cleaning.contamination import NUM_WORDS, Passages
from esolm.data_prep.cleaning.pipeline import Cleaner
from esolm.data_prep.cleaning.report import Reporter
from esolm.data_prep.cleaning.stages import build_stages
from esolm.data_prep.cleaning.words import Hashes, hashes_of
from esolm.data_prep.documents import Document
from esolm.data_prep.errors import DataError
from esolm.data_prep.formats import Passage, Place, RawDocument
from tests.data_prep.corpus import text_of
from tests.examples import source_of_example


def document(text: str, number: int = 0) -> Document:
    raw = RawDocument(Place("corpus.jsonl", line=number + 1), lambda: Passage(text, len(text)))
    return Document(number, text, raw, len(text))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "installed"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    build_stages.cache_clear()
    yield folder
    build_stages.cache_clear()
    for name in ("own", "lists"):
        sys.modules.pop(name, None)


def test_the_example_of_a_stage(package: Path, tmp_path: Path) -> None:
    (package / "lists.py").write_text(source_of_example(cleaning))
    stages = build_stages(("lists:no_lists",))
    examples = JsonLinesFile(tmp_path / "examples.jsonl")
    reporter = Reporter(["lists:no_lists"], examples)
    cleaner = Cleaner(stages, reporter)
    texts = ["plain \u00e9", "a\tb", *["- one\n- two"] * 9]
    found = [cleaner.apply(document(text, number)) for number, text in enumerate(texts)]
    assert [one.text for one in found if one is not None] == ["plain \u00e9", "a b"]
    examples.commit()
    (report,) = reporter.stages.values()
    assert report.to_record() == {
        "name": "lists:no_lists",
        "documents_in": 11,
        "bytes_in": 8 + 3 + 9 * 11,
        "documents_out": 2,
        "bytes_out": 8 + 3,
        "changed": 1,
        "reasons": {"mostly a list": 9},
    }
    lines = [json.loads(line) for line in examples.path.read_text().splitlines()]
    assert len(lines) == 5, "some for each reason are enough"
    assert lines[0] == {
        "stage": "lists:no_lists",
        "reason": "mostly a list",
        "file": "corpus.jsonl",
        "line": 3,
        "text": "- one\n- two",
    }


def test_a_stage_that_fails_or_returns_nonsense_is_named(package: Path) -> None:
    (package / "own.py").write_text(
        "def failing(document): return document.txt\n"
        "def nonsense(document): return True\n"
        "def nothing(document): return ''\n"
        "def surrogate(document): return '\\ud800'\n"
    )
    for name, problem in (
        ("failing", r"own:failing failed at corpus\.jsonl:1 \(AttributeError"),
        ("nonsense", "own:nonsense returned True for"),
        ("surrogate", "own:surrogate failed .*UnicodeEncodeError"),
    ):
        cleaner = Cleaner(build_stages((f"own:{name}",)), None)
        with pytest.raises(DataError, match=problem):
            cleaner.apply(document("text"))
    assert Cleaner(build_stages(("own:nothing",)), None).apply(document("text")) is None


def test_what_is_no_stage_is_named_all_at_once(package: Path) -> None:
    (package / "own.py").write_text("import nowhere_to_be_found\n")
    asked = (
        "gophers",
        "own:f",
        "not_there:f",
        "json:g",
        "decontaminate=",
        "json:dumps",
        "json:dumps",
    )
    with pytest.raises(DataError) as caught:
        build_stages(asked)
    for words in (
        *("'gophers' is no stage", "own cannot be imported", "not_there cannot be imported"),
        *("json has no function g", "name the files", "names a stage twice"),
    ):
        assert words in str(caught.value)


def test_a_changed_filter_is_another(package: Path) -> None:
    path = package / "own.py"
    prints = []
    for body in ("return None", "return None  # anew"):
        path.write_text(f"def f(document): {body}\n")
        sys.modules.pop("own", None)
        build_stages.cache_clear()
        prints.append(build_stages(("own:f",))[0].fingerprint)
    assert prints[0] != prints[1]


def shares_a_passage(text: str, evaluation: str, size: int) -> bool:
    """By sets of tuples."""
    first, second = (
        {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}
        for words in (text.split(), evaluation.split())
    )
    return bool(first & second)


def test_passages_are_found_where_a_set_finds_them() -> None:
    random = Random(3)
    vocabulary = ["a", "b", "c"]
    evaluation = " ".join(random.choices(vocabulary, k=3000))
    passages = Passages()
    passages.add([evaluation], "evaluation")
    outcomes = set()
    for _ in range(200):
        text = " ".join(random.choices(vocabulary, k=random.randrange(200)))
        expected = shares_a_passage(text, evaluation, NUM_WORDS)
        assert (passages.find(text) is not None) == expected
        outcomes.add(expected)
    assert outcomes == {True, False}


def test_the_cost_of_evaluations_grows_with_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []

    def count(words: Sequence[str]) -> Hashes:
        hashed.append(len(words))
        return hashes_of(words)

    monkeypatch.setattr(contamination, "hashes_of", count)
    passages = Passages()
    for number in range(20):
        passages.add([text_of(number, 50)], f"evaluation {number}")
    assert passages.find(text_of(7, 50)) is not None
    assert passages.find(text_of(30, 50)) is None
    assert len(hashed) <= 20 * (50 - NUM_WORDS + 1) + 2


def test_an_evaluation_without_texts_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gsm8k.jsonl"
    path.write_text('{"question": "how many?"}\n')
    with pytest.raises(DataError, match=r"gsm8k\.jsonl:1 of the evaluation: ") as caught:
        build_stages((f"decontaminate={path}",))
    assert "--text-key" not in str(caught.value)
    assert "--on-bad-document" not in str(caught.value)
    path = tmp_path / "damaged.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"decontaminate=.*damaged\.parquet is damaged") as caught:
        build_stages((f"decontaminate={path}",))
    assert "--on-bad-document" not in str(caught.value)


def test_evaluations_in_files(tmp_path: Path) -> None:
    evaluations = tmp_path / "evaluations"
    evaluations.mkdir()
    words = text_of(1).split()
    lines = [{"text": " ".join(words)}, {"text": "one two three four five six seven, EIGHT"}]
    (evaluations / "lambada.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (evaluations / "short").write_text("too short")
    (stage,) = build_stages((f"decontaminate={evaluations}",))
    assert not stage.changes_text
    around = f"before {'; '.join(words[20:33]).upper()} after"
    assert "lambada.jsonl" in str(stage.judge(document(around)))
    assert stage.judge(document(" ".join(words[20:32]))) is None
    assert stage.judge(document("(One two) three four -- five six seven eight nine")) is not None
    with pytest.raises(DataError, match="no text in it has 8 words"):
        build_stages((f"decontaminate={evaluations / 'short'}",))
