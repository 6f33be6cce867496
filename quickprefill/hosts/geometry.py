"""Sizes of a host model that memory and work depend on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Geometry", "StateLayers"]


@dataclass(frozen=True)
class StateLayers:
    """Layers of linear attention, which hold a state of constant size instead of keys and values."""

    layers: frozenset[int] = frozenset()
    heads: int = 0
    """Of values; fewer heads of keys are shared by several."""
    key_heads: int = 0
    key_dim: int = 0
    value_dim: int = 0
    kernel: int = 0
    """Tokens that the causal convolution before them looks at."""

    @property
    def mixed(self) -> int:
        """Channels of queries, keys and values together, which pass the convolution."""
        return 2 * self.key_heads * self.key_dim + self.heads * self.value_dim

    def nbytes(self, itemsize: int) -> int:
        """Of one layer's state: the convolution's last inputs, and a matrix for each head in float32."""
        return self.mixed * self.kernel * itemsize + 4 * self.heads * self.key_dim * self.value_dim


@dataclass(frozen=True)
class Geometry:
    """Sizes of a host model that memory and work depend on."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vision_layers: int
    vision_hidden: int
    vision_heads: int
    vision_mlp: int
    vision_mlp_tensors: int
    """How many tensors of that width its MLP holds at once: gate, up and their product, or steps of the activation."""
    vision_window: int
    """Tokens along a side of the tower's windows; 0: it has none."""
    patches_per_token: float
    """Patches of the vision tower that merge into one token; not whole where they are resized."""
    patch_values: int
    """Numbers in a patch."""
    dtype: torch.dtype
    devices: tuple[torch.device, ...]
    """Where each decoder layer runs."""
    vision_device: torch.device
    eager: bool = False
    """Whether the decoder's attention maps are made in memory."""
    vision_eager: bool = False
    """Whether the tower's are."""
    vision_table: bool = False
    """Whether the tower adds positions from a learned table, which it keeps in float32."""
    vision_pictures: bool = False
    """Whether it sees slices as pictures of one batch, without turning queries and keys by position."""
    vision_copies: bool = False
    """Whether it copies pixels even where they lie as it takes them."""
    vision_states: int = 0
    """States behind earlier layers that it keeps until its last."""
    vision_projected: int = 0
    """Numbers a patch that what follows the tower holds at once beside its last states."""
    levels: int = 0
    """Features for later layers that ride behind an embedding, each as wide as it."""
    gated: bool = False
    """Whether queries come with a gate, as wide as they, that scales the attention's output."""
    states: StateLayers = StateLayers()

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one token in one layer."""
        return 2 * self.kv_heads * self.head_dim * self.dtype.itemsize

    def state_bytes(self, layer: int) -> int:
        """Of the state that a layer holds instead of keys and values; 0: it holds those."""
        return self.states.nbytes(self.dtype.itemsize) if layer in self.states.layers else 0
