"""Patterns and lists of files."""

from pathlib import Path

import pytest

from esolm.data_prep.cleaning.stages import with_absolute_inputs
from esolm.data_prep.errors import DataError
from esolm.data_prep.sources import absolute, find_files, folders_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b/2.txt", "b/1.txt", "a/deep/3.txt", "a/4.md", "top.txt", "[odd].txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def names(*inputs: str | Path) -> list[str]:
    return [source.name for source in find_files(inputs)]


def test_patterns(folder: Path) -> None:
    assert names(f"{folder}/*/?.txt") == ["b/1.txt", "b/2.txt"]
    assert names(f"{folder}/**/*.txt") == [
        *("[odd].txt", "a/deep/3.txt", "b/1.txt", "b/2.txt", "top.txt")
    ]
    assert names(f"{folder}/a/*") == ["4.md"], "a folder that matches is not entered"
    assert names(folder / "[odd].txt") == ["[odd].txt"], "a file of that name comes first"
    with pytest.raises(DataError, match=r"\*\.json \(a pattern that nothing matches\), .*gone"):
        find_files([f"{folder}/*.json", "gone"])


def test_a_list_names_inputs_relative_to_its_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "more.list").write_text("top.txt\n")
    path = folder / "files.list"
    path.write_text(f"# what we train on\n\nb/2.txt\n  a\n{folder}/b/1*\n@more.list\n")
    expected = ["2.txt", "4.md", "deep/3.txt", "1.txt", "top.txt"]
    assert names(f"@{path}") == expected
    monkeypatch.chdir(folder)
    assert names("@files.list") == expected
    path.write_text("missing.txt\n")
    with pytest.raises(DataError, match=r"No such file or directory: .*missing\.txt"):
        find_files([f"@{path}"])
    with pytest.raises(DataError, match=r"The list nowhere\.list cannot be read"):
        find_files(["@nowhere.list"])


def test_a_list_that_names_itself_is_one_error(folder: Path) -> None:
    own, other = folder / "own.list", folder / "other.list"
    own.write_text("top.txt\n@own.list\n")
    with pytest.raises(DataError, match=r"The list .*own\.list names itself\. Take"):
        find_files([f"@{own}"])
    own.write_text("top.txt\n@b/../other.list\n")
    other.write_text("@own.list\n")
    for read in (find_files, folders_of):
        with pytest.raises(DataError, match=r"own\.list names itself by way of .*other\.list"):
            read([f"@{own}"])
    other.write_text("b\n")
    assert names(f"@{own}", f"@{other}", f"@{other}") == ["top.txt", *["1.txt", "2.txt"] * 3]


def test_what_a_container_must_see(folder: Path) -> None:
    (folder / "files.list").write_text("b\na/*.md\n")
    inputs = [f"{folder}/**/*.txt", str(folder / "top.txt"), f"@{folder}/files.list", "gone"]
    expected = [folder, folder / "top.txt", folder / "b", folder / "a", "gone"]
    assert folders_of(inputs) == [str(path) for path in expected]


def test_inputs_mean_the_same_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a job needs them, which runs elsewhere: also lists, patterns, addresses, stages' files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "@home").mkdir()
    same = {
        "a/b.jsonl": f"{tmp_path}/a/b.jsonl",
        "a/*.gz": f"{tmp_path}/a/*.gz",
        "@files.list": f"@{tmp_path}/files.list",
        "@home": f"{tmp_path}/@home",
        "https://there/a.jsonl": "https://there/a.jsonl",
    }
    assert [absolute(given) for given in same] == list(same.values())
    words = {
        "decontaminate=x.txt,@l,s3://b/y": f"decontaminate={tmp_path}/x.txt,@{tmp_path}/l,s3://b/y",
        "language=en,de:0.8@m.ftz": f"language=en,de:0.8@{tmp_path}/m.ftz",
        "language=en,de:0.8": "language=en,de:0.8",
        "own.module:function": "own.module:function",
        "pii": "pii",
    }
    assert [with_absolute_inputs(given) for given in words] == list(words.values())
