"""Shows the reports of `esolm evaluate` as text for a person."""

from typing import Any

LABEL = 38
COLUMNS = ("nats/token", "perplexity", "bits/token", "bits/byte")


def likelihood_text(report: dict[str, Any]) -> str:
    """Shows the report of `evaluate.likelihood.measure`, one line for each figure."""
    network, data, bound = report["network"], report["data"], report["nelbo"]
    objective = dict(network["objective"])
    name = objective.pop("name")
    options = ", ".join(f"{key} {value}" for key, value in objective.items())
    lines = [
        f"{network['path']}: {network['kind']}, step {network['step']}, {network['weights']} "
        f"weights, {name} ({options})",
        f"{data['name']}: {data['rows']:,} rows of {data['seq_len']} tokens, "
        f"{data['tokens']:,} predicted, {data['bytes']:,} bytes",
        "",
        f"{'':{LABEL}}" + "".join(f"{column:>13}" for column in COLUMNS),
        _line(_name_of_bound(name, bound), bound),
    ]
    if len(report["phases"]) > 1:
        lines += [
            f"{'  ' + k:{LABEL}}{v['nats_per_token']:13.5f}" for k, v in report["phases"].items()
        ]
    if report["left_to_right"] is not None and name != "AutoRegressive":
        lines.append(_line("exact, left to right", report["left_to_right"]))
    if report["orders"] is not None:
        orders = report["orders"]
        drawn = f"(alpha_0 {orders['alpha_0']:g})"
        lines.append(_line(f"exact, one drawn order {drawn}", orders["single"]))
        bounded = f"bound of {orders['k']} orders {drawn}"
        lines.append(_line(bounded, orders["importance_weighted"]))
        lines.append(f"  under orders: the likelihood of {orders['of']}")
    if report["note"] is not None:
        lines.append(report["note"])
    lines += ["", *_errors(bound), *_buckets(report["t_buckets"])]
    return "\n".join(lines).rstrip()


def _name_of_bound(objective: str, bound: dict[str, Any]) -> str:
    if objective == "AutoRegressive":
        return "exact, left to right"
    return "exact" if bound["exact"] else "bound (NELBO)"


def _line(label: str, figures: dict[str, Any]) -> str:
    values = (
        f"{figures['nats_per_token']:13.5f}",
        f"{figures['perplexity']:13.4f}",
        f"{figures['bits_per_token']:13.5f}",
        _or_unknown(figures["bits_per_byte"], "13.5f"),
    )
    return f"{label:{LABEL}}" + "".join(values)


def _width(style: str) -> str:
    return style.partition(".")[0].rstrip("dg")


def _or_unknown(value: float | None, style: str) -> str:
    return f"{'n/a':>{_width(style)}}" if value is None else f"{value:{style}}"


def _errors(bound: dict[str, Any]) -> list[str]:
    if bound["exact"]:
        return []
    over_draws = _or_unknown(bound["standard_error"], ".5f")
    over_rows = _or_unknown(bound["standard_error_over_rows"], ".5f")
    return [
        f"standard error of the bound: {over_draws} nats/token over {bound['draws']} draws of the "
        f"noise, {over_rows} over the choice of rows"
    ]


def _buckets(buckets: list[dict[str, Any]]) -> list[str]:
    if not buckets:
        return []
    lines = ["", f"{'t':>10}{'tokens':>12}{'masked':>12}{'bound/token':>14}{'nats/masked':>14}"]
    for each in buckets:
        span = f"{each['t_from']:.1f}-{each['t_to']:.1f}"
        plain = _or_unknown(each["nats_per_masked_token"], "14.4f")
        lines.append(
            f"{span:>10}{each['tokens']:12,}{each['masked']:12,}"
            f"{each['bound_nats_per_token']:14.4f}{plain}"
        )
    return lines


def clip_search_text(report: dict[str, Any]) -> str:
    """Shows the report of `evaluate.clip_search.search`, the best range of t first."""
    data, best = report["data"], report["ranges"][0]
    lines = [
        f"{report['network']} on {data['name']}: {data['rows']:,} rows, {report['draws']} draws",
        "",
        f"{'t_min':>8}{'t_max':>8}{'loss':>12}{'variance':>14}",
    ]
    for each in report["ranges"]:
        ends = f"{each['t_min']:8g}{each['t_max']:8g}"
        lines.append(f"{ends}{each['loss']:12.5f}{each['variance']:14.3e}")
    settings = f"objective.t_min={best['t_min']:g} objective.t_max={best['t_max']:g}"
    return "\n".join([*lines, "", f"the loss varies least with {settings}"])


def samples_text(report: dict[str, Any]) -> str:
    """Shows the report of `esolm.pipeline.evaluate.sampling.measure_samples` as a table."""
    columns = {
        "alpha_0": ("alpha_0", "8g"),
        "steps": ("steps", "8d"),
        "nfe": ("NFE", "8.1f"),
        "seconds_per_sample": ("s/sample", "10.4f"),
        "entropy": ("entropy", "9.3f"),
        "distinct_1": ("dist-1", "9.4f"),
        "distinct_2": ("dist-2", "9.4f"),
        "distinct_3": ("dist-3", "9.4f"),
        "generative_perplexity": ("gen. ppl", "12.2f"),
        "mauve": ("MAUVE", "9.4f"),
    }
    first = report["settings"][0]
    lines = [
        f"{report['bundle']}: {first['samples']} samples of {first['length']} tokens per setting",
        "",
        "".join(f"{name:>{_width(style)}}" for name, style in columns.values()),
    ]
    for each in report["settings"]:
        lines.append("".join(_or_unknown(each[key], style) for key, (_, style) in columns.items()))
    return "\n".join([*lines, *("", *report["files"])] if "files" in report else lines)
