"""What a pruned prefill must compute, for any family: the stock model over the whole sequence, dropped keys masked.

report().kept_places says which video tokens stayed in each layer. A token of a later group or of the tail sees of an
earlier group only what stayed there; within its own group it sees all that stands before it. So each layer gets a mask
of its own, and the stock forward runs with an attention function that uses it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from quickprefill.prompt.spans import Grid

_NAME = "masked_reference"


def layer_masks(length: int, video: torch.Tensor, report: Any, grids: list[Grid]) -> torch.Tensor:
    """(layers, S, S) bool: which keys each query sees, for one prompt of S tokens with videos at columns `video`."""
    kept = [one for one in report.kept_places if one.stage == "score"]
    layers = 1 + max(one.layer for one in kept)
    starts = [sum(grid.num_tokens for grid in grids[:index]) for index in range(len(grids))]
    masks = torch.ones(layers, length, length, dtype=torch.bool).tril()
    for one in kept:
        grid, stop_slice = grids[one.video], one.first_slice + one.grid[0]
        first = starts[one.video] + sum(grid.lengths[: one.first_slice])
        part = grid.part(one.first_slice, stop_slice)
        own = video[first : first + part.num_tokens]
        dropped = ~torch.isin(part.places(), one.places)
        masks[one.layer, int(own[-1]) + 1 :, own[dropped]] = False
    return masks


@contextlib.contextmanager
def masked(config: Any, masks: torch.Tensor) -> Iterator[None]:
    """While the context lasts, layers of `config` attend through `masks`, written out in float64."""

    def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
        share = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(share, dim=1).double() for part in (key, value))
        scores = query.double() @ key.transpose(-1, -2) * kwargs.get("scaling", query.shape[-1] ** -0.5)
        scores = scores.masked_fill(~masks[module.layer_idx], float("-inf"))
        return (scores.softmax(-1) @ value).transpose(1, 2).to(query.dtype), None

    stock = config._attn_implementation
    AttentionInterface.register(_NAME, attend)
    AttentionMaskInterface.register(_NAME, lambda *args, **kwargs: None)
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = stock
        for table in (AttentionInterface, AttentionMaskInterface):
            table._global_mapping.pop(_NAME)
