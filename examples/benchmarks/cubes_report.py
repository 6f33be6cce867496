"""Tables and pictures of examples/benchmarks/cubes.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from examples.needle.statistics import interval, mcnemar
from examples.needle.tasks import TASKS

__all__ = ["plot_curves", "plot_example", "summarise", "table"]


def summarise(verdicts: dict[str, dict[str, list[dict[str, Any]]]]) -> dict[str, Any]:
    """Figures for each set and way, and the verdicts themselves: for each clip a string of 1 and 0."""
    return {"sets": {place: _set_summary(ways) for place, ways in verdicts.items()}}


def _set_summary(ways: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    right = {
        way: np.concatenate([record["right"] for record in records]).astype(float) for way, records in ways.items()
    }
    records = next(iter(ways.values()))
    clips = np.concatenate([[clip] * len(record["right"]) for clip, record in enumerate(records)])
    tasks = np.concatenate([record["tasks"] for record in records])
    summary: dict[str, Any] = {"questions": len(clips), "ways": {}}
    for way, own in right.items():
        figures: dict[str, Any] = {
            "accuracy": round(float(own.mean()), 4),
            "interval": interval(own, clips),
            "tasks": {task: round(float(own[tasks == task].mean()), 4) for task in TASKS if (tasks == task).any()},
            "verdicts": ["".join(map(str, record["right"])) for record in ways[way]],
        }
        for rule in ("fixed", "momentum"):
            other = f"{rule}, {way.split(', ')[1]}" if ", " in way else ""
            if other in right and other != way:
                difference = own - right[other]
                error = np.array([difference[clips == clip].mean() for clip in np.unique(clips)]).std() / np.sqrt(
                    len(records)
                )
                figures[f"against_{rule}"] = {
                    "points": round(100 * float(difference.mean()), 2),
                    "standard_error": round(100 * float(error), 2),
                    "p": float(f"{mcnemar(own, right[other]):.3g}"),
                }
        summary["ways"][way] = figures
    return summary


def table(summary: dict[str, Any]) -> str:
    """The figures as Markdown."""
    settings = summary["settings"]
    lines = [
        f"Model `{settings['model']}`, {settings['frames']} frames. Trained: {settings['steps']} steps of "
        f"{settings['batch']} clips and {4 * settings['batch']} questions, weights of the policy only. Differences in "
        "points, with a standard error over clips and an exact McNemar test on the same questions.",
    ]
    for place, figures in summary["sets"].items():
        clips = len(next(iter(figures["ways"].values()))["verdicts"])
        lines += [
            "",
            f"### Things happen in {place} ({clips} clips, {figures['questions']} questions)",
            "",
            "| way | accuracy | 95 % | " + " | ".join(TASKS) + " | against fixed | against momentum |",
            "|---" * (5 + len(TASKS)) + "|",
        ]
        for way, own in figures["ways"].items():
            low, high = own["interval"]
            cells = [way, f"{own['accuracy']:.1%}", f"{low:.1%} to {high:.1%}"]
            cells += [f"{own['tasks'][task]:.0%}" if task in own["tasks"] else "" for task in TASKS]
            cells += [_difference(own.get(f"against_{rule}")) for rule in ("fixed", "momentum")]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _difference(figures: dict[str, float] | None) -> str:
    if figures is None:
        return ""
    return f"{figures['points']:+.1f} ± {figures['standard_error']:.1f} (p = {figures['p']:.2g})"


def plot_curves(curves: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Accuracy, and the share of cubes that begin at a true change, over the steps of each training."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4))
    colours: dict[str, str] = {}
    for way, curve in curves.items():
        name, ratio, _ = way.split(", ")
        label = f"{name}, {ratio}"
        known = label in colours
        colour = colours.setdefault(label, f"C{len(colours)}")
        for axis, key in zip(axes, ("accuracy", "at_a_change"), strict=True):
            points = [(point["step"], point[key]) for point in curve]
            axis.plot(*zip(*points, strict=True), color=colour, label=None if known else label)
    for axis, title in zip(axes, ("accuracy on validation clips", "cubes that begin at a change"), strict=True):
        axis.set_title(title)
        axis.set_xlabel("step")
    axes[0].legend(fontsize="small")
    _save(figure, path)


def plot_example(changes: set[int], moved: list[float], cuts: dict[str, list[int]], path: Path) -> None:
    """One test clip: the slices that truly change, how much each slice moves, and where cubes begin."""
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(11, 3))
    axis.plot(range(1, len(moved) + 1), moved, color="black", label="momentum")
    for change in sorted(changes):
        axis.axvspan(change - 0.5, change + 0.5, color="gold", alpha=0.4, lw=0)
    for row, (way, starts) in enumerate(cuts.items()):
        axis.plot(starts, [max(moved) * (1.1 + 0.1 * row)] * len(starts), "|", ms=14, mew=2, label=f"cubes: {way}")
    axis.set_xlabel("slice of two frames; yellow: it shows something else than the one before")
    axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.01, 0.5))
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.tight_layout()
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, dpi=110, format="png")
    partial.replace(path)
    pyplot.close(figure)
