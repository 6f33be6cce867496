"""The table and the plot of prefill.py."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any


def medians(runs: list[dict[str, Any]]) -> dict[str, float] | None:
    """Medians over the runs of one way; `own` is the policy's share of the time. None: it ran out of memory."""
    runs = [run for run in runs if not run.get("out_of_memory")]
    if not runs:
        return None
    names = ("first_token_s", "next_token_s", "peak_bytes", "cache_bytes", "flops", "vision_flops", "matmul_rate")
    values = {name: statistics.median(run[name] for run in runs) for name in names}
    own = [sum(run["stages_s"].get(stage, 0.0) for stage in ("compress", "prune")) for run in runs]
    decode = [run["stages_s"].get("decode", 0.0) for run in runs]
    return {**values, "own_s": statistics.median(own), "decode_s": statistics.median(decode)}


def table(results: dict[str, Any]) -> str:
    """Markdown: medians, and each way's ratio to stock generate() of the same length."""
    env = results["environment"]
    lines = [
        f"# Prefill, {env['family']}, {env['shape']} shape, "
        f"groups of {env['group_frames'] or 'the default number of'} frames",
        "",
        f"{env['machine']}; torch {env['torch']}, transformers {env['transformers']}; commit {env['commit']}; "
        f"`{env['command']}`.",
        "Medians over the runs. `of stock` below 1 is faster (or smaller) than stock generate(). `floor` is the time",
        "that the matrix products alone would take at the rate of large ones, `floor / s` its share of the time taken.",
        "`next` is the time of each further token, `policy` that in compress, scores, selection and gathering,",
        "`decoder` that in the decoder layers, followed by the share of their own floor in it. What PruneVid drops is",
        "not known beforehand: its work is an upper bound.",
    ]
    for tokens, ways in sorted(results["runs"].items(), key=lambda item: int(item[0])):
        lines += ["", f"## {tokens} video tokens", ""]
        names = ["way", "runs", "first token s", "of stock", "TFLOP", "floor s", "floor / s", "peak MiB", "of stock"]
        names += ["cache MiB", "next s", "policy s", "decoder s", "floor / s"]
        lines += [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
        stock = medians(ways["stock"]) if ways.get("stock") else None
        lines += [_line(name, runs, stock) for name, runs in ways.items() if runs]
    return "\n".join(lines) + "\n"


def _line(name: str, runs: list[dict[str, Any]], stock: dict[str, float] | None) -> str:
    values = medians(runs)
    if values is None:
        return f"| {name} | {len(runs)} | out of memory |" + " |" * 11
    mib = 2**20

    def ratio(key: str) -> str:
        return f"{values[key] / stock[key]:.2f}" if stock and stock[key] else ""

    rate, seconds = values["matmul_rate"], values["first_token_s"]
    floor = values["flops"] / rate

    def share(floor_s: float, of: float) -> str:
        return f"{floor_s / of:.0%}" if floor_s < of else ""

    own = " | |"
    if values["decode_s"]:
        decoder = (values["flops"] - values["vision_flops"]) / rate
        own = f"{values['own_s']:.2f} | {values['decode_s']:.2f} | {share(decoder, values['decode_s'])}"
    return (
        f"| {name} | {len(runs)} | {seconds:.2f} | {ratio('first_token_s')} | {values['flops'] / 1e12:.2f} | "
        f"{floor:.2f} | {share(floor, seconds)} | {values['peak_bytes'] / mib:.0f} | {ratio('peak_bytes')} | "
        f"{values['cache_bytes'] / mib:.1f} | {values['next_token_s']:.3f} | {own} |"
    )


def plot(results: dict[str, Any], path: Path) -> None:
    """Ratios to stock over video tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4))
    lengths = sorted(results["runs"], key=int)
    names = list(dict.fromkeys(name for tokens in lengths for name in results["runs"][tokens]))
    every = {tokens: {name: medians(runs) for name, runs in results["runs"][tokens].items()} for tokens in lengths}
    panels = {"first_token_s": "time to first token", "cache_bytes": "stored cache"}
    for axis, (key, label) in zip(axes, panels.items(), strict=True):
        for name in names:
            pairs = ((int(tokens), ways.get(name), ways.get("stock")) for tokens, ways in every.items())
            points = [(tokens, way[key] / stock[key]) for tokens, way, stock in pairs if way and stock]
            axis.plot([tokens for tokens, _ in points], [ratio for _, ratio in points], marker="o", label=name)
        axis.set(xscale="log", xlabel="video tokens", ylabel=f"{label}, of stock", ylim=(0, None))
    axes[1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
