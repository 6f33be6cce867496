"""SmolVLM: each frame behind "Frame from 00:01:"; rows of pixel_values are filled up with pictures that are zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from quickprefill import versions
from quickprefill.errors import InputError
from quickprefill.hosts.frames import patches_along
from quickprefill.hosts.pictures import PicturesHost
from quickprefill.prompt.streamed import StreamedPixels

__all__ = ["SmolVLM"]


class SmolVLM(PicturesHost):
    """Facts about SmolVLMForConditionalGeneration."""

    model_type = "smolvlm"
    module_name = "transformers.models.smolvlm.modeling_smolvlm"
    head_name = "SmolVLMForConditionalGeneration"
    core_name = "SmolVLMModel"
    axes = ("prompts", "pictures", "channels", "height", "width")
    copies_pixels = True

    def decoder(self, core: Any) -> Any:
        return core.text_model

    def tower(self, core: Any) -> Any:
        return core.vision_model

    def side(self, core: Any) -> int:
        return int(patches_along(core.config.vision_config) // core.config.scale_factor)

    def projected(self, core: Any) -> int:
        return super().projected(core) // 2  # one layer, without a step between

    def _defer_video(self, stock: Callable[..., Any], head: Any, model_kwargs: dict[str, Any]) -> Any:
        # Pictures of which parts are hidden are encoded as ever, whatever they are.
        return stock(model_kwargs) if self._hides(model_kwargs) else super()._defer_video(stock, head, model_kwargs)

    def stock_reason(self, core: Any, call: Mapping[str, Any]) -> str | None:
        if self._hides(call):
            return "pixel_attention_mask hides parts of the frames"
        return super().stock_reason(core, call)

    def _hides(self, call: Mapping[str, Any]) -> bool:
        """Whether a mask hides parts of pictures."""
        mask = call.get("pixel_attention_mask")
        if call.get("pixel_values") is None or mask is None:
            return False
        rows = zip(self.pixels(call), mask, strict=True)
        return not all(
            bool((seen if isinstance(row, StreamedPixels) else seen[_present(row)]).all()) for row, seen in rows
        )

    def num_frames(self, leads: Sequence[list[int]]) -> int:
        # The lead of the second frame: marker, line break, "Frame from ", "00:01:" digit by digit, two markers.
        if len(leads) < 2 or not (_tells_time(leads[0]) and _tells_time(leads[1])):
            return 0
        head, tail = leads[1][:-8], leads[1][-3:]
        first, zero, again = leads[0][:-8], *leads[0][-8:-6]
        # A video begins in its first minute, so a list of pictures "red car, blue dog," is none.
        if len(head) < 3 or first[2 - len(head) :] != head[2:] or leads[0][-3:] != tail or zero != again:
            return 0
        count = 1
        for lead in leads[1:]:
            minutes = len(lead) - 6 - len(head)  # one digit more from 100 on
            if lead[: len(head)] != head or minutes not in (2, 3) or lead[-3:] != tail or not _tells_time(lead):
                break  # the next video, say, which begins with an introduction
            count += 1
        return count

    def sources(self, call: Mapping[str, Any]) -> list[torch.Tensor]:
        return [_without_filling(row) for row in self.pixels(call)]

    def features_of(self, core: Any, call: Mapping[str, Any], pixels: torch.Tensor) -> Any:
        if not bool(_present(pixels).all()):
            raise InputError(
                "a frame of a video that is still being read has only zeros, which the model takes for no frame; pass "
                "what the processor gives without streaming, or let it normalize frames"
            )
        return versions.features(core, "get_image_features", pixels[None])


def _present(row: torch.Tensor) -> torch.Tensor:
    """(n,) which of a row's pictures there are; zeros fill it up, but no row that is still being read."""
    if isinstance(row, StreamedPixels):
        return torch.ones(row.shape[0], dtype=torch.bool, device=row.device)
    return (row != 0).flatten(1).any(dim=1)


def _without_filling(row: torch.Tensor) -> torch.Tensor:
    """A row's pictures; no copy where what fills it up stands at its end, as the processor lays it."""
    present = _present(row)
    count = int(present.count_nonzero())
    return row[:count] if bool(present[:count].all()) else row[present]


def _tells_time(lead: list[int]) -> bool:
    """Whether ids end as "00:01:" and two markers do: a colon, two digits, that colon."""
    return len(lead) >= 8 and lead[-6] == lead[-3] and lead[-3] not in lead[-5:-3]
