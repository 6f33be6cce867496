"""Bytes alive at the fullest moments of a vision tower and of a decoder layer, besides weights, inputs and storage.

Each figure adds up the tensors that one step of the host's forward() and of ours holds at once, result included, but
not scratch space inside a kernel. A step's callers hold its inputs until it returns. Read off transformers 5.24; the
steps are those of most hosts: norm, projections, rotary embedding, attention, gated MLP.
"""

from __future__ import annotations

import torch

from quickprefill.hosts.geometry import Geometry
from quickprefill.prompt.spans import Grid

__all__ = ["feature_bytes", "layer_bytes", "question_bytes", "stored_only_bytes", "tower_bytes"]

_FLOAT32 = 4
_WIDENED_TOKENS = 4096
"""As in attention/group.py: keys and values of a prefix that a CPU makes float32 at a time."""


def feature_bytes(geometry: Geometry, num_tokens: int) -> int:
    """Rows of that many tokens as they enter the decoder, and between its layers."""
    return num_tokens * geometry.hidden * (1 + geometry.levels) * geometry.dtype.itemsize


def tower_bytes(geometry: Geometry, grid: Grid) -> int:
    """The vision tower, fed the slices of `grid`."""
    if geometry.vision_pictures:
        return _patches(geometry, grid.num_tokens) * (_picture_bytes(geometry, grid) + _pixel_bytes(geometry))
    size, width, narrow = geometry.dtype.itemsize, geometry.vision_hidden, geometry.dtype != torch.float32
    patches = _patches(geometry, grid.num_made)
    # A block's input and its norm, then queries, keys and values in one; later the residual and its norm.
    projected, residual = 5 * width, 3 * width
    # The keys' turn, in float32: turned queries; of the keys the part by cosine, the turned halves and theirs by sine.
    turning = size * projected + _FLOAT32 * (4 + 2 * narrow) * width
    # Turned queries and keys and the output; those of the segments of one length are gathered where there are several.
    attending = size * (projected + 3 * width) + int(size * 4 * width * _largest_part(geometry, grid))
    mlp = size * (residual + geometry.vision_mlp_tensors * geometry.vision_mlp)
    rotary = 2 * _FLOAT32 * width // geometry.vision_heads  # cosines and sines
    most = patches * max(turning, attending, mlp)
    if geometry.vision_eager:
        segment = _patches(geometry, grid.slice_tokens)
        maps = geometry.vision_heads * segment**2 * _eager_map_bytes(geometry)
        most = max(most, maps + patches * size * (projected + 2 * width) + (patches - segment) * size * width)
    table = _FLOAT32 * width * geometry.vision_table
    later = feature_bytes(geometry, grid.num_made) * geometry.levels // (1 + geometry.levels)  # made on the way
    return most + patches * (rotary + table + _pixel_bytes(geometry)) + later


def upload_bytes(geometry: Geometry, num_tokens: int) -> int:
    """Pixels of a later pass through the tower, on their way to a GPU ahead of their turn."""
    if geometry.vision_device.type != "cuda":
        return 0
    return _patches(geometry, num_tokens) * geometry.patch_values * _FLOAT32


def layer_bytes(geometry: Geometry, device: torch.device, rows: int, prefix: int) -> int:
    """A decoder layer on `device` for `rows` behind `prefix` stored ones."""
    size = geometry.dtype.itemsize
    attention = stored_only_bytes(geometry, rows)
    mlp = rows * size * (3 * geometry.hidden + 3 * geometry.mlp)  # input, residual, norm; gate, up and their product
    if geometry.eager:
        maps = geometry.heads * rows * (prefix + rows)
        attention = max(attention, _eager_bytes(geometry, rows, prefix) + maps * _eager_map_bytes(geometry))
        mlp += maps * size  # returned beside the attention's output, and nobody drops them before the MLP has run
    elif prefix and device.type == "cpu":
        attention = max(attention, _lower_right_bytes(geometry, rows, prefix))
    return max(attention, mlp) + rows * size * 2 * geometry.head_dim  # cosines and sines


def stored_only_bytes(geometry: Geometry, rows: int) -> int:
    """A layer up to where its keys and values are stored: the rotary embedding is its fullest moment.

    Beside input, norm, queries, keys and values: of the queries the part by cosine, the turned halves and theirs by
    sine; or the turned queries, and of the keys those three.
    """
    queries, keys = geometry.heads * geometry.head_dim, geometry.kv_heads * geometry.head_dim
    turning = queries + 2 * keys + max(3 * queries, queries + 3 * keys)
    return rows * geometry.dtype.itemsize * (2 * geometry.hidden + turning + geometry.gated * queries)


def question_bytes(geometry: Geometry, rows: int, question: int, keys: int, *, apart: bool) -> int:
    """What a question attends to among so many keys, behind a layer of `rows` rows.

    Args:
        apart: the keys are made for it, where else they are those of the cache.
    """
    size, narrow = geometry.dtype.itemsize, geometry.dtype != torch.float32
    stored = geometry.kv_heads * geometry.head_dim
    beside = size * (
        2 * geometry.hidden + 2 * geometry.head_dim + stored * apart
    )  # input and output, cosines and sines
    queries = question * geometry.heads * geometry.head_dim * (size + _FLOAT32)  # as they were, and in float32
    maps = geometry.heads * question * keys
    # Products before and after a step of the softmax; or the products, and the keys in float32 of which they are made.
    return rows * beside + queries + _FLOAT32 * (maps + max(maps, keys * stored * narrow))


def _lower_right_bytes(geometry: Geometry, rows: int, prefix: int) -> int:
    """Attention on a CPU to a prefix and, causally, to the rows themselves, in float32: attention/group.py."""
    size, narrow = geometry.dtype.itemsize, geometry.dtype != torch.float32
    wide = max(size, _FLOAT32)
    queries, keys = geometry.heads * geometry.head_dim, geometry.kv_heads * geometry.head_dim
    repeated = 2 * queries if geometry.heads != geometry.kv_heads else 0
    # Wide queries, own keys and values repeated for every query head, and the output.
    own = queries * narrow + (repeated or 2 * keys * narrow) + queries
    # Queries laid behind each other, and the outputs of own keys and prefix, a block of which is made float32.
    block = 2 * keys * min(prefix, _WIDENED_TOKENS) * narrow
    step = wide * max(rows * own, rows * 3 * queries + block)
    return rows * size * (2 * geometry.hidden + queries) + step


def _eager_bytes(geometry: Geometry, rows: int, prefix: int) -> int:
    """Beside the maps of eager attention: input, norm and queries; a mask; keys and values of every query head."""
    size, queries = geometry.dtype.itemsize, geometry.heads * geometry.head_dim
    repeated = 2 * queries * (prefix + rows) if geometry.heads != geometry.kv_heads else 0
    return size * (rows * (2 * geometry.hidden + queries) + rows * (prefix + rows) + repeated)


def _eager_map_bytes(geometry: Geometry) -> int:
    """Bytes of one number of eager attention's maps: before and after a step, or as they are, in float32, softmaxed."""
    size = geometry.dtype.itemsize
    return 2 * size if geometry.dtype == torch.float32 else size + 2 * _FLOAT32


def _patches(geometry: Geometry, num_tokens: int) -> int:
    return round(num_tokens * geometry.patches_per_token)


def _picture_bytes(geometry: Geometry, grid: Grid) -> int:
    """Bytes a patch of a tower that sees the slices as pictures: its embeddings are held until its last layer."""
    size, width = geometry.dtype.itemsize, geometry.vision_hidden
    # Embeddings, a block's input and its norm; queries, keys and values; the output, as it is made and laid out.
    attending = size * 8 * width
    mlp = size * (4 * width + geometry.vision_mlp_tensors * geometry.vision_mlp)
    # The last states before and after their norm; if earlier ones are kept, so are the embeddings and a block's input.
    projecting = size * (2 * width * (2 if geometry.vision_states else 1) + geometry.vision_projected)
    if geometry.vision_eager:
        row = geometry.vision_heads * _patches(geometry, grid.slice_tokens)
        # Queries and keys as they are multiplied; or both of a step's maps, those of all pictures at once.
        attending += max(size * row, _eager_map_bytes(geometry) * row - size * 2 * width)
    return max(attending, mlp, projecting) + size * width * geometry.vision_states


def _pixel_bytes(geometry: Geometry) -> int:
    """Bytes of a patch's pixels in the tower: a copy, unless they already lie there as it takes them."""
    copied = geometry.vision_copies or geometry.vision_device.type != "cpu" or geometry.dtype != torch.float32
    return geometry.patch_values * geometry.dtype.itemsize * copied


def _largest_part(geometry: Geometry, grid: Grid) -> float:
    """Share of a slice in the windows of one length; 0 where all windows have one."""
    window = geometry.vision_window
    if not window or not (grid.height % window or grid.width % window):
        return 0.0
    rows, columns = ((side - side % window, side % window) for side in (grid.height, grid.width))
    return max(high * wide for high in rows for wide in columns) / grid.slice_tokens
