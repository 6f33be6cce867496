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
        InputError: placeholders do not match what comes with them, or a prompt is padded on the right.
    """
    ids, on_host, videos = call["input_ids"], call["input_ids"].cpu(), list(videos)
    rows = []
    for batch_row, start in enumerate(_padding(call.get("attention_mask"), ids)):
        row_ids = host.named(core, on_host[batch_row, start:])
        num_video = int((row_ids == host.video_token_id(core)).count_nonzero())
        num_features = int(host.feature_mask(core, row_ids).count_nonzero())
        if num_features > (0 if features is None else len(features)):
            raise InputError(
                f"row {batch_row} holds {num_features} image placeholder tokens, more than there are features"
            )
        rows.append(
            Row(
                ids=row_ids,
                positions=positions[:, batch_row, start:],
                columns=torch.arange(start, ids.shape[1]),
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


def _padding(mask: torch.Tensor | None, ids: torch.Tensor) -> list[int]:
    """How many columns of padding each row begins with.

    Raises:
        InputError: there is padding elsewhere.
    """
    if mask is None:
        return [0] * ids.shape[0]
    visible = mask[:, -ids.shape[1] :].bool().cpu()
    starts = [visible.shape[1] - int(row.count_nonzero()) for row in visible]
    if not all(bool(row[start:].all()) for row, start in zip(visible, starts, strict=True)):
        raise InputError(
            "attention_mask has padding on the right of a prompt; a prompt that is generated from is padded on the "
            'left: use AutoProcessor.from_pretrained(..., padding_side="left")'
        )
    return starts


def _take(videos: list[PendingVideo], num_tokens: int) -> tuple[PendingVideo, ...]:
    """Remove from the front of `videos` those that fill `num_tokens` placeholders; a misfit is found by the split."""
    taken: list[PendingVideo] = []
    while videos and sum(map(len, taken)) < num_tokens:
        taken.append(videos.pop(0))
    return tuple(taken)
