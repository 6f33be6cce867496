"""What hosts share whose tower sees each frame as a picture of its own: a slice is one frame, a square of tokens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch

from quickprefill import versions
from quickprefill.attention.interface import host_implementation
from quickprefill.errors import InputError, UnsupportedModelError
from quickprefill.hosts.decoder_sizes import decoder_sizes
from quickprefill.hosts.devices import execution_device
from quickprefill.hosts.geometry import Geometry
from quickprefill.hosts.transformers import TransformersHost
from quickprefill.prompt.pending import Encode, PendingVideo
from quickprefill.prompt.spans import Grid

__all__ = ["FramesHost", "patches_along"]

_DECODERS = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe")
"""Decoders that these models come with, and that are known to work; each takes any model of text."""


class FramesHost(TransformersHost):
    """A host with a tower like CLIP's or SigLIP's, and positions of text."""

    vision_mlp_tensors: ClassVar[int] = 2
    """As in Geometry; CLIP's activation takes three."""
    class_tokens: ClassVar[int] = 0
    """Tokens that the tower has beside a frame's patches."""

    @abstractmethod
    def side(self, core: Any) -> int:
        """Tokens along a side of a frame."""

    copies_pixels: ClassVar[bool] = False
    """As in Geometry."""
    axes: ClassVar[tuple[str, ...]]
    """Those of the tensor that brings its pixels."""

    def tower(self, core: Any) -> Any:
        """The vision tower."""
        return core.vision_tower

    def states(self, core: Any) -> int:
        """States behind earlier layers that the tower keeps until its last."""
        return max(core.config.vision_config.num_hidden_layers - 2, 0) if versions.keeps_states() else 0

    def projected(self, core: Any) -> int:
        """Numbers a patch that what follows the tower holds at once: here one layer's in and output, a merged token."""
        return int(2 * core.config.get_text_config().hidden_size / self.merged(core))

    def merged(self, core: Any) -> float:
        """Patches that become one token, and what the tower has beside patches; as in Geometry."""
        return float(patches_along(core.config.vision_config) ** 2 + self.class_tokens) / self.side(core) ** 2

    def check(self, head: Any) -> None:
        super().check(head)
        reason = None if isinstance(head, type) else _odd_decoder(self.core(head))
        if reason is not None:
            raise UnsupportedModelError(f"{type(head).__name__}: {reason}")

    def stock_reason(self, core: Any, call: Mapping[str, Any]) -> str | None:
        return super().stock_reason(core, call) or _odd_decoder(core)

    def pixels(self, call: Mapping[str, Any]) -> torch.Tensor:
        """The tensor that brings the pixels of a call.

        Raises:
            InputError: it has other axes.
        """
        name = self.video_inputs[0]
        pixels = call[name]
        if isinstance(pixels, torch.Tensor) and pixels.ndim == len(self.axes):
            return pixels
        given = tuple(pixels.shape) if isinstance(pixels, torch.Tensor) else type(pixels).__name__
        raise InputError(
            f"{name} must be a tensor ({', '.join(self.axes)}), got {given}; pass what the processor gives with "
            'return_tensors="pt"'
        )

    def tower_device(self, core: Any) -> torch.device:
        """Where the tower runs."""
        return execution_device(self.tower(core))

    def pending(self, core: Any, pixels: torch.Tensor, slice_grid: Grid, encode: Encode, **more: Any) -> PendingVideo:
        """A video of frames (T, channels, height, width), each of which becomes a grid of one slice."""
        return PendingVideo(
            pixels,
            replace(slice_grid, slices=len(pixels)),
            encode,
            width=core.config.get_text_config().hidden_size,
            dtype=core.dtype,
            device=self.tower_device(core),
            **more,
        )

    def frames_per_slice(self, core: Any) -> int:
        return 1

    def geometry(self, core: Any) -> Geometry:
        vision, tower = core.config.vision_config, self.tower(core)
        return Geometry(
            **decoder_sizes(core, self.decoder(core)),
            vision_layers=vision.num_hidden_layers,
            vision_hidden=vision.hidden_size,
            vision_heads=vision.num_attention_heads,
            vision_mlp=vision.intermediate_size,
            vision_mlp_tensors=self.vision_mlp_tensors,
            vision_window=0,
            vision_pictures=True,
            vision_copies=self.copies_pixels,
            vision_states=self.states(core),
            vision_projected=self.projected(core),
            patches_per_token=self.merged(core),
            patch_values=vision.num_channels * _number(vision.patch_size) ** 2,
            vision_device=self.tower_device(core),
            vision_eager=host_implementation(tower.config) == "eager",
        )


def _odd_decoder(core: Any) -> str | None:
    """Why layers of a decoder's kind cannot be run one by one."""
    kind = core.config.get_text_config().model_type
    if kind in _DECODERS:
        return None
    return (
        f"its decoder is a {kind!r}, whose attention may take more than queries, keys and values; known are {_DECODERS}"
    )


def patches_along(vision: Any) -> int:
    """Patches along a side of a frame, from the tower's config."""
    return _number(vision.image_size) // _number(vision.patch_size)


def _number(size: Any) -> int:
    """A size of a square, which some configs give for both sides."""
    return int(size if isinstance(size, int) else size[0])
