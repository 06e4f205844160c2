"""Rules that hold for the repository as a whole."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT

MOST_LINES = 600
# In pieces, so that this file passes its own test.
MACHINE_PATHS = ["/" + "work/", "/" + "root/"]


def files() -> list[Path]:
    """Every file of the repository: tracked, or new and not ignored."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: what belongs to the repository is not known")
    return [ROOT / name for name in listed.splitlines() if (ROOT / name).is_file()]


def test_imports_point_one_way() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    finished = subprocess.run(
        [str(linter), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_no_python_file_is_longer_than_a_person_reads() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in files() if path.suffix == ".py"}
    assert {path: length for path, length in lengths.items() if length > MOST_LINES} == {}


def test_no_file_speaks_of_one_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {machine_path}"
        for path in files()
        for machine_path in MACHINE_PATHS
        if machine_path.encode() in path.read_bytes()
    ]
    assert not found, found


def test_links_between_the_documents_lead_somewhere() -> None:
    broken = []
    for document in (path for path in files() if path.suffix == ".md"):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text()):
            if "://" not in target and not (document.parent / target).exists():
                broken.append(f"{document.relative_to(ROOT)} -> {target}")
    assert not broken, broken


def test_every_document_is_reachable_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    documents = [path.name for path in (ROOT / "docs").glob("*.md")]
    assert [name for name in documents if f"docs/{name}" not in readme] == []


def test_files_that_the_documents_name_exist() -> None:
    named = re.compile(r"(?<![\w/])((?:pipeline|model|data_prep|tests|benchmarks)/[\w/]*\.py)")
    missing = [
        f"{document.relative_to(ROOT)}: {name}"
        for document in (path for path in files() if path.suffix == ".md")
        for name in named.findall(document.read_text())
        if not (ROOT / name).is_file()
    ]
    assert not missing, missing


# Published checkpoints are of named objectives, and the bundle has a table of its own decoders.
MAY_NAME_OBJECTIVES = ("pipeline/importer/", "pipeline/export/bundle/")


def test_nothing_outside_of_its_file_asks_which_objective_it_is() -> None:
    names = {"esolm", "ar", "mdlm", "bd3lm"}
    classes = {"EsoLM", "AutoRegressive", "MDLM", "BD3LM"}
    asking = []
    for path in (ROOT / "pipeline").rglob("*.py"):
        where = str(path.relative_to(ROOT))
        if where.startswith(MAY_NAME_OBJECTIVES):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            compared = node.comparators if isinstance(node, ast.Compare) else []
            keys = node.keys if isinstance(node, ast.Dict) else []
            inner = [each for side in compared for each in ast.walk(side)] + list(keys)
            literal = {each.value for each in inner if isinstance(each, ast.Constant)}
            imported = {a.name for a in node.names} if isinstance(node, ast.ImportFrom) else set()
            if literal & names or imported & classes:
                asking.append(f"{where}:{getattr(node, 'lineno', '?')}")
    assert not asking, asking


def test_every_decoder_that_an_objective_names_is_in_the_bundle() -> None:
    from esolm.model.objectives.registry import SHIPPED
    from esolm.pipeline.export.bundle.walks_esolm import WALKS

    decodings = [kind.decoding for kind in SHIPPED.values() if kind.decoding is not None]
    named = [decoder for decoding in decodings for decoder in decoding.decoders]
    assert sorted(named) == sorted(WALKS)


def test_public_python_names_exist() -> None:
    section = (ROOT / "docs" / "design.md").read_text().partition("## Public Python names")[2]
    named = re.findall(r"`(esolm\.[\w.]+)`", section.partition("\n## ")[0])
    assert len(named) > 10
    for name in named:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def test_no_two_classes_share_a_name() -> None:
    """A reader of one file must not think of another's class."""
    places: dict[str, list[str]] = {}
    for package in ("data_prep", "model", "pipeline"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
