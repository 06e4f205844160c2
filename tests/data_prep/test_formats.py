"""A format of another package: the example of `data_prep/formats.py`, installed, makes data."""

from pathlib import Path

from esolm.data_prep import formats
from tests.examples import source_of_example
from tests.processes import run_python

TABLE = """id,text
1,"The first, with a comma."
2,"A second one
over two lines."
3,Third.
"""


def test_an_installed_format_is_taken(tmp_path: Path, tokenizer_directory: Path) -> None:
    package = tmp_path / "package"
    about = package / "comma_separated-1.0.dist-info"
    about.mkdir(parents=True)
    (package / "comma_separated.py").write_text(source_of_example(formats))
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: comma-separated\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{formats.GROUP}]\ncsv = comma_separated:FORMAT\n")
    (tmp_path / "table.csv").write_text(TABLE)
    (tmp_path / "other.csv").write_text("id,words\n1,x\n")

    def tokenize(name: str, *options: str) -> str:
        command = [
            "prep",
            "tokenize",
            str(tmp_path / name),
            "--out",
            str(tmp_path / f"{name}.data"),
        ]
        command += ["--tokenizer", str(tokenizer_directory), "--valid-fraction", "0"]
        finished = run_python("-m", "esolm", *command, *options, packages=(package,))
        return f"{finished.returncode} {finished.stdout} {finished.stderr}"

    assert "3 documents" in tokenize("table.csv")
    assert "other.csv:2: no column 'text'" in tokenize("other.csv")
    assert "1 documents" in tokenize("other.csv", "--text-key", "words")
