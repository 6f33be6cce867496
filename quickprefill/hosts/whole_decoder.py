"""A host's decoder as a whole, without a cache: how it trains."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad

from quickprefill.attention.interface import flash_is_requested

__all__ = ["run_decoder"]


def run_decoder(
    decoder: Any, config: Any, embeds: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, **more: Any
) -> torch.Tensor:
    """Hidden states (B, n, C) of embeddings (B, n, C) at positions (P, B, n).

    Args:
        config: the one that names the decoder's attention.
        mask: (B, n), 1 where there is no padding.
        **more: further arguments of its forward().
    """
    length = embeds.shape[1]
    if len(positions) == 1 and flash_is_requested(config):
        # Where nothing is padded, gaps in the positions may be taken for the ends of several prompts.
        embeds, mask, positions = pad(embeds, (0, 0, 0, 1)), pad(mask, (0, 1)), pad(positions, (0, 1))
    output = decoder(
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=positions[0] if len(positions) == 1 else positions,
        use_cache=False,
        **more,
    )
    hidden: torch.Tensor = output[0]
    return hidden[:, :length]
