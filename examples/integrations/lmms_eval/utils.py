"""What needle_clips.yaml names."""

from __future__ import annotations

from typing import Any


def doc_to_visual(doc: dict[str, Any]) -> list[str]:
    """The clip's file."""
    return [doc["video"]]


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Right if the first word is the wanted one, as in examples/needle/answering.py."""
    words = results[0].lower().replace(".", " ").replace(",", " ").split()
    return {"right": float(words[:1] == [doc["answer"]])}
