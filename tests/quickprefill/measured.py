"""What tests of planned memory share: a model in which every part counts, and a compressor of known needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from quickprefill.policies import Compressor
from tests.tiny import rope, tiny_model

_SIZES = {
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    **rope(4, 6, 6),
}
_NARROW = {"hidden_size": 32, "intermediate_size": 85, "window_size": 64}
_WIDE = {"hidden_size": 96, "intermediate_size": 256, "window_size": 64}


def measured_model(attention="sdpa", dtype=torch.float32, *, wide_tower=False):
    """A tiny model in whose prefill the decoder's activations are the most that is alive, or those of a wide tower."""
    return tiny_model(attention, dtype=dtype, vision=_WIDE if wide_tower else _NARROW, **_SIZES)


@dataclass(frozen=True)
class Allocates(Compressor):
    """Keeps the first of the tokens, beside a tensor of a known size that it has no use for."""

    name: ClassVar[str] = "allocates"
    bytes_per_token: int = 4000
    ratio: float = 0.5
    exactly: bool = True
    scope: str = "video"

    @property
    def exact(self):
        return self.exactly

    @property
    def compress_ratio(self):
        return self.ratio

    def most_tokens(self, grid, num_kept):
        return num_kept

    def workspace_bytes(self, num_tokens, slice_tokens, width, itemsize, num_kept=None):
        return num_tokens * self.bytes_per_token + (num_kept or num_tokens) * (width * itemsize + 40)

    def compress(self, tokens):
        beside = tokens.embeds.new_empty(tokens.num_tokens * self.bytes_per_token, dtype=torch.uint8)
        first = tokens.source.view(tokens.grid.slices, -1)[:, : tokens.num_kept // tokens.grid.slices].flatten()
        kept = tokens.take(first)
        del beside
        return kept
