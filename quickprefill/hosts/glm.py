"""GLM-4.1V, 4.5V and 4.6V: video stands under the image token, between tokens that begin and end a video.

Each slice stands between image tokens of its own, and its time as text behind it. The video token occurs in no prompt;
named() puts it where video goes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationMixin

from quickprefill import release, versions
from quickprefill.attention.interface import flash_is_requested
from quickprefill.attention.segments import boundaries_on
from quickprefill.hosts.qwen import QwenHost
from quickprefill.hosts.qwen_vision import Layout, tower_layout
from quickprefill.hosts.tower_layouts import lengths_in_place

__all__ = ["GLM_4_1V", "GLM_4_5V", "GLM_4_6V"]


class GLM_4_1V(QwenHost):
    """Facts about Glm4vForConditionalGeneration."""

    model_type = "glm4v"
    module_name = "transformers.models.glm4v.modeling_glm4v"
    head_name = "Glm4vForConditionalGeneration"
    core_name = "Glm4vModel"

    def overrides(self, head_class: type) -> dict[str, Callable[..., Any]]:
        own = {versions.REPEATS_FEATURES: self._expand}
        return {**super().overrides(head_class), **versions.overridable(head_class, own)}

    def _expand(self, stock: Callable[..., Any], head: Any, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        """Repeat features for beams and samples; the host's own way counts the video tokens, and finds none."""
        if input_ids is None:
            return stock(input_ids, *args, **kwargs)
        ids = torch.stack([self.named(self.core(head), row) for row in input_ids])
        return getattr(GenerationMixin, versions.REPEATS_FEATURES)(head, ids, *args, **kwargs)

    def named(self, core: Any, ids: torch.Tensor) -> torch.Tensor:
        begun = (ids == core.config.video_start_token_id).cumsum(0)
        ended = (ids == core.config.video_end_token_id).cumsum(0)
        is_video = (ids == core.config.image_token_id) & (begun > ended)
        return ids.masked_fill(is_video, core.config.video_token_id)

    def closing_token_ids(self, core: Any) -> frozenset[int]:
        return frozenset({core.config.image_end_token_id, core.config.video_end_token_id})

    def vision_sizes(self, vision: Any) -> tuple[int, int]:
        return vision.hidden_size, vision.out_hidden_size

    def tower_layout(self, visual: Any, device: torch.device, slices: int, height: int, width: int) -> Layout:
        _, derived = tower_layout(visual, device, slices, height, width)
        derived = {name.removeprefix("video_"): value for name, value in derived.items()}
        grid, flash = torch.tensor([[1, height, width]] * slices), flash_is_requested(visual.config)
        if not versions.takes_longest_segment():
            return grid.to(device if flash else "cpu"), derived
        if not flash:
            derived["cu_seqlens"] = boundaries_on(device, derived["cu_seqlens"])
        return grid.to(device), derived

    def tower_features(self, core: Any, rows: torch.Tensor, layout: Layout) -> Any:
        """The tower alone: get_video_features() reads the grid back from the device to make this one of it.

        Since 5.15 its positions are looked up on the device, so that grid and boundaries must lie there.
        """
        grid, derived = layout
        if versions.takes_longest_segment():
            return core.visual(rows, grid_thw=grid, **derived)
        with lengths_in_place(core.visual.embeddings):
            return core.visual(rows, grid_thw=grid, **derived)


class GLM_4_5V(GLM_4_1V):
    """Facts about Glm4vMoeForConditionalGeneration, GLM-4.5V: the MLP is a mixture of experts."""

    model_type = "glm4v_moe"
    module_name = "transformers.models.glm4v_moe.modeling_glm4v_moe"
    head_name = "Glm4vMoeForConditionalGeneration"
    core_name = "Glm4vMoeModel"


class GLM_4_6V(GLM_4_1V):
    """Facts about Glm46VForConditionalGeneration: GLM-4.6V, with any decoder of the two before."""

    model_type = "glm46v"
    tested = ("5.0", release.TESTED[1])
    module_name = "transformers.models.glm46v.modeling_glm46v"
    head_name = "Glm46VForConditionalGeneration"
    core_name = "Glm46VModel"
