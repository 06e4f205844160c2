"""Packages that can be understood one after the other: their imports make no circle."""

from pathlib import Path

from tests.import_graph import circles, import_graph

FILES = {
    "data_prep/__init__.py": "",
    "data_prep/errors.py": "import json\n",
    "model/__init__.py": "",
    "model/network.py": "from esolm.model.layers import Block\nimport torch.nn\n",
    "model/layers.py": "",
    "pipeline/__init__.py": "",
    "pipeline/errors.py": "from esolm.data_prep.errors import DataError\n",
    "pipeline/train/__init__.py": "from . import trainer\nfrom .. import errors\n",
    "pipeline/train/trainer.py": "def run():\n    from esolm.pipeline.data.reader import Reader\n",
    "pipeline/data/__init__.py": "",
    "pipeline/data/reader.py": (
        "from typing import TYPE_CHECKING\nimport esolm.model.network\n"
        "if TYPE_CHECKING:\n    from esolm.pipeline.train.trainer import run\n"
        "else:\n    from esolm.pipeline import errors\n"
    ),
}


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_what_counts_as_an_import(tmp_path: Path) -> None:
    graph = import_graph(written(tmp_path, FILES))
    assert graph == {
        "data_prep": {},
        "model": {},
        "pipeline.errors": {"data_prep": {"pipeline.errors"}},
        "pipeline.train": {
            "pipeline.errors": {"pipeline.train"},
            "pipeline.data": {"pipeline.train.trainer"},
        },
        "pipeline.data": {
            "model": {"pipeline.data.reader"},
            "pipeline.errors": {"pipeline.data.reader"},
        },
    }
    assert circles(graph) == []


def test_a_circle_is_found_also_through_a_third(tmp_path: Path) -> None:
    later = "def late():\n    import esolm.pipeline.train.trainer\n"
    graph = import_graph(written(tmp_path, {**FILES, "pipeline/errors.py": later}))
    assert circles(graph) == [["pipeline.data", "pipeline.errors", "pipeline.train"]]


def test_no_sub_packages_import_each_other_in_a_circle() -> None:
    """`python -m tests.import_graph` shows the imports of which a circle consists."""
    assert circles(import_graph()) == []
