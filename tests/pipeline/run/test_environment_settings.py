"""Settings that name variables of the environment: the name is written down, never the value."""

from pathlib import Path

import pytest

from esolm.pipeline.errors import ConfigError
from esolm.pipeline.run.completion import changed_settings
from esolm.pipeline.run.config import load_config, to_yaml
from esolm.pipeline.run.directory import RunDirectory
from esolm.pipeline.run.sections import RunConfig

SECRET = "open-sesame"
CONFIG = """
run: {dir: "${oc.env:SCRATCH,here}/run"}
data: {path: data}
train: {steps: "${oc.env:STEPS}", global_batch_size: 4, micro_batch_size: 1, seq_len: 32}
checkpoint: {mirror: "ftp://me:${oc.env:MIRROR_PASSWORD}@host/${run.dir}", every_steps: 5}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setenv("MIRROR_PASSWORD", SECRET)
    monkeypatch.setenv("STEPS", "7")
    (tmp_path / "run.yaml").write_text(CONFIG)
    return load_config(tmp_path / "run.yaml", [])


def test_the_run_has_the_value_and_its_record_the_name(config: RunConfig, tmp_path: Path) -> None:
    assert config.checkpoint.mirror == f"ftp://me:{SECRET}@host/here/run"
    written = to_yaml(config)
    assert SECRET not in written
    assert "${oc.env:MIRROR_PASSWORD}" in written
    assert "steps: 7" in written, "a number is no secret, and the record should say it"
    (tmp_path / "again.yaml").write_text(written)
    assert load_config(tmp_path / "again.yaml", []) == config


def test_a_look_at_a_run_needs_no_secret(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RunDirectory(tmp_path)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    monkeypatch.delenv("MIRROR_PASSWORD")
    looked_at = directory.config()
    assert looked_at.checkpoint.mirror == "ftp://me:$MIRROR_PASSWORD@host/here/run"
    assert looked_at.train == config.train
    with pytest.raises(ConfigError, match=r"checkpoint\.mirror.*MIRROR_PASSWORD"):
        load_config(tmp_path / "config.yaml", [])


def test_a_change_is_told_by_the_name(config: RunConfig, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert changed_settings(directory, config) == ([], [])
    moved = CONFIG.replace("host", "other")
    (tmp_path / "run.yaml").write_text(moved)
    _, (change,) = changed_settings(directory, load_config(tmp_path / "run.yaml", []))
    assert change.startswith("checkpoint.mirror: ftp://me:${oc.env:MIRROR_PASSWORD}@host")
    assert SECRET not in change


def test_a_setting_that_was_changed_since_is_written_as_it_is(config: RunConfig) -> None:
    config.checkpoint.mirror = "/archive"
    assert "mirror: /archive" in to_yaml(config)
