"""Qwen2.5-Omni's thinker: as Qwen2.5-VL, with audio among the text, that of a video between its slices too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from quickprefill import release, versions
from quickprefill.errors import InputError
from quickprefill.hosts.qwen import QwenHost

__all__ = ["Qwen2_5_Omni"]


class Qwen2_5_Omni(QwenHost):
    """Facts about Qwen2_5OmniThinkerForConditionalGeneration, alone or inside Qwen2_5OmniForConditionalGeneration.

    Until transformers 5.20 it was head and core in one.
    """

    model_type = "qwen2_5_omni_thinker"
    tested = ("5.21", release.TESTED[1])
    fault = "its head and core are one class"
    module_name = "transformers.models.qwen2_5_omni.modeling_qwen2_5_omni"
    head_name = "Qwen2_5OmniThinkerForConditionalGeneration"
    core_name = "Qwen2_5OmniThinkerModel"

    def closing_token_ids(self, core: Any) -> frozenset[int]:
        names = ("vision_end_token_id", "audio_end_token_id")  # of which configs by default have the second only
        return frozenset(getattr(core.config, name) for name in names if hasattr(core.config, name))

    def position_ids(self, core: Any, call: Mapping[str, Any]) -> torch.Tensor:
        mask = call.get("feature_attention_mask")
        lengths = None if mask is None else mask.sum(dim=1)
        return super().position_ids(core, {**call, "audio_feature_lengths": lengths})

    def feature_mask(self, core: Any, ids: torch.Tensor) -> torch.Tensor:
        mask: torch.Tensor = super().feature_mask(core, ids) | (ids == core.config.audio_token_id)
        return mask

    def features(self, core: Any, call: Mapping[str, Any]) -> torch.Tensor | None:
        """Images and audio as they stand in the prompts, row after row.

        Raises:
            InputError: there are more or fewer of one kind than of its tokens.
        """
        ids = call["input_ids"]
        tokens = ids[self.feature_mask(core, ids)]
        is_image, is_audio = tokens == core.config.image_token_id, tokens == core.config.audio_token_id
        images, audio = super().features(core, call), self._audio(core, call)
        for kind, mask, found in (("image", is_image, images), ("audio", is_audio, audio)):
            expected, brought = int(mask.count_nonzero()), 0 if found is None else len(found)
            if expected != brought:
                raise InputError(
                    f"input_ids hold {expected} {kind} placeholder tokens, but the call brings {brought} {kind} "
                    "features; pass everything that the processor returned beside input_ids"
                )
        if images is None or audio is None:
            return audio if images is None else images
        merged = images.new_empty(len(tokens), images.shape[1])
        merged[is_image.to(merged.device)] = images
        merged[is_audio.to(merged.device)] = audio.to(merged)
        return merged

    def _audio(self, core: Any, call: Mapping[str, Any]) -> torch.Tensor | None:
        if call.get("input_features") is None:
            return None
        audio = {name: call.get(name) for name in ("input_features", "feature_attention_mask", "audio_feature_lengths")}
        features: torch.Tensor = versions.features(core, "get_audio_features", **audio).last_hidden_state
        return features
