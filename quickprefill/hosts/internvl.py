"""InternVL: each frame behind "Frame1: ", "Frame2: ", ...; image tiles without, in one pixel_values with the frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from quickprefill import versions
from quickprefill.hosts.frames import patches_along
from quickprefill.hosts.pictures import PicturesHost

__all__ = ["InternVL"]

_OPTIONS = ("vision_feature_layer", "vision_feature_select_strategy")


class InternVL(PicturesHost):
    """Facts about InternVLForConditionalGeneration."""

    model_type = "internvl"
    module_name = "transformers.models.internvl.modeling_internvl"
    head_name = "InternVLForConditionalGeneration"
    core_name = "InternVLModel"
    axes = ("pictures", "channels", "height", "width")
    class_tokens = 1

    def side(self, core: Any) -> int:
        return int(patches_along(core.config.vision_config) * core.config.downsample_ratio)

    def num_frames(self, leads: Sequence[list[int]]) -> int:
        # The lead of the second frame: marker, line break, "Frame", "2", and ": " with a marker in some tokens.
        if len(leads) < 2 or len(leads[1]) < 6:
            return 0
        head, two, tail = leads[1][:3], leads[1][3], leads[1][4:]
        word, one, *rest = leads[0][-len(tail) - 2 :] if len(leads[0]) >= len(tail) + 2 else (None, two)
        if (word, rest) != (head[2], tail) or one == two:
            return 0
        count = 1
        for lead in leads[1:]:
            number = lead[3 : -len(tail)]
            follows = lead[:3] == head and lead[-len(tail) :] == tail and 0 < len(number) <= len(str(count + 1))
            if not follows or number == [one]:  # another text, or the next video counts from one again
                break
            count += 1
        return count

    def features_of(self, core: Any, call: Mapping[str, Any], pixels: torch.Tensor) -> Any:
        options = {name: call[name] for name in _OPTIONS if call.get(name) is not None}
        return versions.features(core, "get_image_features", pixels, **options)
