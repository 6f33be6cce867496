"""Layers of linear attention: the work and the bytes of the gated delta rule, which makes a state of what passes.

As the reference in transformers computes it, in chunks of 64 tokens; a kernel of flash-linear-attention holds less.
"""

from __future__ import annotations

from quickprefill.hosts.geometry import Geometry

__all__ = ["state_layer_bytes", "state_layer_flops"]

_CHUNK = 64
_FLOAT32 = 4


def state_layer_flops(geometry: Geometry, new: int) -> float:
    """Work of such a layer for `new` tokens, its MLP included; what came before does not matter."""
    states = geometry.states
    keys, values = states.key_dim, states.value_dim
    projections = 2 * geometry.hidden * (states.mixed + 2 * states.heads * values + 2 * states.heads)
    within = _CHUNK * (5 * keys + 3 * values)  # two products of keys, two triangular systems, one product with values
    rule = states.heads * (within + 6 * keys * values)
    return float(new * (projections + 2 * states.kernel * states.mixed + rule + 6 * geometry.hidden * geometry.mlp))


def state_layer_bytes(geometry: Geometry, rows: int) -> int:
    """Most that is alive in such a layer for `rows`."""
    states, size = geometry.states, geometry.dtype.itemsize
    keys, values, maps = (states.heads * width for width in (states.key_dim, states.value_dim, _CHUNK))
    # Input, norm, what the convolution made, the gate of the output; decay and learning rate.
    beside = size * (2 * geometry.hidden + states.mixed + values + 3 * states.heads) + _FLOAT32 * states.heads
    # Pairwise decay, the system and the products of queries and keys, one of them before it is decayed. Or all that the
    # scan over chunks needs: queries, keys, those times the learning rate and decayed, both solutions, the output.
    within = 4 * maps + 3 * keys + 2 * values
    scanning = 3 * maps + 4 * values + max(6 * keys, 5 * keys + values * size // _FLOAT32)
    rule = -(-rows // _CHUNK) * _CHUNK * _FLOAT32 * max(within, scanning)
    mlp = rows * size * (3 * geometry.hidden + 3 * geometry.mlp)
    return max(rows * beside + rule, mlp) + rows * size * 2 * geometry.head_dim
