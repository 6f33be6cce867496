"""From a call's batch to prompts: padding off, and to each row the videos, images and audio that are its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from quickprefill import versions
from quickprefill.errors import InputError
from quickprefill.hosts.base import Host, Row
from quickprefill.prompt.pending import PendingVideo

__all__ = ["split_rows"]


def split_rows(
    host: Host,
    core: Any,
    call: Mapping[str, Any],
    positions: torch.Tensor,
    videos: list[PendingVideo],
    features: torch.Tensor | None,
) -> list[Row]:
    """The prompts of a call.

    Args:
        positions: (P, B, S).
        videos, features: those of all rows, in order; features (M, C) of images and audio.

    Raises:
        InputError: placeholders do not match what comes with them, or there is padding inside a prompt.
    """
    ids, on_host, videos = call["input_ids"], call["input_ids"].cpu(), list(videos)
    rows = []
    for batch_row, (start, stop) in enumerate(_bounds(call.get("attention_mask"), ids)):
        row_ids = host.named(core, on_host[batch_row, start:stop])
        num_video = int((row_ids == host.video_token_id(core)).count_nonzero())
        num_features = int(host.feature_mask(core, row_ids).count_nonzero())
        if num_features > (0 if features is None else len(features)):
            raise InputError(
                f"row {batch_row} holds {num_features} image placeholder tokens, more than there are features"
            )
        rows.append(
            Row(
                ids=row_ids,
                positions=positions[:, batch_row, start:stop],
                columns=torch.arange(start, stop),
                videos=_take(videos, num_video),
                features=None if features is None else features[:num_features],
            )
        )
        features = None if features is None else features[num_features:]
    past = versions.cache_of(call)
    cached = past is not None and past.get_seq_length() > 0
    # In a later turn the host passes the new tokens only, but the caller may repeat videos that are cached already.
    if videos and not (cached and not any(row.videos for row in rows)):
        raise InputError(f"{len(videos)} video(s) have no placeholder tokens in input_ids; pass both from one call")
    if features is not None and len(features):
        raise InputError(f"the last {len(features)} image features have no placeholder tokens in input_ids")
    return rows


def _bounds(mask: torch.Tensor | None, ids: torch.Tensor) -> list[tuple[int, int]]:
    """The columns from which and up to which each row holds its prompt; the rest is padding.

    Raises:
        InputError: there is padding elsewhere.
    """
    if mask is None:
        return [(0, ids.shape[1])] * ids.shape[0]
    bounds = []
    for row in mask[:, -ids.shape[1] :].bool().cpu():
        columns = row.nonzero()[:, 0]
        start = int(columns[0]) if len(columns) else len(row)
        bounds.append((start, start + len(columns)))
        if len(columns) and int(columns[-1]) >= start + len(columns):
            raise InputError("attention_mask has padding between the tokens of a prompt; pad on one side only")
    return bounds


def _take(videos: list[PendingVideo], num_tokens: int) -> tuple[PendingVideo, ...]:
    """Remove from the front of `videos` those that fill `num_tokens` placeholders; a misfit is found by the split."""
    taken: list[PendingVideo] = []
    while videos and sum(map(len, taken)) < num_tokens:
        taken.append(videos.pop(0))
    return tuple(taken)
