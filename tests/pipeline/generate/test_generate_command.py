"""`esolm generate` on a bundle with a tokenizer: text, figures, comparison."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from esolm.data_prep.tokenizers import load_tokenizer, save_tokenizer, train_model
from esolm.pipeline.cli.export import export_command
from esolm.pipeline.cli.generate import generate_command
from esolm.pipeline.errors import ConfigError, ExportError
from esolm.pipeline.export.bundle import decoding_esolm
from esolm.pipeline.export.bundle.graphs_esolm import Runner
from esolm.pipeline.export.manifest import write_manifest
from esolm.pipeline.generate import Request, compare, generate, load_bundle
from tests.pipeline.blind_cache import blind_to_the_first_slot
from tests.processes import run_python


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Bundles of random weights, without a gate."""
    from esolm.pipeline.export.bundle.configuration_esolm import EsoLMConfig
    from esolm.pipeline.export.bundle.modeling_esolm import EsoLMForMaskedLM

    tokenizer = tmp_path_factory.mktemp("tokenizer")
    text = inspect.getsource(inspect)
    chunks = [text[i : i + 500] for i in range(0, 100_000, 500)]
    save_tokenizer(train_model(chunks, 420), tokenizer)

    def make(**changes: Any) -> Path:
        path = tmp_path_factory.mktemp("bundle")
        torch.manual_seed(0)
        config = EsoLMConfig(
            vocab_size=420, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=48, mask_token_id=3, bos_token_id=1, initializer_range=0.3, **changes,
        )  # fmt: skip
        EsoLMForMaskedLM(config).bfloat16().save_pretrained(path)
        load_tokenizer(tokenizer).save_for_bundle(path)
        write_manifest(path, {"step": 1})
        return path

    return make


@pytest.fixture(scope="module")
def bundle(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle()


def test_text_and_figures(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    assert loaded.model.dtype == (torch.bfloat16 if torch.cuda.is_available() else torch.float32)
    request = Request(length=24, alpha_0=0.5, num_steps=4, num_samples=2, prompt="def f():")
    result = generate(loaded, request)
    assert len(result.texts) == 2
    assert all(text.startswith("def f():") for text in result.texts)
    written = 2 * 24 - 2 * len(loaded.tokenizer.encode("def f():"))
    assert result.tokens_per_second == pytest.approx(written / result.seconds)
    assert generate(loaded, request).texts == result.texts


def test_compare(bundle: Path) -> None:
    comparison = compare(load_bundle(bundle), Request(length=24, alpha_0=0.5, num_steps=4))
    assert comparison.ratio == comparison.uncached_seconds / comparison.cached_seconds
    assert comparison.repeats == 3
    assert comparison.identical_in in ("float32", "float64")


def test_compare_finds_a_wrong_cache(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blind_to_the_first_slot(monkeypatch)
    request = Request(length=24, alpha_0=0.5, num_steps=4, num_samples=4)
    with pytest.raises(ExportError, match="tokens differ between cached and uncached"):
        compare(load_bundle(bundle), request)


def test_bad_requests(bundle: Path, tmp_path: Path) -> None:
    loaded = load_bundle(bundle)
    with pytest.raises(ConfigError, match=r"alpha_0 is 1\.5"):
        generate(loaded, Request(alpha_0=1.5))
    with pytest.raises(ConfigError, match="the prompt has"):
        generate(loaded, Request(length=2, prompt="a long prompt"))
    with pytest.raises(ConfigError, match="is no bundle"):
        load_bundle(tmp_path)
    done = run_python("-m", "esolm", "generate", str(tmp_path / "nowhere"))
    assert done.returncode == 64
    assert "nowhere is no bundle" in done.stderr


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command("generate")(generate_command)
    app.command("export")(export_command)
    return app


def test_command_line(bundle: Path, app: typer.Typer) -> None:
    arguments = ["generate", str(bundle), "--length", "24", "--alpha-0", "0.5", "--steps", "4"]
    arguments += ["--num-samples", "2", "--top-p", "0.9", "--temperature", "0.8", "--seed", "3"]
    shown = CliRunner().invoke(app, [*arguments, "--compare"])
    assert shown.exit_code == 0, shown.output
    assert "sample 2 of 2" in shown.output
    assert "forward passes (NFE)" in shown.output
    assert "same tokens" in shown.output
    record = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert len(record["texts"]) == 2
    assert record["compare"] is None
    assert record["nfe"] > 0


@pytest.mark.parametrize(
    ("changes", "ignored"),
    [
        ({"variant": "A"}, []),
        ({"objective": "mdlm", "variant": None}, ["alpha_0"]),
        ({"objective": "bd3lm", "variant": None, "block_size": 8, "keep_first": True}, ["alpha_0"]),
        ({"objective": "ar", "variant": None}, ["alpha_0", "num_steps"]),
    ],
    ids=["esolm_a", "mdlm", "bd3lm", "ar"],
)
def test_every_objective(
    make_bundle: Callable[..., Path], app: typer.Typer, changes: dict[str, Any], ignored: list[str]
) -> None:
    path = make_bundle(**changes)
    options = ["--length", "24", "--alpha-0", "0.5", "--steps", "4", "--num-samples", "2"]
    shown = CliRunner().invoke(app, ["generate", str(path), *options, "--compare"])
    assert shown.exit_code == 0, shown.output
    notes = [line for line in shown.stderr.splitlines() if line.startswith("note: ")]
    assert [note.split()[1] for note in notes] == ignored
    without = changes.get("objective") == "mdlm"
    assert ("no cache to compare" if without else "same tokens") in shown.stdout
    prompted = [*options, "--prompt", "def f():", "--json"]
    record = json.loads(CliRunner().invoke(app, ["generate", str(path), *prompted]).stdout)
    assert all(text.startswith("def f():") for text in record["texts"])


def test_graphs_are_an_option(
    bundle: Path, app: typer.Typer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[bool] = []

    def record(function: Any, device: torch.device, graphs: bool) -> Runner:
        given.append(graphs)
        return Runner(function, device, graphs)

    monkeypatch.setattr(decoding_esolm, "Runner", record)
    (tmp_path / "prompts.txt").write_text("def f\n")
    ways = [[], ["--infill", "def[[2]]x"], ["--prompts", str(tmp_path / "prompts.txt")]]
    for way in ways:
        for option in ([], ["--no-cuda-graphs"]):
            arguments = ["generate", str(bundle), *option, *way]
            arguments += [] if "--infill" in way else ["--max-new-tokens", "2"]
            assert CliRunner().invoke(app, arguments).exit_code == 0
    assert given == [True, False] * len(ways)


@pytest.mark.parametrize("command", ["generate", "export"])
def test_help_has_an_example(app: typer.Typer, command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert f"esolm {command}" in shown.output
