"""An adapter's config, and how often a video was sampled."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import quickprefill
from quickprefill.policies import Cubes

__all__ = ["adapter_config", "sampled_fps"]


def adapter_config(folder: str, sizes: dict[str, Any], **fields: Any) -> quickprefill.QuickPrefillConfig | None:
    """The config that load_adapter() would take, with other cubes (no weight depends on their size) and other fields.

    None where the folder has none: load_adapter() says what is wrong with it.
    """
    file = Path(folder) / "quickprefill.json"
    if not file.is_file():
        return None
    config = quickprefill.QuickPrefillConfig.from_dict(json.loads(file.read_text())["config"])
    policy = tuple(replace(one, **sizes) if isinstance(one, Cubes) else one for one in config.policies)
    return replace(config, policy=policy, **fields)


def sampled_fps(metadata: dict[str, Any]) -> float:
    """Frames a second that a reader took of a file, by its metadata."""
    indices = metadata["frames_indices"]
    taken, passed = len(indices) - 1, float(indices[-1] - indices[0])
    return float(metadata["fps"]) * (taken / passed if passed else 1.0)
