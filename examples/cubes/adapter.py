"""An adapter's config, and what the cubes of a prefill are in seconds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import quickprefill
from quickprefill.policies import Cubes

__all__ = ["adapter_config", "cube_seconds"]


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


def cube_seconds(kept: Any, metadata: dict[str, Any]) -> list[tuple[float, float]]:
    """Start and end of each cube of a video.

    Args:
        kept: the "compress" entry of report.kept_places; needs trace=True.
        metadata: the reader's, of the same video: fps and frames_indices.
    """
    slices, rows, columns = kept.grid
    times = [float(index) / float(metadata["fps"]) for index in metadata["frames_indices"]]
    times += times[-1:] * (-len(times) % slices)  # processors repeat the last frame
    frames = len(times) // slices
    starts = [times[at * frames] for at in (kept.places // (rows * columns)).unique().tolist()]
    shown = sorted(set(times))
    end = shown[-1] + (shown[-1] - shown[-2] if len(shown) > 1 else 0)
    return list(zip(starts, [*starts[1:], end], strict=True))
