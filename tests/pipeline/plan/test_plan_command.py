"""`esolm plan`: what it prints, what it refuses, and how it ranks layouts."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from esolm.pipeline.cli.main import main
from esolm.pipeline.parallel.layout import Layout
from esolm.pipeline.plan.cost import Machine, bubble_share, gpu_named
from esolm.pipeline.plan.estimate import (
    context_seconds,
    data_bytes,
    data_seconds,
    exposed_seconds,
    message_seconds,
    tensor_seconds,
)
from esolm.pipeline.plan.host import pinned
from tests.model.conftest import small_config

CONFIGS = Path(__file__).parents[3] / "configs" / "run"
PAPER = str(CONFIGS / "owt_esolm_b_0d5.yaml")
WITHOUT_DATA = ["--vocab-size", "50257", "data.path=nowhere"]


def run(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit code, output and errors of `esolm plan`."""
    monkeypatch.setattr(sys, "argv", ["esolm", "plan", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    output = capsys.readouterr()
    return int(stopped.value.code or 0), output.out, output.err


def as_json(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    code, output, errors = run([*arguments, "--json"], monkeypatch, capsys)
    assert code == 0, errors
    return json.loads(output)


def test_the_figures_of_the_papers_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [PAPER, "--nodes", "1", *WITHOUT_DATA, "--mfu", "0.5", "--gpu", "A100"]
    plan = as_json(arguments, monkeypatch, capsys)
    assert plan["notes"] == ["no dataset at nowhere: --vocab-size 50257 stands in"]
    assert plan["parameters"]["total"] == 169_625_681
    assert plan["layout"]["dp"] == 8
    assert plan["batch"]["micro_batches"] == 8
    assert plan["batch"]["tokens_per_step"] == 512 * 1024
    assert plan["batch"]["tokens"] == 512 * 1024 * 250_000
    assert plan["checkpoint_bytes"] == 16 * 169_625_681
    flops = plan["flops_per_token"] * plan["batch"]["tokens"]
    assert plan["time"]["seconds"] == pytest.approx(flops / (0.5 * 312e12 * 8))
    densities = {row["pattern"]: row["density"] for row in plan["attention"]}
    assert densities["causal"] == pytest.approx(1025 / 2048)
    seen_by_each_stream = 1024 * 1025 / 2
    by_noised_left_out = 512 * 513 / 2
    assert densities["two_stream"] == pytest.approx(
        (2 * seen_by_each_stream - by_noised_left_out) / (512 + 1024) ** 2
    )
    (stage,) = plan["stages"]
    assert stage["weights"] == 2 * 169_625_681
    assert stage["activations"]["full"] < stage["activations"]["selective"]
    assert stage["activations"]["selective"] < stage["activations"]["none"]


def test_stages_hold_all_parameters_and_keep_fewer_micro_batches_down_the_pipeline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = as_json([PAPER, "--ranks", "8", "parallel.pp=4", *WITHOUT_DATA], monkeypatch, capsys)
    stages = plan["stages"]
    assert [stage["micro_batches_in_flight"] for stage in stages] == [4, 3, 2, 1]
    assert sum(stage["parameters_per_rank"] for stage in stages) == plan["parameters"]["total"]
    assert [bool(stage["logits"]) for stage in stages] == [False, False, False, True]
    assert plan["bubble_share"] == pytest.approx(3 / (32 + 3))


def test_the_tables_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output, _ = run([PAPER, *WITHOUT_DATA, "parallel.tp=2"], monkeypatch, capsys)
    assert code == 0
    for part in ("169,625,681", "two moments", "EMA", "full", "logits", "peak", "H100", "FLOPs:"):
        assert part in output


def test_with_the_dataset_its_vocabulary_is_planned(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = as_json([str(CONFIGS / "demo.yaml"), f"data.path={dataset}"], monkeypatch, capsys)
    assert plan["vocab_size"] == 400
    assert plan["notes"] == []


def test_everything_that_is_wrong_is_reported_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["parallel.tp=5", "train.precision=fp16", "objective.kappa=2", "data.path=nowhere"]
    settings.append("model.num_kv_heads=4")
    code, _, errors = run([PAPER, "--nodes", "2", *settings], monkeypatch, capsys)
    assert code == 64
    for part in (
        "16 ranks do not divide by parallel.tp 5",
        "model.num_heads 12 does not divide by parallel.tp 5",
        "model.num_kv_heads 4 neither divides by parallel.tp 5 nor divides it",
        "train.precision is 'fp16'",
        "objective.kappa",
        "nowhere/manifest.json does not exist",
        "--vocab-size",
    ):
        assert part in errors


@pytest.mark.parametrize(
    ("name", "nodes", "parameters"),
    [
        ("modern_1b_1_node", 1, 1_512_338_432),
        ("modern_7b_4_nodes", 4, 7_357_789_184),
        ("modern_7b_16_nodes", 16, 7_357_789_184),
    ],
)
def test_the_recipes_of_several_nodes_fit_gpus_of_80_gb(
    name: str,
    nodes: int,
    parameters: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A block of the 7 B, by hand: 2 x 4,096^2 + 2 x 4,096 x 1,024 + 3 x 4,096 x 12,288."""
    settings = ["--nodes", str(nodes), "--gpu", "H100", "--vocab-size", "50258"]
    plan = as_json([str(CONFIGS / f"{name}.yaml"), *settings], monkeypatch, capsys)
    assert plan["parameters"]["total"] == parameters
    assert plan["fits"]
    assert plan["gpu_memory_bytes"] == 80e9


def test_an_unknown_gpu_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, errors = run([PAPER, *WITHOUT_DATA, "--gpu", "K80"], monkeypatch, capsys)
    assert code == 64
    assert "choose A100, H100, H200, B200" in errors


def test_products_in_fp8_are_planned_where_the_gpu_has_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [PAPER, *WITHOUT_DATA, "train.precision=bf16", "train.fp8=rowwise"]
    code, _, errors = run([*arguments, "--gpu", "A100"], monkeypatch, capsys)
    assert code == 64
    assert "train.fp8=rowwise: it needs compute capability 9.0, and the A100 has 8.0" in errors
    split = ["parallel.tp=2", "parallel.sequence=true", "train.micro_batch_size=4"]
    plans = [
        as_json([*arguments, *split, *more], monkeypatch, capsys)
        for more in ([], ["train.fp8=none"])
    ]
    assert plans[0]["notes"][-1] == "train.fp8: time is that of products in bf16"
    assert plans[0]["memory_bytes"] > plans[1]["memory_bytes"]


def test_the_search_ranks_layouts_that_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [PAPER, "--nodes", "2", *WITHOUT_DATA, "--search"]
    found = as_json(arguments, monkeypatch, capsys)
    assert "estimate" in found["caveat"]
    seconds = [row["step_seconds"] for row in found["layouts"]]
    assert seconds == sorted(seconds)
    assert all(row["memory_bytes"] <= 0.9 * 80e9 for row in found["layouts"])
    best = found["layouts"][0]["settings"]
    plan = as_json([PAPER, "--nodes", "2", *WITHOUT_DATA, *best], monkeypatch, capsys)
    assert plan["memory_bytes"] == found["layouts"][0]["memory_bytes"]


def test_a_search_that_nothing_satisfies_says_what_is_least(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [PAPER, "--nodes", "1", *WITHOUT_DATA, "--search", "--gpu-memory", "0.1"]
    code, _, errors = run(arguments, monkeypatch, capsys)
    assert code == 64
    assert "the smallest needs" in errors
    code, _, errors = run([*arguments, "train.precision=fp16"], monkeypatch, capsys)
    assert code == 64
    assert "train.precision is 'fp16'" in errors


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        (["train.micro_batch_size=256", "--gpu", "H100"], 64),
        (["train.micro_batch_size=256", "--gpu-memory", "80"], 64),
        (["train.micro_batch_size=256", "--gpu-memory", "400"], 0),
        (["train.micro_batch_size=256"], 0),
        (["train.micro_batch_size=8", "--gpu", "H100"], 0),
    ],
)
def test_a_layout_that_does_not_fit_the_gpu_that_is_named_ends_with_64(
    settings: list[str],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The plan is printed whole all the same; of a GPU that is assumed there is only a note."""
    arguments = [PAPER, *WITHOUT_DATA, *settings]
    found, output, errors = run([*arguments, "--json"], monkeypatch, capsys)
    assert found == code, errors
    plan = json.loads(output)
    big = "train.micro_batch_size=256" in settings
    assert plan["fits"] == (not big or "400" in settings)
    assert plan["fits"] == (plan["memory_bytes"] <= 0.9 * plan["gpu_memory_bytes"])
    need = f"does not fit: needs {plan['memory_bytes'] / 1e9:.1f} GB of 80 GB on H100"
    assert (need in errors) == (not plan["fits"])
    found, output, errors = run(arguments, monkeypatch, capsys)
    assert found == code
    assert "peak" in output
    assert (need in errors) == (not plan["fits"])


def test_replicas_over_four_nodes_rank_before_a_pipeline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 170 M parameters: a pipeline waits, passes messages, and spares but little reduction."""
    arguments = [PAPER, "--nodes", "4", *WITHOUT_DATA, "--search"]
    found = as_json(arguments, monkeypatch, capsys)
    rows = {row["layout"]: row for row in found["layouts"]}
    first, second = list(rows)[:2]
    assert {first, second} == {"TP1 x PP1 x DP32, ZeRO-1", "TP1 x PP1 x DP32, ZeRO-3"}
    hidden = {layout: row["data_communication_hidden"] for layout, row in rows.items()}
    assert hidden[first] > 0
    assert hidden[second] > 0
    assert all(hidden[layout] == 0 for layout in rows if "ZeRO-2" in layout)
    assert any("ZeRO-2" in layout for layout in rows)
    waiting = {layout: row["stage_messages"] > 0 for layout, row in rows.items()}
    assert waiting == {layout: "PP1" not in layout for layout in rows}
    assert any(waiting.values())


def test_ranks_that_share_tokens_need_less_for_activations_and_wait_for_heads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """States are those of as many replicas, and rows those of half as many."""
    arguments = [PAPER, "--ranks", "4", *WITHOUT_DATA]
    alone = as_json(arguments, monkeypatch, capsys)
    plan = as_json([*arguments, "parallel.cp=2"], monkeypatch, capsys)
    assert (plan["layout"]["cp"], plan["layout"]["dp"]) == (2, 2)
    assert plan["batch"]["micro_batches"] == 2 * alone["batch"]["micro_batches"]
    (stage,), (before,) = plan["stages"], alone["stages"]
    for part in ("weights", "optimizer_master", "optimizer_moments", "ema"):
        assert stage[part] == before[part]
    share = stage["activations"]["full"] / before["activations"]["full"]
    assert share == pytest.approx(0.5, rel=0.01)
    assert 0.4 < stage["activations"]["none"] / before["activations"]["none"] < 0.6
    assert (
        as_json([PAPER, *WITHOUT_DATA, "parallel.cp=4"], monkeypatch, capsys)["layout"]["ranks"]
        == 4
    )
    found = as_json([*arguments, "parallel.cp=2", "--search"], monkeypatch, capsys)["layouts"]
    assert found
    for row in found:
        assert "parallel.cp=2" in row["settings"]
        assert " x CP2 x " in row["layout"]
        assert row["context_communication"] > 0


def machine_of(mfu: float = 0.4) -> Machine:
    return Machine(gpu_named("H100"), gpus_per_node=8, network=50e9, mfu=mfu)


def test_communication_by_hand() -> None:
    """Ring volumes: 2 (n - 1) / n of an all-reduce, (n - 1) / n of a gather or a scatter."""
    machine, model = machine_of(), small_config(num_layers=2, hidden_size=12)
    tensor = tensor_seconds(model, Layout(2, 1, 1, 1), machine, "bf16", tokens=100)
    assert tensor == pytest.approx(2 * 4 * 1.0 * 2 * 100 * 12 / 450e9)
    context = Layout(1, 1, 1, 1, cp=2)
    heads = context_seconds(model, context, machine, "bf16", tokens=100)
    assert heads == pytest.approx(2 * (4 * 2 * 100 * (12 + 12) / 2) / 450e9)
    apart = context_seconds(model, context, replace(machine, gpus_per_node=1), "bf16", tokens=100)
    assert apart == pytest.approx(heads * 450 / 50)
    within = data_seconds(1000, Layout(1, 1, 8, 1), machine, "bf16", 4)
    assert within == pytest.approx((2 * 4000 + 2000) * 7 / 8 / 450e9)
    scattered = data_seconds(1000, Layout(1, 1, 8, 1), machine, "bf16", 4, scatters=True)
    assert scattered == pytest.approx((4000 + 2000) * 7 / 8 / 450e9)
    every_time = data_seconds(1000, Layout(1, 1, 8, 2), machine, "bf16", 4)
    assert every_time == pytest.approx((4 * 2 * 4000 + 2000) * 7 / 8 / 450e9)
    between = data_seconds(1000, Layout(4, 1, 16, 3), machine, "bf16", 4)
    assert between == pytest.approx(4 * (4000 + 2000) * 15 / 16 / (2 * 50e9))
    message = message_seconds(model, Layout(2, 4, 2, 1), machine, "bf16", tokens=100)
    assert message == pytest.approx(4 * 2 * 100 * 12 / 50e9)
    assert bubble_share(Layout(1, 4, 1, 1), 5) == 3 / 8


def test_zero_3_gathers_again_what_was_used_too_long_ago() -> None:
    """It keeps what comes back within 10^9 elements, there and back: half of them."""
    kept = data_bytes(500_000_000, 3, "bf16", 1)
    assert kept == 6 * 500_000_000
    assert data_bytes(700_000_000, 3, "bf16", 1) == 6 * 700_000_000 + 2 * 200_000_000


@pytest.mark.parametrize(
    ("members", "stride", "expected"),
    [
        (8, 1, 450e9),
        (4, 2, 450e9),
        (32, 1, 8 * 50e9),  # a ring for each of the node's GPUs
        (8, 4, 2 * 50e9),
        (4, 8, 50e9),
        (2, 16, 50e9),
    ],
)
def test_rings_between_nodes_use_the_links_of_all_their_members(
    members: int, stride: int, expected: float
) -> None:
    assert machine_of().ring_bandwidth(members, stride) == expected


def test_zero_3_waits_only_for_what_computing_cannot_hide() -> None:
    """Each backward pass ends with its last bucket, however fast the computing leaves it behind."""
    layout, parameters = Layout(1, 1, 8, 3), 80_000_000
    bucket = 4 * 50_000_000 * 7 / 8 / 450e9
    data = data_seconds(parameters, layout, machine_of(), "bf16", 2)
    few = exposed_seconds(data, 1.0, layout, machine_of(), parameters, 2)
    assert few == pytest.approx(2 * bucket)
    assert exposed_seconds(data, 0.0, layout, machine_of(), parameters, 2) == data
    same = exposed_seconds(data, 1.0, replace(layout, zero=1), machine_of(), parameters, 2)
    assert same == data


def test_scattered_gradients_wait_for_what_the_last_backward_pass_cannot_hide() -> None:
    """Two of six bytes are weights, gathered afterwards; of the gradients the last bucket waits."""
    layout, parameters = Layout(1, 1, 8, 1), 80_000_000
    bucket = 4 * 50_000_000 * 7 / 8 / 450e9
    data = data_seconds(parameters, layout, machine_of(), "bf16", 2, scatters=True)
    hidden = exposed_seconds(data, 1.0, layout, machine_of(), parameters, 2, scatters=True)
    assert hidden == pytest.approx(data / 3 + bucket)
    partly = exposed_seconds(data, data, layout, machine_of(), parameters, 2, scatters=True)
    assert partly == pytest.approx(data / 3 + max(data * (2 / 3 - 1 / 3), bucket))
    none = exposed_seconds(data, 0.0, layout, machine_of(), parameters, 2, scatters=True)
    assert none == pytest.approx(data)


def test_host_memory_is_counted_and_what_does_not_fit_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pinned copies of four fp32 states, each of which torch rounds up to a power of two."""
    arguments = [PAPER, "--nodes", "1", *WITHOUT_DATA]
    saving = as_json([*arguments, "--host-memory", "64"], monkeypatch, capsys)
    share = 4 * -(-169_625_681 // 8)
    host = saving["stages"][0]["host"]
    assert host["staging"] == 4 * 2**27
    assert 2**26 < share <= 2**27
    assert saving["fits"]
    assert saving["node_memory_bytes"] == 8 * saving["host_memory_bytes"] == 8 * host["peak"]
    waiting = as_json([*arguments, "checkpoint.asynchronous=false"], monkeypatch, capsys)
    assert waiting["stages"][0]["host"]["staging"] == 0
    assert waiting["host_memory_bytes"] < saving["host_memory_bytes"]

    code, output, errors = run([*arguments, "--host-memory", "16"], monkeypatch, capsys)
    assert code == 64
    assert "of 16 GB; what helps: fewer ranks on a node, checkpoint.asynchronous=false" in errors
    assert "pinned" in output


@pytest.mark.parametrize(("size", "taken"), [(1, 1), (4, 4), (5, 8), (2**30 + 1, 2**31)])
def test_pinned_memory_comes_in_powers_of_two(size: int, taken: int) -> None:
    assert pinned(size) == taken
