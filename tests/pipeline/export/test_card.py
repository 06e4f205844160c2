"""The example in a bundle's README runs, for networks of every objective."""

import re
from pathlib import Path
from typing import Any

import pytest

from esolm.pipeline.export import gate
from esolm.pipeline.export.export import export_source


@pytest.mark.parametrize(
    ("objective", "shown"),
    [
        ({"name": "esolm", "variant": "A", "alpha_0": 0.5}, 3),
        ({"name": "esolm", "variant": "B", "alpha_0": 0.5}, 3),
        ({"name": "mdlm"}, 2),
        ({"name": "bd3lm", "block_size": 8}, 1),
        ({"name": "ar", "prepend": "none"}, 2),
    ],
    ids=lambda each: str(each.get("variant", each["name"])) if isinstance(each, dict) else "",
)
def test_the_example_of_the_card(
    objective: dict[str, Any], shown: int, paper_source: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """shown: how many things it prints."""
    monkeypatch.setattr(gate, "check_reload", lambda *_: ({}, {}))
    paper_source.objective = objective
    bundle = tmp_path / "bundle"
    export_source(paper_source, bundle)
    [example] = re.findall(r"```python\n(.*?)```", (bundle / "README.md").read_text(), re.DOTALL)
    assert example.count("print(") == shown
    capsys.readouterr()
    exec(example.replace("PATH", repr(str(bundle))), {})
    assert len(capsys.readouterr().out.splitlines()) >= shown
