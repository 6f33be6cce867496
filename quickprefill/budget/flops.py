"""Work of a prefill: multiplications and additions in matrix products."""

from __future__ import annotations

from quickprefill.hosts.geometry import Geometry

__all__ = ["layer_flops", "store_flops", "vision_flops"]


def vision_flops(geometry: Geometry, num_video: int, slice_tokens: int) -> float:
    """Work of the vision tower, its merger included, as if every layer attended to the whole slice."""
    width, patches = geometry.vision_hidden, num_video * geometry.patches_per_token
    layer = 8 * width**2 + 6 * width * geometry.vision_mlp + 4 * width * slice_tokens * geometry.patches_per_token
    merged = width * geometry.patches_per_token
    merger = 2 * merged**2 + 2 * merged * geometry.hidden
    embed = 2 * geometry.patch_values * width
    return float(patches * (geometry.vision_layers * layer + embed) + num_video * merger)


def layer_flops(geometry: Geometry, new: int, stored: int) -> float:
    """Work of one decoder layer for `new` tokens behind `stored` ones."""
    heads = geometry.heads * geometry.head_dim
    projections = 2 * geometry.hidden * ((2 + geometry.gated) * heads + 2 * geometry.kv_heads * geometry.head_dim)
    linear = projections + 6 * geometry.hidden * geometry.mlp
    return float(new * linear + 4 * heads * new * (stored + new / 2))


def store_flops(geometry: Geometry, new: int) -> float:
    """Work of projecting `new` tokens to a layer's queries, keys and values."""
    heads = (1 + geometry.gated) * geometry.heads + 2 * geometry.kv_heads
    return float(new * 2 * geometry.hidden * heads * geometry.head_dim)
