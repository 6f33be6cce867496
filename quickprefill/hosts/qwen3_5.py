"""Qwen3.5: Qwen3-VL's prompt and tower without features for later layers; three of four layers hold a state.

Layers of linear attention keep what they have seen in a state of constant size: nothing of it can be pruned, so they
stay the host's. The fourth is full attention, whose output a gate scales that `q_proj` makes beside the query; its
cache is the one that grows, and is pruned.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from quickprefill import release
from quickprefill.hosts.geometry import Geometry, StateLayers
from quickprefill.hosts.qwen import QwenHost

__all__ = ["Qwen3_5", "Qwen3_5_MoE"]


class Qwen3_5(QwenHost):
    """Facts about Qwen3_5ForConditionalGeneration."""

    model_type = "qwen3_5"
    module_name = "transformers.models.qwen3_5.modeling_qwen3_5"
    head_name = "Qwen3_5ForConditionalGeneration"
    core_name = "Qwen3_5Model"
    vision_mlp_tensors = 2
    tested = ("5.7", release.TESTED[1])
    fault = "it lets several tokens behind a state begin with an empty one, so all groups but one are lost"

    def geometry(self, core: Any) -> Geometry:
        text = core.config.get_text_config()
        states = StateLayers(
            layers=frozenset(at for at, kind in enumerate(text.layer_types) if kind == "linear_attention"),
            heads=text.linear_num_value_heads,
            key_heads=text.linear_num_key_heads,
            key_dim=text.linear_key_head_dim,
            value_dim=text.linear_value_head_dim,
            kernel=text.linear_conv_kernel_dim,
        )
        return dataclasses.replace(super().geometry(core), gated=True, states=states)


class Qwen3_5_MoE(Qwen3_5):
    """Facts about Qwen3_5MoeForConditionalGeneration: the MLP is a mixture of experts."""

    model_type = "qwen3_5_moe"
    module_name = "transformers.models.qwen3_5_moe.modeling_qwen3_5_moe"
    head_name = "Qwen3_5MoeForConditionalGeneration"
    core_name = "Qwen3_5MoeModel"
