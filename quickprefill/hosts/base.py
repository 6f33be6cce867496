"""What a family must know of its host model. The prefill loop calls nothing else."""

from __future__ import annotations

import contextlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from quickprefill.prompt.pending import PendingVideo
from quickprefill.prompt.spans import Grid

__all__ = ["Family", "Geometry", "Row", "bind", "execution_device"]


@dataclass(frozen=True)
class Geometry:
    """Sizes of a host model that memory and work depend on."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vision_layers: int
    vision_hidden: int
    vision_mlp: int
    patches_per_token: int
    """Patches of the vision tower that merge into one token."""
    patch_values: int
    """Numbers in a patch."""
    dtype: torch.dtype

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one token in one layer."""
        return 2 * self.kv_heads * self.head_dim * self.dtype.itemsize


@dataclass(frozen=True)
class Row:
    """One prompt of a batch without its padding."""

    ids: torch.Tensor
    """(S,) token ids."""
    positions: torch.Tensor
    """(3, S) the host's positions."""
    columns: torch.Tensor
    """(S,) the batch column of each token, on the CPU."""
    videos: tuple[PendingVideo, ...]
    images: torch.Tensor | None
    """(M, C) features of the prompt's M image tokens in order."""

    def same_as(self, other: Row) -> bool:
        """Whether both are the same prompt, as the copies for several beams are."""
        return (
            self.ids.shape == other.ids.shape
            and torch.equal(self.columns, other.columns)
            and torch.equal(self.ids, other.ids)
            and torch.equal(self.positions, other.positions)
            and all(a.same_as(b) for a, b in zip(self.videos, other.videos, strict=True))
            and (self.images is None or other.images is None or torch.equal(self.images, other.images))
        )


class Family(ABC):
    """Every fact about one host model. Methods are static in effect: a family keeps no state."""

    model_type: ClassVar[str]
    """`config.model_type` of the host model."""
    tested: ClassVar[tuple[str, str]]
    """Oldest and newest transformers release that the tests run on."""

    @abstractmethod
    def host_class(self) -> type[torch.nn.Module]:
        """The host's class with the language-model head; imports the host's module."""

    @abstractmethod
    def check_seams(self, host: Any) -> None:
        """Raise UnsupportedModelError if the host, a model or its class, lacks what the patch needs."""

    @abstractmethod
    def overrides(self) -> dict[str, Callable[..., Any]]:
        """Methods of the host to wrap besides forward(): name -> function(stock method, model, *args, **kwargs)."""

    @abstractmethod
    def frames_per_slice(self, model: Any) -> int:
        """Video frames that the vision tower merges into one temporal slice."""

    @abstractmethod
    def video_token_id(self, model: Any) -> int:
        """The placeholder token of video features."""

    @abstractmethod
    def num_layers(self, model: Any) -> int:
        """Decoder layers, which is also the number of cache layers."""

    @abstractmethod
    def device(self, model: Any) -> torch.device:
        """Where the decoder runs, its first layers if there are several places."""

    @abstractmethod
    def geometry(self, model: Any) -> Geometry:
        """The model's sizes."""

    @abstractmethod
    def grids(self, model: Any, inputs: Any) -> list[Grid]:
        """The videos of a processor's output, in order."""

    @abstractmethod
    def has_video(self, call: dict[str, Any]) -> bool:
        """Whether a forward() call, as a dict of its arguments, brings a video."""

    @abstractmethod
    def stock_reason(self, model: Any, call: dict[str, Any]) -> str | None:
        """Why this call with a video is left to the stock path, if the family cannot group it."""

    @abstractmethod
    def rows(self, model: Any, call: dict[str, Any]) -> list[Row]:
        """The prompts of a call. Raises InputError if placeholders do not match what comes with them."""

    @abstractmethod
    def position_ids(self, model: Any, call: dict[str, Any]) -> torch.Tensor:
        """The host's own positions for all columns of a call, (3, B, S)."""

    @abstractmethod
    def embed(self, model: Any, ids: torch.Tensor, images: torch.Tensor | None) -> torch.Tensor:
        """Embeddings of text and image tokens, (n,) -> (n, C); `images` are the features of the image tokens in it."""

    @abstractmethod
    def image_token_id(self, model: Any) -> int:
        """The placeholder token of image features."""

    @abstractmethod
    def attention_config(self, model: Any) -> Any:
        """The config in which the decoder layers look up their attention implementation."""

    @abstractmethod
    def rotary(self, model: Any, hidden: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine, (B, n, D) each, for (3, B, n) positions."""

    @abstractmethod
    def layer(self, model: Any, index: int, hidden: torch.Tensor, rotary: Any, mask: Any, cache: Any) -> torch.Tensor:
        """One decoder layer over (B, n, C); appends its keys and values to the cache."""

    @abstractmethod
    def store(self, model: Any, index: int, hidden: torch.Tensor, rotary: Any, cache: Any) -> None:
        """What layer() appends to the cache, without the rest of the layer."""

    @abstractmethod
    def watched(self, model: Any, index: int) -> bool:
        """Whether somebody's hooks look into a layer, so that it must run as a whole."""

    @abstractmethod
    def norm(self, model: Any, hidden: torch.Tensor) -> torch.Tensor:
        """The final norm, (B, n, C)."""

    @abstractmethod
    def queries_and_keys(
        self, model: Any, index: int, hidden: torch.Tensor, rotary: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries (1, H, n, D) and keys (1, K, n, D) of a layer for its input (1, n, C); `rotary` None: without it."""

    @abstractmethod
    def watch_residual(self, model: Any, index: int) -> contextlib.AbstractContextManager[list[torch.Tensor]]:
        """Collects a layer's hidden states after attention and residual, before the MLP, (1, n, C)."""

    @abstractmethod
    def output(self, model: Any, hidden: torch.Tensor, cache: Any, return_dict: bool | None) -> Any:
        """The host's forward() result for final hidden states (B, W, C); None: as the model's config says."""


def bind(method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments by name, extra keyword arguments included."""
    if not args:
        return dict(kwargs)
    bound = inspect.signature(method).bind(*args, **kwargs).arguments
    return {**{name: value for name, value in bound.items() if name != "kwargs"}, **bound.get("kwargs", {})}


def execution_device(module: torch.nn.Module) -> torch.device:
    """Where a module's inputs go, also where accelerate brings its weights only for the call."""
    hooks = (getattr(part, "_hf_hook", None) for part in module.modules())
    devices = (getattr(hook, "execution_device", None) for hook in hooks)
    device = next((device for device in devices if device is not None), None)
    return torch.device(next(module.parameters()).device if device is None else device)
