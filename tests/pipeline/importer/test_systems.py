"""Every system of the paper in published format: logits and losses against an independent network.

Both sides run in float64, so that agreement is not a matter of rounding.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from esolm.model.attention import AttentionPattern
from esolm.model.inputs import NetworkInput
from esolm.model.objectives import SampleKeys
from esolm.pipeline.checkpoint.reader import CheckpointReader
from esolm.pipeline.errors import ImportCheckpointError
from esolm.pipeline.export.export import export
from esolm.pipeline.export.gate_network import bundle_logits, parity_inputs
from esolm.pipeline.export.writer import read_model
from esolm.pipeline.importer.importing import import_checkpoint
from esolm.pipeline.importer.recognise import Options
from esolm.pipeline.run.sections import ObjectiveSection, RunConfig
from tests.model.reference_losses import reference_loss
from tests.pipeline.importer import published
from tests.pipeline.importer.published import LENGTH, SYSTEMS, VOCAB, PublishedNetwork, System

EXPECTED: dict[str, dict[str, Any]] = {
    "esolm_b": {"name": "esolm", "variant": "B", "alpha_0": 0.25, "kappa": 0.5},
    "esolm_b_diffusion": {"name": "esolm", "variant": "B", "alpha_0": 1.0, "kappa": 1.0},
    "esolm_a": {"name": "esolm", "variant": "A", "alpha_0": 0.5, "kappa": 0.25},
    "esolm_a_diffusion": {"name": "esolm", "variant": "A", "alpha_0": 1.0, "kappa": 1.0},
    "mdlm": {"name": "mdlm", "low_variance": False},
    "ar": {"name": "ar", "prepend": "none"},
    "ar_mask": {"name": "ar", "prepend": "mask"},
    "bd3lm": {"name": "bd3lm", "block_size": 4, "t_min": 0.001, "t_max": 1.0, "keep_first": True},
    "bd3lm_clipped": {
        "name": "bd3lm", "block_size": 2, "t_min": 0.3, "t_max": 0.8, "keep_first": False,
    },
}  # fmt: skip


def training_network(reader: CheckpointReader, state: str) -> Any:
    """The training network in float64."""
    from esolm.model.network import Network
    from esolm.pipeline.parallel.single import single_process

    network = Network(reader.model, single_process()).double().eval()
    tensors = reader.tensors(state)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(tensors[name])
    return network


def objective_of(reader: CheckpointReader) -> Any:
    from esolm.model.objectives import VocabularyIds
    from esolm.pipeline.run.experiment import build_objective

    config = RunConfig(objective=ObjectiveSection(**reader.objective))
    config.train.seq_len = reader.seq_len
    objective, problems = build_objective(
        config, VocabularyIds(reader.model.vocab_size, reader.model.mask_id, 0)
    )
    assert objective is not None
    assert not problems
    return objective


def check(out: Path, raw: dict[str, Tensor], ema: dict[str, Tensor]) -> None:
    """Logits of checkpoint and bundle in every pattern, and the losses of the objective."""
    reader = CheckpointReader(out)
    bundle = read_model(out / "bundle", torch.float32).double()
    inputs = [parity_inputs(reader.model, LENGTH, pattern) for pattern in AttentionPattern]
    references = {"weights": PublishedNetwork(raw), "ema": PublishedNetwork(ema)}
    for state, reference in references.items():
        network = training_network(reader, state)
        for each in inputs:
            with torch.no_grad():
                same(network.all_logits(each), reference.all_logits(each), 1e-6)
        check_losses(network, reader, reference)
    for each in inputs:
        same(bundle_logits(bundle, each), references["ema"].all_logits(each), 1e-5)


def same(logits: Tensor, expected: Tensor, tolerance: float) -> None:
    assert torch.equal(logits.isfinite(), expected.isfinite())
    finite = expected.isfinite()
    assert float((logits - expected)[finite].abs().max()) < tolerance


def check_losses(network: Any, reader: CheckpointReader, reference: PublishedNetwork) -> None:
    """Training and validation loss of one global batch, to 1e-6 of its value."""
    rows = 8
    index = np.arange(rows, dtype=np.int64)
    tokens = torch.randint(VOCAB - 1, (rows, LENGTH), generator=torch.Generator().manual_seed(5))
    trained = objective_of(reader)
    for objective in (trained, trained.for_validation()):
        expected = reference_loss(objective, reference, tokens, SampleKeys(3, index, index, rows))
        for term, slots in objective.terms(rows).items():
            keys = SampleKeys(3, index[list(slots)], index[list(slots)], rows)
            inputs, targets = objective.corrupt(tokens[list(slots)], keys)
            loss = float(weighted_nll(network, inputs, targets.labels, targets.weights))
            assert loss == pytest.approx(float(expected[term]), rel=1e-6)


@torch.no_grad()
def weighted_nll(network: Any, inputs: NetworkInput, labels: Tensor, weights: Tensor) -> Tensor:
    log_p = network.all_logits(inputs).log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    return -torch.where(weights > 0, log_p * weights, 0.0).sum()


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_system(tmp_path: Path, quick: None, name: str) -> None:
    system = SYSTEMS[name]
    config = OmegaConf.create(published.configuration(system))
    raw, ema = published.save(tmp_path / "a.ckpt", system, config=config)
    report = import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", Options(dtype="fp32"))
    objective = asdict(report.network.objective)
    assert {key: objective[key] for key in EXPECTED[name]} == EXPECTED[name]
    assert (report.network.seq_len, report.network.step) == (LENGTH, 1234)
    assert report.network.model.dropout == 0.1
    check(tmp_path / "out", raw, ema)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("esolm_a", Options(variant="A", dtype="fp32")),
        ("esolm_b", Options(variant="B", dtype="fp32", alpha_0=0.25, seq_len=LENGTH)),
        ("mdlm", Options(objective="mdlm", dtype="fp32")),
        ("ar", Options(dtype="fp32")),
        ("bd3lm", Options(dtype="fp32", block_size=2)),
    ],
)
def test_without_a_configuration(tmp_path: Path, quick: None, name: str, options: Options) -> None:
    _, ema = published.save(tmp_path / "a.ckpt", SYSTEMS[name], config=None)
    report = import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", options)
    assert report.network.objective.name == EXPECTED[name]["name"]
    assert any("length is not stored" in note for note in report.notes) == (options.seq_len is None)
    reader = CheckpointReader(tmp_path / "out")
    each = parity_inputs(reader.model, LENGTH, AttentionPattern.PREFIX)
    with torch.no_grad():
        logits = training_network(reader, "ema").all_logits(each)
    same(logits, PublishedNetwork(ema).all_logits(each), 1e-6)


@pytest.mark.parametrize(
    ("system", "options", "message"),
    [
        ("esolm_b", Options(), "pass --variant A or --variant B, or --objective mdlm"),
        ("esolm_b", Options(variant="A", objective="mdlm"), "Eso-LM alone has variants"),
        ("ar", Options(variant="B"), "lacks adaLN"),
        ("mdlm", Options(variant="B", weights="half"), "--weights is 'half'"),
        ("mdlm", Options(objective="ar"), "has adaLN"),
        ("mdlm", Options(variant="C"), "choose A or B"),
        ("mdlm", Options(objective="mdlm", num_heads=2), "number of heads is unclear"),
        ("mdlm", Options(objective="mdlm", alpha_0=0.5), "--alpha-0 goes with 'esolm'; this is"),
        ("ar", Options(block_size=4), "--block-size goes with 'bd3lm'; this is 'ar'"),
        ("bd3lm", Options(block_size=0), "--block-size is 0"),
        ("esolm_b", Options(variant="B", seq_len=0), "--length is 0"),
        ("esolm_b", Options(variant="B", seq_len=-5), "--length is -5"),
        ("esolm_b", Options(variant="B", alpha_0=2.0), r"--alpha-0 is 2\.0"),
        ("esolm_b", Options(variant="B", num_heads=0), "--num-heads is 0"),
    ],
)
def test_options_that_do_not_fit(
    tmp_path: Path, system: str, options: Options, message: str
) -> None:
    published.save(tmp_path / "a.ckpt", SYSTEMS[system], config=None)
    with pytest.raises(ImportCheckpointError, match=message):
        import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", options)
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "sedd"}, "was trained as 'sedd'"),
        ({"diffusion_attn_mode": "mixed"}, "neither those of Eso-LM"),
        ({"sequential_attn_mode": "mixed"}, "neither those of Eso-LM"),
        ({"alpha_0": 1.5}, r"alpha_0 is 1\.5; it must lie in"),
        (
            {"alpha_0": "${eval:1/8}"},
            r"algo\.alpha_0 is stored, but not as a number: pass --alpha-0",
        ),
        ({"alpha_0": float("nan")}, "not as a number: pass --alpha-0"),
        ({"time_conditioning": True}, "trained with time_conditioning"),
    ],
)
def test_configurations_that_cannot_be(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    system = System("odd", {**SYSTEMS["esolm_b"].algo, **changes})
    published.save(tmp_path / "a.ckpt", system)
    with pytest.raises(ImportCheckpointError, match=message):
        import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", Options())


@pytest.mark.parametrize("split", [0.0, 1.0])
def test_split_that_leaves_a_term_without_rows(tmp_path: Path, quick: None, split: float) -> None:
    algo = {**SYSTEMS["esolm_b"].algo, "batch_split": split}
    published.save(tmp_path / "a.ckpt", System("odd", algo))
    report = import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", Options())
    assert report.network.objective.kappa == 0.5
    assert any(f"batch_split is {split:g}" in note for note in report.notes)


def whole(config: Any) -> dict[str, Any]:
    return {"hyper_parameters": config}


@pytest.mark.parametrize(
    "form",
    [
        lambda config: whole(OmegaConf.create({"config": config, "tokenizer": "gpt2"})),
        lambda config: whole(OmegaConf.create(config)),
        lambda config: whole(config),
        lambda config: {"config": config},
    ],
    ids=["DictConfig of all", "DictConfig in place", "dict in place", "under its name"],
)
def test_places_of_the_configuration(tmp_path: Path, quick: None, form: Any) -> None:
    config = published.configuration(SYSTEMS["esolm_a"])
    published.save(tmp_path / "a.ckpt", SYSTEMS["esolm_a"], **form(config))
    report = import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", Options())
    objective = asdict(report.network.objective)
    assert {key: objective[key] for key in EXPECTED["esolm_a"]} == EXPECTED["esolm_a"]
    assert report.network.seq_len == LENGTH


@pytest.mark.parametrize(
    "value",
    [np.float64(0.125), np.float32(0.125), torch.tensor(0.125), "0.125", "${model.share}"],
    ids=["float64", "float32", "tensor", "text", "interpolation"],
)
def test_forms_of_a_number(tmp_path: Path, quick: None, value: Any) -> None:
    config = published.configuration(SYSTEMS["esolm_b"])
    config["algo"]["alpha_0"] = value
    config["model"] |= {"share": 0.125, "length": np.int64(LENGTH)}
    published.save(tmp_path / "a.ckpt", SYSTEMS["esolm_b"], config=config)
    report = import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", Options())
    assert report.network.objective.alpha_0 == 0.125
    assert report.network.seq_len == LENGTH
    assert not any("not stored" in note for note in report.notes)


def test_a_number_that_cannot_be_read_is_given_by_option(tmp_path: Path, quick: None) -> None:
    config = published.configuration(SYSTEMS["esolm_b"])
    config["algo"]["alpha_0"] = "${eval:1/8}"
    published.save(tmp_path / "a.ckpt", SYSTEMS["esolm_b"], config=config)
    options = Options(alpha_0=0.125)
    report = import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", options)
    assert report.network.objective.alpha_0 == 0.125


@pytest.mark.parametrize("name", ["esolm_a", "esolm_b", "mdlm", "ar", "ar_mask"])
@pytest.mark.parametrize("length", [1, 2])
def test_networks_of_a_few_tokens_pass_the_gate(
    tmp_path: Path, quick: None, name: str, length: int
) -> None:
    config = published.configuration(SYSTEMS[name])
    config["model"]["length"] = length
    published.save(tmp_path / "a.ckpt", SYSTEMS[name], config=config)
    report = import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", Options())
    assert report.network.seq_len == length


def test_eso_lm_that_is_mdlm(tmp_path: Path, quick: None) -> None:
    algo = {**SYSTEMS["esolm_b_diffusion"].algo, "diffusion_attn_mode": "bidirectional"}
    published.save(tmp_path / "a.ckpt", System("odd", algo))
    report = import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", Options())
    assert report.network.objective.name == "mdlm"


def test_imported_checkpoint_exports_like_any_other(tmp_path: Path, quick: None) -> None:
    published.save(tmp_path / "a.ckpt", SYSTEMS["esolm_b"])
    import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", Options(weights="raw"))
    export(tmp_path / "out", tmp_path / "bundle", weights="raw")
    first, second = (
        (folder / "model.safetensors").read_bytes()
        for folder in (tmp_path / "out" / "bundle", tmp_path / "bundle")
    )
    assert first == second


def test_moments_of_the_optimizer(tmp_path: Path, quick: None) -> None:
    system = SYSTEMS["ar"]
    first, second = (published.random_weights(False, seed) for seed in (7, 8))
    slots = {
        index: {"step": torch.tensor(1234.0), "exp_avg": m, "exp_avg_sq": v.square()}
        for index, (m, v) in enumerate(zip(first.values(), second.values(), strict=True))
    }
    state = {"state": slots, "param_groups": [{"lr": 3e-4, "params": list(slots)}]}
    published.save(tmp_path / "a.ckpt", system, optimizer_states=[state])
    report = import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", Options())
    assert "moments: of the file's optimizer" in report.notes
    reader = CheckpointReader(tmp_path / "out")
    assert reader.manifest.run["updates"] == 1234
    stored = reader.tensors("exp_avg")
    assert torch.equal(stored["blocks.1.mlp.up.bias"], first["backbone.blocks.1.mlp.0.bias"])
    qkv = stored["blocks.0.attention.qkv.weight"].view(4, 3, 8, 32)
    key_of_head_2 = first["backbone.blocks.0.attn_qkv.weight"][32 + 16 : 32 + 24]
    assert torch.equal(qkv[2, 1], key_of_head_2)
    slots[3]["exp_avg"] = torch.zeros(5)
    published.save(tmp_path / "b.ckpt", system, optimizer_states=[state])
    report = import_checkpoint(tmp_path / "b.ckpt", tmp_path / "again", Options())
    assert any("does not fit the parameters" in note for note in report.notes)
    assert CheckpointReader(tmp_path / "again").manifest.run["updates"] == 0


def test_file_without_averages(tmp_path: Path, quick: None) -> None:
    raw = published.random_weights(True, 1)
    system = SYSTEMS["mdlm"]
    content = published.checkpoint(system, raw, None, published.configuration(system))
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(ImportCheckpointError, match="pass --weights raw"):
        import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", Options())
    empty = {"ema": {"decay": 0.9, "num_updates": 0, "shadow_params": []}}
    torch.save(content | empty, tmp_path / "a.ckpt")
    with pytest.raises(ImportCheckpointError, match="pass --weights raw"):
        import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", Options())
    import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", Options(weights="raw"))
    reader = CheckpointReader(tmp_path / "out")
    weights, ema = reader.tensors("weights"), reader.tensors("ema")
    assert all(torch.equal(weights[name], ema[name]) for name in weights)
