"""Bytes that are alive while tokens pass, besides weights, inputs and the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quickprefill.config import QuickPrefillConfig
from quickprefill.hosts.base import Geometry
from quickprefill.prompt.spans import VideoSpan

__all__ = ["decoder_bytes", "vision_bytes", "whole_video_bytes"]


def vision_bytes(geometry: Geometry, num_video: int) -> int:
    """The fullest moment of the vision tower for `num_video` tokens."""
    size, patches = geometry.dtype.itemsize, num_video * geometry.patches_per_token
    # Residual, its norm, and the widest step: attention's q, k, v before and after rotary and its output, or the MLP.
    step = max(7 * geometry.vision_hidden, 3 * geometry.vision_mlp)
    return int(patches * (4 * geometry.patch_values + size * (2 * geometry.vision_hidden + step)))


def decoder_bytes(geometry: Geometry, rows: int, prefix: int, tower_tokens: int, num_video: int) -> int:
    """The fullest moment of a group: `tower_tokens` in the tower beside what of the group it has made, or the decoder.

    Args:
        rows: rows that enter the decoder, behind `prefix` stored ones.
        num_video: tokens of the group as the tower makes them.
    """
    size = geometry.dtype.itemsize
    vision = vision_bytes(geometry, tower_tokens) + num_video * geometry.hidden * size
    attention = (3 * geometry.heads + 4 * geometry.kv_heads) * geometry.head_dim
    if geometry.eager:
        attention += 3 * geometry.heads * (prefix + rows)
    embeds = rows * size * (2 * geometry.hidden + 2 * geometry.head_dim)
    decoder = embeds + rows * size * (2 * geometry.hidden + max(attention, 3 * geometry.mlp))
    return int(max(vision, decoder))


def whole_video_bytes(
    geometry: Geometry, config: QuickPrefillConfig, spans: Sequence[VideoSpan], tower: Mapping[int, int]
) -> int:
    """The fullest moment before the first group where a compressor needs a whole video at once; else 0."""
    compressor = config.compressor
    if compressor is None or compressor.scope != "video":
        return 0
    most, size = 0, geometry.dtype.itemsize
    for span in spans:
        tokens, slice_tokens = span.grid.num_tokens, span.grid.slice_tokens
        features = tokens * geometry.hidden * size
        encoding = features + vision_bytes(geometry, tower[span.index] * slice_tokens)
        work = compressor.workspace_bytes(tokens, slice_tokens, geometry.hidden, size)
        most = max(most, encoding, 2 * features, features + work)
    return most
