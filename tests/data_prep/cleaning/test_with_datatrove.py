"""The filters of datatrove as stages: each on a text that it keeps and on one that it drops."""

from pathlib import Path

import fasttext
import pytest

from esolm.data_prep.cleaning import Drop, Verdict
from esolm.data_prep.cleaning.stages import build_stages
from esolm.data_prep.errors import DataError
from tests.data_prep.cleaning.test_stages import document
from tests.data_prep.corpus import text_of

SENTENCE = "The {0} of the old town has been with the people for {1} years, and that is to be kept."
NOUNS = ["bridge", "river", "market", "church", "garden", "school", "theatre", "castle", "station"]
PROSE = "\n".join(
    SENTENCE.format(noun, number) + f" Nobody knows who built the {noun} in the first place."
    for number, noun in enumerate(NOUNS, start=7)
)
HOSTILE = [" ", "\n", "!!!", "a", "\u00e9", "{", "\x00", "\u4e2d\u6587", "x" * 5000, "a b\n" * 3000]


def judge(words: str, text: str) -> Verdict:
    (stage,) = build_stages((words,))
    return stage.judge(document(text))


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("gopher", "too short", "gopher_short_doc"),
        ("gopher", "xyz " * 100, "gopher_enough_stop_words"),
        ("gopher-repetition", "the same line once more\n" * 50, "dup_line_frac"),
        ("c4", PROSE + "\nfunction() { return 1; }.", "curly_bracket"),
        ("c4", "Only one sentence stands here.", "too_few_sentences"),
        ("fineweb", "a list\nof short\nwords\n" * 20, "line_punct_ratio"),
    ],
)
def test_filters(name: str, text: str, reason: str) -> None:
    varied = "\n".join(f"{line}." for line in text_of(1, 300).splitlines())
    assert judge(name, varied if name == "gopher-repetition" else PROSE) is None
    assert judge(name, text) == Drop(reason)


def test_c4_takes_lines_out() -> None:
    kept = judge("c4", PROSE + "\nPlease enable Javascript to see this page.\nno end")
    assert kept == PROSE


@pytest.mark.parametrize("name", ["gopher", "gopher-repetition", "c4", "fineweb", "pii"])
def test_no_text_ends_the_program(name: str) -> None:
    (stage,) = build_stages((name,))
    for text in HOSTILE:
        assert isinstance(stage.judge(document(text)), Drop | str | None)


def test_scrubbing_depends_on_the_document_alone() -> None:
    text = "Write to jane.doe@mail.org, or john@doe.de; the server is 8.8.8.8, at home 192.168.0.1."
    expected = (
        "Write to email@example.com, or email@example.com; the server is 192.0.2.1, at home "
        "192.168.0.1."
    )
    for _ in range(2):
        assert judge("pii", text) == expected
    assert judge("pii", expected) is None


def test_languages_by_a_model(tmp_path: Path) -> None:
    english = PROSE.lower().splitlines()
    german = [
        f"die {noun} der alten stadt ist seit {n} jahren bei den leuten und soll so bleiben"
        for n, noun in enumerate(("br\u00fccke", "kirche", "schule", "burg", "b\u00fchne") * 3)
    ]
    lines = [f"__label__en {line}" for line in english] + [f"__label__de {line}" for line in german]
    (tmp_path / "lines.txt").write_text("\n".join(lines * 5))
    model = tmp_path / "model.bin"
    trained = fasttext.train_supervised(
        str(tmp_path / "lines.txt"), dim=8, epoch=30, thread=1, verbose=0, minn=2, maxn=3
    )
    trained.save_model(str(model))
    assert judge(f"language=en@{model}", PROSE.lower()) is None
    assert judge(f"language=de:0.5@{model}", german[0]) is None
    dropped = judge(f"language=de@{model}", PROSE.lower())
    assert dropped == Drop("another language, or not surely this")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("gopher=3", "gopher takes no value"),
        ("pii=3", "pii takes no value"),
        ("language", "give languages and a least score"),
        ("language=en:2", "give languages and a least score"),
        ("language=en:much", "give languages and a least score"),
        ("language=en@gone.bin", r"gone\.bin does not exist"),
    ],
)
def test_what_is_wrong_is_said(words: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        build_stages((words,))
