"""Qwen3-VL: each slice stands behind its time as text; the tower's features for later layers ride along (deepstack).

After layer i (i = 0 .. L-1) the i-th level of features is added to the hidden states of video and image tokens. So rows
are (1 + L) x C wide at first, text with zeros, and each of those layers uses one C of them up.
"""

from __future__ import annotations

from typing import Any

import torch

from quickprefill import versions
from quickprefill.hosts.qwen import QwenHost
from quickprefill.hosts.whole_decoder import run_decoder
from quickprefill.prompt.pending import PendingVideo

__all__ = ["Qwen3_VL", "Qwen3_VL_MoE"]


class Qwen3_VL(QwenHost):
    """Facts about Qwen3VLForConditionalGeneration."""

    model_type = "qwen3_vl"
    module_name = "transformers.models.qwen3_vl.modeling_qwen3_vl"
    head_name = "Qwen3VLForConditionalGeneration"
    core_name = "Qwen3VLModel"
    vision_mlp_tensors = 2

    def deferred(self, core: Any, videos: list[PendingVideo]) -> Any:
        kind = versions.module_of(self.module_name).BaseModelOutputWithDeepstackFeatures
        levels = [[video.level(level + 1) for video in videos] for level in range(_levels(core))]
        return kind(pooler_output=videos, deepstack_features=levels)

    def embed(self, core: Any, ids: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
        embeds = super().embed(core, ids, None)
        embeds = torch.nn.functional.pad(embeds, (0, _levels(core) * embeds.shape[1]))
        return self.with_features(core, ids, embeds, features)

    def decode(self, core: Any, embeds: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        hidden, *levels = torch.split(embeds, _width(core), dim=-1)
        everywhere = torch.ones(mask.shape, dtype=torch.bool, device=hidden.device)
        later = [level.flatten(0, 1) for level in levels]  # zeros where text is, as everywhere in our rows
        deepstack = {"visual_pos_masks": everywhere, "deepstack_visual_embeds": later}
        return run_decoder(self.decoder(core), self.attention_config(core), hidden, mask, positions, **deepstack)

    def layer(self, core: Any, index: int, hidden: torch.Tensor, rotary: Any, cache: Any) -> torch.Tensor:
        width = _width(core)
        output = super().layer(core, index, hidden[..., :width], rotary, cache)
        if hidden.shape[-1] == width:
            return output
        own, rest = hidden[..., width : 2 * width], hidden[..., 2 * width :]
        output = output + own.to(output.device)
        return torch.cat([output, rest.to(output.device)], dim=-1) if rest.shape[-1] else output

    def attention(self, core: Any, index: int, hidden: torch.Tensor, rotary: Any, cache: Any) -> None:
        super().attention(core, index, hidden[..., : _width(core)], rotary, cache)

    def norm(self, core: Any, hidden: torch.Tensor) -> torch.Tensor:
        return super().norm(core, hidden[..., : _width(core)])


class Qwen3_VL_MoE(Qwen3_VL):
    """Facts about Qwen3VLMoeForConditionalGeneration: the MLP is a mixture of experts."""

    model_type = "qwen3_vl_moe"
    module_name = "transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe"
    head_name = "Qwen3VLMoeForConditionalGeneration"
    core_name = "Qwen3VLMoeModel"


def _width(core: Any) -> int:
    return int(core.config.get_text_config().hidden_size)


def _levels(core: Any) -> int:
    return len(core.visual.deepstack_visual_indexes)
