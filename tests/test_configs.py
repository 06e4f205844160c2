"""Every shipped configuration loads and holds together; every bad one ends in 64 and says why."""

import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from esolm.data_prep.manifest import read_manifest, write_manifest
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.run.config import load_config, stated_settings, to_yaml
from esolm.pipeline.run.environment import stated_value
from esolm.pipeline.run.experiment import resolve
from esolm.pipeline.run.reference import settings_table
from esolm.pipeline.run.sections import ONLY_SUBMITTED, RunConfig, settings_of
from tests.data_prep.corpus import make_job, make_tokenizer, run_job, write_jsonl
from tests.processes import ROOT, run_python

CONFIGS = ROOT / "configs"
RUN_CONFIGS = sorted((CONFIGS / "run").glob("*.yaml"))
# Parts of a run configuration; what other commands read has tests of its own.
PARTS = ("data", "model", "objective", "parallel")
PARTIAL_CONFIGS = sorted(path for part in PARTS for path in (CONFIGS / part).glob("*.yaml"))
REQUIRED = ["run.dir=unused", "data.path=unused", "train.steps=1"]
# What two CPU cores train in a moment, over any shipped configuration.
SMALL = [
    "model.hidden_size=32",
    "model.num_layers=2",
    "model.num_heads=2",
    "model.ffn_hidden_size=32",
    "model.cond_dim=8",
    "train.steps=2",
    "train.global_batch_size=4",
    "train.micro_batch_size=1",
    "train.seq_len=32",
    "train.valid_every_steps=2",
    "train.valid_samples=4",
    "parallel.tp=1",
    "parallel.pp=1",
    "parallel.sequence=false",
]


def stem(path: Path) -> str:
    return path.relative_to(CONFIGS).with_suffix("").as_posix()


def ranks_of(path: Path, config: RunConfig) -> int:
    """The number in the file's comment `# Ranks: N`, else the fewest that the layout takes."""
    stated = re.search(r"^# Ranks: (\d+)$", path.read_text(), re.MULTILINE)
    return (
        int(stated[1]) if stated else config.parallel.tp * config.parallel.cp * config.parallel.pp
    )


@pytest.mark.parametrize("path", PARTIAL_CONFIGS, ids=stem)
def test_a_part_of_a_configuration_loads(path: Path) -> None:
    stated = stated_settings(path)
    config = load_config(path, [each for each in REQUIRED if each.split("=")[0] not in stated])
    assert stated
    assert {key: stated_value(config, key) for key in stated} == stated


@pytest.mark.parametrize("path", RUN_CONFIGS, ids=stem)
def test_a_run_configuration_is_complete_and_resolves(
    path: Path, dataset: Path, tmp_path: Path
) -> None:
    config = load_config(path, [f"data.path={dataset}"])
    experiment = resolve(config, ranks_of(path, config))
    assert experiment.num_micro_batches >= 1
    resolved = tmp_path / "config.yaml"
    resolved.write_text(to_yaml(config))
    assert load_config(resolved, []) == config


def shared_heads(path: Path) -> list[str]:
    """One head of keys and values for both heads, where the configuration has fewer of those."""
    return ["model.num_kv_heads=1"] if load_config(path, REQUIRED).model.num_kv_heads else []


@pytest.mark.check
def test_every_run_configuration_takes_two_steps_at_reduced_size(
    dataset: Path, tmp_path: Path
) -> None:
    """One process for all of them: starting costs most."""
    script = tmp_path / "train_all.py"
    script.write_text(
        "import sys\n"
        "from esolm.pipeline.run.config import load_config\n"
        "from esolm.pipeline.train.run import train\n"
        "for path, *overrides in eval(sys.argv[1]):\n"
        "    code = train(load_config(path, overrides))\n"
        "    assert code == 0, (path, code)\n"
    )
    runs = {path: tmp_path / path.stem for path in RUN_CONFIGS}
    settings = [
        [str(p), *SMALL, *shared_heads(p), f"run.dir={r}", f"data.path={dataset}"]
        for p, r in runs.items()
    ]
    finished = run_python(str(script), repr(settings))
    assert finished.returncode == 0, finished.stderr[-3000:]
    for run in runs.values():
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["step"] == 2
        assert [line["step"] for line in lines if line.get("valid_loss", 0) > 0] == [0, 2]


@pytest.fixture
def config(dataset: Path, tmp_path: Path) -> Path:
    """A small run over the test's dataset."""
    path = tmp_path / "run.yaml"
    lines = {"run.dir": tmp_path / "run", "data.path": dataset, "seed": 1}
    settings = [f"{key}={value}" for key, value in lines.items()] + SMALL
    path.write_text(to_yaml(load_config(CONFIGS / "run" / "demo.yaml", settings)))
    return path


def refused(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """What `esolm ARGUMENTS...` prints on stderr when it refuses them with exit code 64."""
    from esolm.pipeline.cli.main import main

    monkeypatch.setattr(sys, "argv", ["esolm", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 64
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.hiden_size=64"], ["'model.hiden_size'", "nearest", "'model.hidden_size'"]),
        (["trian.steps=5"], ["'trian.steps'", "'train.steps'"]),
        (["parallel.tensor=2"], ["'parallel.tensor'", "nearest"]),
        (["train.steps=many"], ["train.steps", "many"]),
        (["parallel.tp"], ["'parallel.tp' is not of the form key=value"]),
        (["model=7"], ["'model'", "nearest"]),
        (["train.precision=fp16"], ["choose fp32 or bf16", "loss scaling"]),
        (["objective.kappa=1"], ["objective.kappa = 1 goes with objective.alpha_0 = 1"]),
        (["parallel.sequence=true"], ["parallel.sequence=true splits tokens"]),
        (["run.dir=${nope}"], ["'run.dir' cannot be resolved", "'nope' not found"]),
        (["run.dir=${nope"], ["'run.dir=${nope' cannot be read"]),
        (["seed=${run.dir}"], ["'seed' cannot be resolved", "Integer"]),
        (["data.path=[a"], ["'data.path=[a' cannot be read"]),
        (["train.steps=???"], ["'train.steps' is missing"]),
        (["optimizer.lr=.inf"], ["optimizer.lr is inf; it must be finite and at least 0"]),
        (["optimizer.lr=nan"], ["optimizer.lr is nan"]),
        (["train.timeout_minutes=1e300"], ["train.timeout_minutes is 1e+300"]),
        (["parallel.tp=0", "parallel.sequence=true"], ["parallel.tp is 0; it must be at least 1"]),
        (["parallel.cp=0"], ["parallel.cp is 0; it must be at least 1"]),
        (["parallel.zero=4"], ["parallel.zero is 4; it must be at least 1 and at most 3"]),
    ],
    ids=lambda value: value[0] if value[0].count("=") or value[0].count(".") == 1 else "",
)
def test_a_bad_setting_is_named(
    overrides: list[str],
    expected: list[str],
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = refused(["train", str(config), *overrides], monkeypatch, capsys)
    for part in expected:
        assert part in error


def test_every_setting_out_of_its_range_is_in_one_message(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = {}
    for key, field in settings_of(RunConfig).items():
        if key.split(".")[0] in ONLY_SUBMITTED:
            continue
        within = field.metadata.get("within")
        if field.metadata.get("choices"):
            expected[f"{key}=nonsense"] = f"{key} is 'nonsense'; choose "
        elif within is not None:
            value = int(within.low) - (not within.above)
            given = f"[{value}]" if isinstance(field.default, tuple) else value
            expected[f"{key}={given}"] = f"{key} is {given}".rstrip("]")
    assert len(expected) > 40
    error = refused(["train", str(config), *expected], monkeypatch, capsys)
    assert [text for text in expected.values() if error.count(text) != 1] == []


def test_all_unknown_keys_are_reported_at_once(config: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(config, ["a.b=1", "sead=2", "train.steps=x", "data.path=[a", "run.dir=${a}"])
    assert len(raised.value.problems) == 5


def test_a_setting_may_refer_to_one_of_another_layer(config: Path) -> None:
    resolved = load_config(config, ["run.dir=${data.path}/run"])
    assert resolved.run.dir == f"{resolved.data.path}/run"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("{}")
    with pytest.raises(ConfigError) as raised:
        load_config(tmp_path / "empty.yaml", [])
    for key in ("run.dir", "data.path", "train.steps"):
        assert f"'{key}' is missing" in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n- b\n", "not a list"),
        ("train: {steps: [", "not valid YAML"),
        ("defaults:\n", "'defaults' is None; it must be a list of names"),
        ("defaults: run/demo\n", "'defaults' is 'run/demo'; it must be a list"),
        ("defaults: [{run: demo}]\n", "it must be a list of names"),
        ("defaults: [run/nowhere]\n", "there is no run/nowhere.yaml"),
        ("defaults: [bad]\n", "includes itself"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(path, REQUIRED)


def test_a_missing_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(["train", str(tmp_path / "none.yaml")], monkeypatch, capsys)
    assert f"no configuration file at {tmp_path / 'none.yaml'}" in error


def test_everything_that_does_not_divide_is_in_one_message(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["parallel.tp=3", "parallel.pp=7", "parallel.zero=2", "objective.kappa=0.3"]
    arguments = ["train", str(config), "--ranks", "4", *overrides, "train.micro_batch_size=3"]
    error = refused(arguments, monkeypatch, capsys)
    for part in (
        "4 ranks do not divide by parallel.tp 3 x parallel.pp 7",
        "parallel.zero=2 does not go with parallel.pp=7",
        "model.num_heads 2 does not divide by parallel.tp 3",
        "model.ffn_hidden_size 32 does not divide by parallel.tp 3",
        "parallel.pp 7 has more stages",
        "the diffusion term takes 1 of train.global_batch_size 4 rows",
    ):
        assert part in error
    assert not (config.parent / "run").exists()


def test_what_context_parallelism_cannot_share_out_is_in_one_message(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["parallel.cp=3", "model.num_heads=4", "model.num_kv_heads=2"]
    error = refused(["train", str(config), "--ranks", "4", *overrides], monkeypatch, capsys)
    for part in (
        "4 ranks do not divide by parallel.tp 1 x parallel.cp 3 x parallel.pp 1 = 3",
        "model.num_heads 4 does not divide by parallel.cp 3: each rank attends with whole heads",
        "model.num_kv_heads 2 neither divides by parallel.cp 3 nor divides it",
        "train.seq_len: the 32 tokens of a row do not divide by parallel.cp 3",
    ):
        assert part in error
    sizes = ["model.num_heads=4", "parallel.tp=2", "parallel.cp=4", "parallel.sequence=true"]
    rows = ["train.seq_len=4", "train.micro_batch_size=1"]
    error = refused(["train", str(config), "--ranks", "8", *sizes, *rows], monkeypatch, capsys)
    for part in (
        "model.num_heads 4 / parallel.tp 2 = 2 does not divide by parallel.cp 4",
        "the 1 tokens of a micro-batch that a rank of parallel.cp 4 holds do not divide",
    ):
        assert part in error
    assert not (config.parent / "run").exists()


def test_a_batch_that_does_not_divide_among_the_replicas(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(["train", str(config), "--ranks", "3"], monkeypatch, capsys)
    assert "train.global_batch_size 4 does not divide by train.micro_batch_size 1 x 3" in error


def test_a_dataset_without_its_manifest(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    arguments = ["train", str(config), f"data.path={tmp_path}", "parallel.tp=3"]
    error = refused(arguments, monkeypatch, capsys)
    assert "manifest.json" in error
    assert "esolm prep merge" in error
    assert "parallel.tp 3" in error, "the dataset's problem must not hide the others"


@pytest.mark.parametrize("command", ["train", "plan"])
def test_splits_without_a_whole_sequence(
    command: str, dataset: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """What a plan takes, training takes too."""
    arguments = [command, str(config), "train.valid_every_steps=2"]
    error = refused([*arguments, "train.seq_len=1000000"], monkeypatch, capsys)
    for split in ("train", "valid"):
        assert f"split '{split}' of {dataset} has" in error
    without = tmp_path / "without"
    shutil.copytree(dataset, without)
    manifest = read_manifest(dataset)
    write_manifest(without, replace(manifest, splits={"train": manifest.splits["train"]}))
    error = refused([*arguments, f"data.path={without}"], monkeypatch, capsys)
    assert "no tokens of split 'valid'" in error


def test_a_truncated_shard(
    dataset: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    damaged = tmp_path / "damaged"
    shutil.copytree(dataset, damaged)
    shard = next(iter(sorted((damaged / "shards").glob("train-*.tar"))))
    os.truncate(shard, shard.stat().st_size - 512)
    error = refused(["train", str(config), f"data.path={damaged}"], monkeypatch, capsys)
    assert shard.name in error


def test_a_vocabulary_that_is_not_the_checkpoints(
    dataset: Path, config: Path, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer", vocab_size=380)
    source = write_jsonl(tmp_path / "text.jsonl", 60)
    run_job(make_job(source, tokenizer, tmp_path / "other", valid_fraction=0.2), tokenizer)
    train = ["-m", "esolm", "train", str(config)]
    assert run_python(*train).returncode == 0
    finished = run_python(*train, "train.steps=4", f"data.path={tmp_path / 'other'}")
    assert finished.returncode == 64, finished.stderr[-3000:]
    assert "vocabulary (400 ids" in finished.stderr
    assert "(380 ids" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_the_documents_have_the_table_of_settings() -> None:
    text = (ROOT / "docs" / "training.md").read_text()
    assert settings_table() in text, "run `make docs`: it writes the table anew from the fields"
    fields = settings_of(RunConfig)
    assert [key for key, field in fields.items() if not field.metadata.get("help")] == []
