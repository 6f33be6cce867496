"""The table of end_to_end.py."""

from __future__ import annotations

import statistics
from typing import Any

MIB = 2**20


def middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run whose time to first token is the (lower) median."""
    return sorted(runs, key=lambda run: run["first_token_s"])[(len(runs) - 1) // 2]


def table(results: dict[str, Any]) -> str:
    """Markdown: medians of every way, against stock and against the larger of decoding and device alone."""
    env, runs = results["environment"], {way: runs for way, runs in results["runs"].items() if runs}
    some = middle(next(iter(runs.values())))
    lines = [
        f"# File to first token, {env['family']}, {env['shape']} shape",
        "",
        f"{env['machine']}; torch {env['torch']}, transformers {env['transformers']}; commit {env['commit']}; "
        f"`{env['command']}`. {env['video']}: {some['frames']} frames at {env['fps']:g} fps, "
        f"{env['size'][0]} x {env['size'][1]}, {some['tokens']} tokens; keep={env['keep']:g}, "
        f"groups of {env['group_frames']} frames.",
        "",
        "| way | reader | runs | first token s | stock / this | of the larger alone | host MiB | device MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def median(way: str, name: str) -> float:
        return statistics.median(run[name] for run in runs[way])

    alone = None
    if "read" in runs:
        device = statistics.median(run["first_token_s"] - run["ready_s"] for run in runs["read"])
        alone = max(median("read", "read_s"), device)
    for way in runs:
        seconds = median(way, "first_token_s")
        answers = way != "drain"
        stock = f"{median('stock', 'first_token_s') / seconds:.2f}" if answers and "stock" in runs else ""
        larger = "" if alone is None or not answers else f"{seconds / alone:.2f}"
        lines.append(
            f"| {way} | {middle(runs[way])['reader']} | {len(runs[way])} | {seconds:.2f} | {stock} | "
            f"{larger} | {median(way, 'host_bytes') / MIB:.0f} | {median(way, 'device_bytes') / MIB:.0f} |"
        )
    if alone is not None:
        lines += ["", f"Decode alone {median('read', 'read_s'):.2f} s, device alone {device:.2f} s."]
    return "\n".join(lines) + "\n"
