"""Tables and the plot from what decode.py measured."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

Row = dict[str, Any]
SOURCES = {"cached": "", "cold": ", cold cache", "http": ", by HTTP"}
EXPLANATION = """\
Medians; `python examples/benchmarks/decode.py` repeats them and says what a row is. Ratios are a peer's figure over
quickdecode's: below 1 quickdecode loses. `CPU s` is the CPU time of all threads and children. `of limit` is the limit
over quickdecode's wall time; in brackets, over its CPU time spread evenly over the cores, which other load on the
machine disturbs less; decode.py says what the limit is. `MB read` came from the disk or over the link."""


def write_speed(stored: Path) -> None:
    """Next to the JSON: a Markdown table of medians, and a plot of wall seconds."""
    measured = json.loads(stored.read_text())
    stored.with_suffix(".md").write_text(_speed_table(measured))
    _plot(measured, stored.with_suffix(".png"))


def median(runs: list[Row], key: str) -> float | None:
    """None if a run failed, or if no run says."""
    values = [run[key] for run in runs if key in run]
    return statistics.median(values) if values and len(values) == len(runs) else None


def _medians(row: Row, key: str) -> dict[str, float]:
    """Reader -> median, of those that did not fail."""
    found = {name: median(runs, key) for name, runs in row["runs"].items()}
    return {name: value for name, value in found.items() if value is not None}


def _peers(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if not name.startswith("quickdecode")}


def _title(row: Row) -> str:
    return f"{row['file']}, {row['sampling']}{SOURCES[row.get('source', 'cached')]}"


def _speed_table(measured: Row) -> str:
    height, width = measured["size"]
    lines = [
        f"# Decode to {height} x {width} on {measured['cores']} cores",
        "",
        f"{measured['machine']}.",
        EXPLANATION,
        *([measured["note"]] if measured.get("note") else []),
        "",
        *_summary(measured["rows"]),
        "",
    ]
    for row in measured["rows"]:
        lines += [*_speed_rows(row, measured["cores"]), ""]
    return "\n".join(lines)


def _summary(rows: list[Row]) -> list[str]:
    """A line for each row: quickdecode against the peer that is fastest, and against the one that computes least."""
    lines = [
        "| file, frames | quickdecode s | CPU s | fastest peer | its s | ratio "
        "| thriftiest peer | its CPU s | CPU ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lost: dict[str, list[str]] = {"wall": [], "cpu": []}
    for row in rows:
        cells = [_title(row)]
        ours = {key: _medians(row, key).get("quickdecode") for key in lost}
        cells += ["" if value is None else f"{value:.3g}" for value in ours.values()]
        for key, value in ours.items():
            peers = _peers(_medians(row, key))
            if value is None or not peers:
                cells += ["", "", ""]
                continue
            best = min(peers, key=peers.__getitem__)
            ratio = peers[best] / value
            cells += [best, f"{peers[best]:.3g}", f"**{ratio:.2f}**" + (" (loss)" if ratio < 1 else "")]
            if ratio < 1:
                lost[key].append(_title(row))
        lines.append(f"| {' | '.join(cells)} |")
    counts = " and ".join(
        f"in {len(titles)} by {what}" for titles, what in zip(lost.values(), ("wall time", "CPU time"), strict=True)
    )
    return [*lines, "", f"Of these {len(rows)} rows quickdecode loses {counts} to the best peer of the row."]


def _speed_rows(row: Row, cores: int) -> list[str]:
    limit, peers = row["limit"], _peers(_medians(row, "wall"))
    facts = []
    if limit:
        facts.append(
            f"Must be decoded: {limit['frames']} of {limit['of']} frames; limit {limit['seconds']:.2f} s. Decoders on "
            f"all cores at once ran at {limit['together']:.0%} of the speed of one alone."
        )
    if peers:
        facts.append(f"Fastest peer: {min(peers, key=peers.__getitem__)}.")
    if row.get("commit"):
        facts.append(f"Commit {row['commit']}, {max(len(runs) for runs in row['runs'].values())} turns.")
    lines = [
        f"## {_title(row)}",
        "",
        " ".join(facts),
        "",
        "| reader | wall s | min to max | CPU s | peak MB over imports | MB read | ratio | CPU ratio | of limit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in row["runs"].items():
        lines.append(_speed_line(name, runs, row["runs"].get("quickdecode", []), peers, limit, cores))
    if "first" in (stream := row.get("stream", {})):
        first, last = stream["first"], stream["last"]
        lines += ["", f"Streamed, the first 16 frames come after {first:.2f} s, {first / last:.1%} of {last:.2f} s."]
    return lines


def _speed_line(
    name: str, runs: list[Row], ours: list[Row], peers: dict[str, float], limit: Row | None, cores: int
) -> str:
    wall, cpu, peak = median(runs, "wall"), median(runs, "cpu"), median(runs, "peak_mb")
    if wall is None or cpu is None or peak is None:
        return f"| {name} | failed: {runs[-1].get('error', '') if runs else 'not run'} | | | | | | | |"
    walls = [run["wall"] for run in runs]
    our_wall, our_cpu, read = median(ours, "wall"), median(ours, "cpu"), median(runs, "read_mb")
    ratio = cpu_ratio = share = ""
    if name == "quickdecode":
        ratio = f"**{min(peers.values()) / wall:.2f}**" if peers else ""
        share = f"{limit['seconds'] / wall:.0%} ({limit['seconds'] * cores / cpu:.0%})" if limit and cpu else ""
    elif our_wall and our_cpu and not name.startswith("quickdecode"):
        ratio, cpu_ratio = f"{wall / our_wall:.2f}", f"{cpu / our_cpu:.2f}"
    cells = [name, f"{wall:.3g}", f"{min(walls):.3g} to {max(walls):.3g}", f"{cpu:.3g}", f"{peak:.0f}"]
    return f"| {' | '.join([*cells, '' if read is None else f'{read:.1f}', ratio, cpu_ratio, share])} |"


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
        labels = [f"{wall:.3g}" if wall is not None else "failed or not run" for _, wall in shown]
        axis.bar_label(axis.barh([name for name, _ in shown], values, color=colours), labels, fontsize=7, padding=2)
        if row["limit"]:
            axis.axvline(row["limit"]["seconds"], color="tab:red", linewidth=1)
        axis.set_title(f"{_title(row)}: seconds" + (" (red: the limit)" if row["limit"] else ""), fontsize=8)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
