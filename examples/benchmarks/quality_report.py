"""From answers to figures: accuracy per task, relative to the unpruned model, with intervals and paired tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from examples.needle.statistics import interval, mcnemar, relative_interval
from examples.needle.tasks import CHOICES, TASKS

__all__ = ["plot", "summarise", "table"]

_BASELINES = ("uniform", "random", "cubes_fixed")


def summarise(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures per length and way of answering, and how often keep=1 said the same as the unpatched model."""
    lengths = sorted({record["frames"] for record in records})
    results = [_length_summary(frames, [r for r in records if r["frames"] == frames]) for frames in lengths]
    same = [
        ours == stock
        for record in records
        if "patched@1" in record["ways"]
        for ours, stock in zip(record["ways"]["patched@1"]["texts"], record["ways"]["full"]["texts"], strict=True)
    ]
    chance = {task: round(1 / len(choices), 4) for task, choices in CHOICES.items()}
    return {"identical_at_keep_1": [sum(same), len(same)], "chance": chance, "lengths": results}


def _length_summary(frames: int, records: list[dict[str, Any]]) -> dict[str, Any]:
    clips = np.concatenate([[record["clip"]] * len(record["questions"]) for record in records])
    tasks = np.array([question["task"] for record in records for question in record["questions"]])
    right = {
        way: np.array([verdict for record in records for verdict in record["ways"][way]["right"]], float)
        for way in records[0]["ways"]
    }
    return {
        "frames": frames,
        "clips": len(records),
        "questions": len(tasks),
        "ways": {way: _way_summary(way, right, tasks, clips, records) for way in right},
    }


def _way_summary(
    way: str, right: dict[str, np.ndarray], tasks: np.ndarray, clips: np.ndarray, records: list[dict[str, Any]]
) -> dict[str, Any]:
    own, full = right[way], right["full"]
    summary: dict[str, Any] = {
        "accuracy": round(float(own.mean()), 4),
        "interval": interval(own, clips),
        "tasks": {task: round(float(own[tasks == task].mean()), 4) for task in TASKS if (tasks == task).any()},
        "mean_cache_bytes": round(float(np.concatenate([record["ways"][way]["bytes"] for record in records]).mean())),
    }
    if way not in ("full", "blind"):
        summary["relative"] = round(float(own.mean() / max(full.mean(), 1e-9)), 4)
        summary["relative_interval"] = relative_interval(own, full, clips)
        summary["p_against_full"] = float(f"{mcnemar(own, full):.3g}")
        for baseline in _BASELINES:
            other = f"{baseline}@" + way.split("@")[1]
            if other in right and way != other:
                summary[f"p_against_{baseline}"] = float(f"{mcnemar(own, right[other]):.3g}")
    return summary


def table(summary: dict[str, Any]) -> str:
    """The figures as Markdown."""
    same, asked = summary["identical_at_keep_1"]
    chance = ", ".join(f"{task} {share:.0%}" for task, share in summary["chance"].items())
    lines = [
        f"Model `{summary['settings']['model']}`. Patched with keep=1 it gave the unpatched answer to {same} of "
        f"{asked} questions.",
        "Relative: share of the unpruned model's accuracy, with a 95 % interval over clips. p: exact McNemar test on "
        f"the same questions. Chance: {chance}.",
    ]
    baselines = [name for name in _BASELINES if any(name in way for way in summary["lengths"][0]["ways"])]
    for length in summary["lengths"]:
        lines += ["", f"### {length['frames']} frames ({length['clips']} clips, {length['questions']} questions)", ""]
        lines.append(
            "| way | "
            + " | ".join(TASKS)
            + " | all | relative | p vs. full | "
            + "".join(f"p vs. {name} | " for name in baselines)
            + "cache, KiB |"
        )
        lines.append("|---" * (len(TASKS) + 5 + len(baselines)) + "|")
        lines += [_row(way, values, baselines) for way, values in length["ways"].items()]
    return "\n".join(lines) + "\n"


def _row(way: str, values: dict[str, Any], baselines: list[str]) -> str:
    cells = [way, *(f"{values['tasks'][task]:.0%}" if task in values["tasks"] else "" for task in TASKS)]
    cells.append(f"{values['accuracy']:.1%}")
    if "relative" in values:
        low, high = values["relative_interval"]
        cells.append(f"{values['relative']:.1%} ({low:.0%} to {high:.0%})")
    else:
        cells.append("")
    for name in ("p_against_full", *(f"p_against_{baseline}" for baseline in baselines)):
        cells.append(f"{values[name]:.2g}" if name in values else "")
    cells.append(f"{values['mean_cache_bytes'] / 1024:.0f}")
    return "| " + " | ".join(cells) + " |"


def plot(summary: dict[str, Any], path: Path) -> None:
    """Accuracy against stored cache bytes, one panel for each length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lengths = summary["lengths"]
    figure, axes = pyplot.subplots(1, len(lengths), figsize=(4 * len(lengths), 3.6), squeeze=False, sharey=True)
    for axis, length in zip(axes[0], lengths, strict=True):
        ways = length["ways"]
        curves: dict[str, list[tuple[float, float]]] = {}
        for way, values in ways.items():
            name = way.split("@")[0]
            if name not in ("full", "blind", "patched"):
                curves.setdefault(name, []).append((values["mean_cache_bytes"] / 1024, values["accuracy"]))
        full = (ways["full"]["mean_cache_bytes"] / 1024, ways["full"]["accuracy"])
        for colour, (name, points) in enumerate(curves.items()):
            line = sorted([*points, full])
            axis.plot(*zip(*line, strict=True), marker="o", label=name, color=pyplot.get_cmap("tab20")(colour))
        axis.axhline(ways["blind"]["accuracy"], color="grey", linestyle=":", label="blind")
        axis.set_xscale("log")
        axis.set_title(f"{length['frames']} frames")
        axis.set_xlabel("stored keys and values, KiB")
    axes[0][0].set_ylabel("accuracy")
    axes[0][-1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.tight_layout()
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, dpi=120, format="png")
    partial.replace(path)
    pyplot.close(figure)
