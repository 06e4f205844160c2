"""`esolm generate` with many prompts, gaps and a stream, as a user types it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from esolm.pipeline.cli.generate import generate_command
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.export.manifest import write_manifest
from esolm.pipeline.generate import Request, generate, load_bundle
from esolm.pipeline.generate_many import fill, read_prompts, write_all
from tests.pipeline.generate.test_generate_command import make_bundle

__all__ = ["make_bundle"]


@pytest.fixture(scope="module")
def bundle(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle()


def invoke(*arguments: object, given: str | None = None) -> Result:
    app = typer.Typer()
    app.command()(generate_command)
    shown = CliRunner().invoke(app, list(map(str, arguments)), input=given)
    assert shown.exit_code == 0, shown.output + repr(shown.exception)
    return shown


def test_prompts_are_written_as_if_each_were_alone(bundle: Path) -> None:
    """More than there are rows, of other lengths; prompt i is sample i of the seed."""
    loaded = load_bundle(bundle)
    prompts = ["def f" + "x" * number for number in range(20)]
    request = Request(alpha_0=0.5, num_steps=4, max_new_tokens=9, seed=3)
    found = list(write_all(loaded, request, prompts))
    assert [prompt for prompt, _ in found] == prompts
    first = generate(loaded, Request(0.5, 4, seed=3, max_new_tokens=9, prompt=prompts[0]))
    assert prompts[0] + found[0][1] == first.texts[0]
    assert len({text for _, text in found}) > 15


def test_prompts_from_a_file_and_from_standard_input(bundle: Path, tmp_path: Path) -> None:
    lines, objects = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    lines.write_text("def f(\nimport os")
    objects.write_text('{"prompt": "def f("}\n{"prompt": "import os", "id": 7}\n')
    options = ("--max-new-tokens", 6, "--json")
    by_lines = invoke(bundle, "--prompts", lines, *options).stdout
    assert [json.loads(line)["prompt"] for line in by_lines.splitlines()] == ["def f(", "import os"]
    assert invoke(bundle, "--prompts", objects, *options).stdout == by_lines
    assert invoke(bundle, "--prompts", "-", *options, given=lines.read_text()).stdout == by_lines
    objects.write_text('{"prompt": "x"}\n{"text": "y"}\n')
    with pytest.raises(ConfigError, match=r"prompts\.jsonl, line 2: no JSON object with a field"):
        read_prompts(objects)
    with pytest.raises(ConfigError, match="no-such-file"):
        read_prompts(tmp_path / "no-such-file")


def test_gaps_on_the_command_line(bundle: Path) -> None:
    text = "def f(x):[[4]] return [[1-3]]x"
    shown = invoke(bundle, "--infill", text, "--json", "--seed", 2, "--num-samples", 2).stdout
    one, other = map(json.loads, shown.splitlines())
    assert one != other
    loaded = load_bundle(bundle)
    for seed, found in ((2, one), (3, other)):
        assert found["lengths"][0] == 4
        assert 1 <= found["lengths"][1] <= 3
        first, second = found["parts"]
        assert found["text"] == f"def f(x):{first} return {second}x"
        assert fill(loaded, Request(seed=seed), text).__dict__ == found
    with pytest.raises(ConfigError, match="no gap among the segments"):
        fill(loaded, Request(), "no gap")


def test_a_stream_shows_the_same_text(bundle: Path) -> None:
    options = (bundle, "--prompt", "def f", "--length", 40, "--alpha-0", 0.3)
    streamed = invoke(*options, "--stream").stdout
    [whole] = json.loads(invoke(*options, "--json").stdout)["texts"]
    assert streamed.startswith(whole.rstrip("\ufffd"))


GAPS = "says how long a text is, and so do its gaps: leave it out, or --infill"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--prompt x --infill y[[3]]", "--prompt and --infill were given: name one of them"),
        ("--stream --prompts p", "--stream shows a single text: leave it out, or --prompts"),
        ("--stream --infill y[[3]]", "--stream shows a single text: leave it out, or --infill"),
        (
            "--stream --json --num-samples 2",
            "--stream shows a single text: leave it out, or --num-samples and --json",
        ),
        ("--compare --prompts p", "--compare times a single batch: leave it out, or --prompts"),
        (
            "--infill y[[3]] --compare --length 9 --max-new-tokens 0",
            "--compare times a single batch: leave it out, or --infill; "
            f"--length {GAPS}; --max-new-tokens {GAPS}",
        ),
    ],
)
def test_options_that_exclude_each_other(bundle: Path, options: str, message: str) -> None:
    """All that is wrong at once, before anything is read."""
    app = typer.Typer()
    app.command()(generate_command)
    shown = CliRunner().invoke(app, [str(bundle), *options.split()])
    assert isinstance(shown.exception, ConfigError)
    assert str(shown.exception) == message
    assert shown.stdout == ""


def test_several_samples_of_each_prompt(bundle: Path, tmp_path: Path) -> None:
    lines = tmp_path / "prompts.txt"
    lines.write_text("def f(\nimport os")
    options = ("--prompts", lines, "--max-new-tokens", 6, "--num-samples", 2, "--seed", 3)
    found = [json.loads(line) for line in invoke(bundle, *options, "--json").stdout.splitlines()]
    assert [each["prompt"] for each in found] == ["def f("] * 2 + ["import os"] * 2
    assert len({each["text"] for each in found}) == 4
    loaded = load_bundle(bundle)
    request = Request(seed=3, max_new_tokens=6, num_samples=2, prompt="def f(")
    expected = generate(loaded, request).texts
    assert [each["prompt"] + each["text"] for each in found[:2]] == expected
    shown = invoke(bundle, *options).stdout
    assert f"--- prompt 2 of 2, sample 1 of 2\nimport os{found[2]['text']}" in shown
    with pytest.raises(ConfigError, match=r"prompt 2: "):
        list(write_all(loaded, Request(length=4, num_samples=2), ["d", "many words in one"]))


def test_adaptive_guesses(bundle: Path) -> None:
    """Of one text and of gaps: as the bundle writes with them."""
    loaded = load_bundle(bundle)
    way = ("--alpha-0", 0, "--seed", 3, "--guesses", 8, "--json")
    options = {"alpha_0": 0.0, "seed": 3, "guesses": 8}
    passes = []
    for adaptive in (False, True):
        given = ("--adaptive",) if adaptive else ()
        shown = json.loads(invoke(bundle, "--length", 120, *way, *given).stdout)
        expected = generate(loaded, Request(length=120, adaptive=adaptive, **options))
        assert (shown["texts"], shown["nfe"]) == (expected.texts, expected.nfe)
        passes.append(shown["nfe"])
        filled = json.loads(invoke(bundle, "--infill", "x[[90]]", *way, *given).stdout)
        asked = Request(adaptive=adaptive, **options)
        assert filled["nfe"] == fill(loaded, asked, "x[[90]]").nfe
    assert passes[0] != passes[1]
    note = "--adaptive means nothing without --guesses and is ignored"
    few = (bundle, "--length", 4, "--adaptive")
    assert note in invoke(*few).stderr
    assert note not in invoke(*few, "--guesses", 1).stderr


def test_another_dtype(bundle: Path) -> None:
    """bf16 draws nearly the same: its logits are rounded, its sampler is not."""
    assert str(load_bundle(bundle, "bf16").model.dtype) == "torch.bfloat16"
    options = (bundle, "--prompt", "def f", "--length", 60, "--json", "--seed", 3)
    one, other = (
        json.loads(invoke(*options, "--dtype", dtype).stdout)["texts"][0]
        for dtype in ("fp32", "bf16")
    )
    assert one[:5] == other[:5] == "def f"
    with pytest.raises(ConfigError, match="the dtype is 'int4'; choose of bf16, fp32, int8"):
        load_bundle(bundle, "int4")


def test_a_text_ends_where_its_document_does(make_bundle: Callable[..., Path]) -> None:
    """By default, as the bundle says, and not with --ignore-eos; each of a batch by itself."""
    path, length = make_bundle(), 60
    options = ("--prompt", "def f(", "--length", length, "--num-samples", 4, "--json")
    loaded = load_bundle(path)
    free = generate(loaded, Request(length=length, prompt="def f(", num_samples=4))
    given = len(loaded.tokenizer.encode("def f("))
    eos = int(free.sequences[0, given + 20])
    settings = json.loads((path / "generation_config.json").read_text())
    (path / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": eos}))
    (path / "export.json").unlink()
    write_manifest(path, {"step": 1})
    expected = []
    for row in free.sequences.tolist():
        ends = [place for place in range(given, length) if row[place] == eos]
        expected.append(loaded.tokenizer.decode_with_specials(row[: ends[0] + 1] if ends else row))
    assert json.loads(invoke(path, *options).stdout)["texts"] == expected
    assert expected != free.texts
    assert json.loads(invoke(path, *options, "--ignore-eos").stdout)["texts"] == free.texts
