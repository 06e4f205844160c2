"""The examples in a bundle's README run, for networks of every objective."""

import re
from pathlib import Path
from typing import Any

import pytest

from esolm.pipeline.export import gate
from esolm.pipeline.export.export import export_source

# What a user of transformers does with any network.
HABITS = (
    'padding=True, return_tensors="pt"',
    "GenerationConfig(do_sample=True, top_k=",
    "num_return_sequences=",
    'pipeline("text-generation"',
    "labels=labels",
    "Trainer(model, ",
    "get_peft_model(",
)


@pytest.mark.parametrize(
    ("objective", "shown", "also"),
    [
        ({"name": "esolm", "variant": "A", "alpha_0": 0.5}, 8, ("fill-mask", "max_new_tokens")),
        ({"name": "esolm", "variant": "B", "alpha_0": 0.5}, 8, ("fill-mask", "max_new_tokens")),
        ({"name": "mdlm"}, 7, ("fill-mask", "max_new_tokens")),
        ({"name": "bd3lm", "block_size": 8}, 6, ("fill-mask", "max_length=64")),
        ({"name": "ar", "prepend": "none"}, 6, ("mlm=False", "max_new_tokens")),
    ],
    ids=lambda each: str(each.get("variant", each["name"])) if isinstance(each, dict) else "",
)
def test_the_examples_of_the_card(
    objective: dict[str, Any], shown: int, also: tuple[str, ...], paper_source: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """One block after the other, as a reader would. shown: how many things they print."""
    monkeypatch.setattr(gate, "check_reload", lambda *_: ({}, {}))
    monkeypatch.chdir(tmp_path)
    paper_source.objective = objective
    bundle = tmp_path / "bundle"
    export_source(paper_source, bundle)
    card = (bundle / "README.md").read_text()
    assert [each for each in (*HABITS, *also) if each not in card] == []
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert card.count("```") == 2 * len(blocks)
    names: dict[str, Any] = {}
    printed = 0
    for block in blocks:
        capsys.readouterr()
        exec(block.replace("PATH", repr(str(bundle))), names)
        printed += block.count("print(")
        assert ("print(" in block) <= bool(capsys.readouterr().out.strip())
    assert printed == shown
    assert (tmp_path / "tuned" / "model.safetensors").is_file()
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
