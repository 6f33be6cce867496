"""Tables and the plot from what decode.py measured."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from decode_check import dump

Row = dict[str, Any]


def write_speed(stored: Path) -> None:
    """Next to the JSON: a Markdown table of medians, and a plot of wall seconds."""
    measured = json.loads(stored.read_text())
    stored.with_suffix(".md").write_text(_speed_table(measured))
    _plot(measured, stored.with_suffix(".png"))


def write_check(folder: Path, rows: list[Row]) -> None:
    """JSON and a Markdown table of wrong frames."""
    dump(rows, folder / "decode_check.json")
    (folder / "decode_check.md").write_text(_check_table(rows))


def median(runs: list[Row], key: str) -> float | None:
    """None if a run failed."""
    values = [run[key] for run in runs if "error" not in run]
    return statistics.median(values) if values and len(values) == len(runs) else None


def _speed_table(measured: Row) -> str:
    height, width = measured["size"]
    lines = [
        f"# Decode to {height} x {width} on {measured['cores']} cores",
        "",
        f"{measured['machine']}.",
        "Medians; `python examples/benchmarks/decode.py` repeats them. The bold ratio is the fastest peer's wall time",
        "over quickdecode's (below 1: quickdecode loses), the others are each peer's. `of limit` is the limit over",
        "quickdecode's wall time; in brackets, over its CPU time spread evenly over the cores, which other load on the",
        "machine disturbs less; decode.py says what the limit is. `CPU ratio` is the peer's CPU time over",
        "quickdecode's.",
        *([measured["note"]] if measured.get("note") else []),
        "",
    ]
    for row in measured["rows"]:
        lines += [*_speed_rows(row, measured["cores"]), ""]
    return "\n".join(lines)


def _speed_rows(row: Row, cores: int) -> list[str]:
    limit = row["limit"]
    walls = {name: median(runs, "wall") for name, runs in row["runs"].items()}
    peers = {name: wall for name, wall in walls.items() if wall is not None and not name.startswith("quickdecode")}
    lines = [
        f"## {row['file']}, {row['sampling']}",
        "",
        f"Must be decoded: {limit['frames']} of {limit['of']} frames; limit {limit['seconds']:.2f} s. Decoders on all "
        f"cores at once ran at {limit['together']:.0%} of the speed of one alone."
        + (f" Fastest peer: {min(peers, key=peers.__getitem__)}." if peers else ""),
        "",
        "| reader | wall s | min to max | CPU s | peak MB over imports | ratio | CPU ratio | of limit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in row["runs"].items():
        lines.append(_speed_line(name, runs, row["runs"].get("quickdecode", []), peers, limit["seconds"], cores))
    if "first" in (stream := row.get("stream", {})):
        first, last = stream["first"], stream["last"]
        lines += ["", f"Streamed, the first 16 frames come after {first:.2f} s, {first / last:.1%} of {last:.2f} s."]
    return lines


def _speed_line(name: str, runs: list[Row], ours: list[Row], peers: dict[str, float], limit: float, cores: int) -> str:
    wall, cpu, peak = median(runs, "wall"), median(runs, "cpu"), median(runs, "peak_mb")
    if wall is None or cpu is None or peak is None:
        return f"| {name} | failed: {runs[-1].get('error', '')} | | | | | | |"
    walls = [run["wall"] for run in runs]
    our_wall, our_cpu = median(ours, "wall"), median(ours, "cpu")
    ratio = cpu_ratio = share = ""
    if name == "quickdecode":
        ratio = f"**{min(peers.values()) / wall:.2f}**" if peers else ""
        share = f"{limit / wall:.0%} ({limit * cores / cpu:.0%})"
    elif our_wall and our_cpu and not name.startswith("quickdecode"):
        ratio, cpu_ratio = f"{wall / our_wall:.2f}", f"{cpu / our_cpu:.2f}"
    cells = [name, f"{wall:.2f}", f"{min(walls):.2f} to {max(walls):.2f}", f"{cpu:.1f}", f"{peak:.0f}"]
    return f"| {' | '.join([*cells, ratio, cpu_ratio, share])} |"


def _check_table(rows: list[Row]) -> str:
    readers = list(rows[0]["wrong"])
    lines = [
        "# Wrong frames",
        "",
        "Of up to 48 evenly spaced frames per clip, how many are not the frames of a sequential decode; words are the",
        "error that the reader ended in. `python examples/benchmarks/decode.py --check` repeats this.",
        "",
        "| clip | " + " | ".join(readers) + " |",
        "|---" * (len(readers) + 1) + "|",
    ]
    for row in rows:
        cells = [_check_cell(row["wrong"][reader], row["frames"]) for reader in readers]
        lines.append(f"| {row['clip']} | " + " | ".join(cells) + " |")
    perfect = [str(sum(row["wrong"][reader] == 0 for row in rows)) for reader in readers]
    lines.append(f"| **clips without a fault, of {len(rows)}** | " + " | ".join(perfect) + " |")
    return "\n".join(lines) + "\n"


def _check_cell(wrong: int | str, frames: int) -> str:
    if isinstance(wrong, str):
        return "hangs" if wrong.startswith("hangs") else "error"
    return "0" if wrong == 0 else f"**{wrong}/{frames}**"


def _plot(measured: Row, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = measured["rows"]
    readers = list(dict.fromkeys(name for row in rows for name in row["runs"]))
    figure, axes = pyplot.subplots(len(rows), 1, figsize=(8, 0.35 * (len(readers) + 2) * len(rows)), squeeze=False)
    for axis, row in zip(axes[:, 0], rows, strict=True):
        shown = [(name, median(row["runs"].get(name, []), "wall")) for name in reversed(readers)]
        values = [wall or 0.0 for _, wall in shown]
        colours = ["tab:blue" if name.startswith("quickdecode") else "0.7" for name, _ in shown]
        labels = [f"{wall:.2f}" if wall is not None else "failed or not run" for _, wall in shown]
        axis.bar_label(axis.barh([name for name, _ in shown], values, color=colours), labels, fontsize=7, padding=2)
        axis.axvline(row["limit"]["seconds"], color="tab:red", linewidth=1)
        axis.set_title(f"{row['file']}, {row['sampling']}: seconds (red: the limit)", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
