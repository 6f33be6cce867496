"""What a host must say about its model. The group loop calls nothing else."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from quickprefill.hosts.geometry import Geometry
from quickprefill.prompt.pending import PendingVideo
from quickprefill.prompt.spans import Grid

__all__ = ["Host", "Row"]


@dataclass(frozen=True)
class Row:
    """One prompt of a batch without its padding."""

    ids: torch.Tensor
    """(S,) token ids, on the CPU, with `video_token_id` where video goes and nowhere else."""
    positions: torch.Tensor
    """(P, S) the host's positions, P = 1 or 3."""
    columns: torch.Tensor
    """(S,) the batch column of each token, on the CPU."""
    videos: tuple[PendingVideo, ...]
    features: torch.Tensor | None
    """(M, C) what stands in the place of the prompt's M tokens of images and audio, in order."""

    def same_as(self, other: Row) -> bool:
        """Whether both are the same prompt, as the copies for several beams are."""
        return (
            self.ids.shape == other.ids.shape
            and torch.equal(self.columns, other.columns)
            and torch.equal(self.ids, other.ids)
            and torch.equal(self.positions, other.positions)
            and len(self.videos) == len(other.videos)
            and all(a.same_as(b) for a, b in zip(self.videos, other.videos, strict=True))
            and (self.features is None or other.features is None or torch.equal(self.features, other.features))
        )


class Host(ABC):
    """Every fact about one host model. It keeps no state.

    `head` is the model with the language-model head, which users have; `core` is the model inside it, which turns ids
    and pixels into hidden states and is where a prefill runs.
    """

    model_type: ClassVar[str]
    """`config.model_type` of the host model."""
    tested: ClassVar[tuple[str, str]]
    """Oldest and newest transformers release that the tests run on."""
    module_name: ClassVar[str]
    """The file of transformers that defines it."""
    head_name: ClassVar[str]
    core_name: ClassVar[str]
    closing_placeholders: ClassVar[int] = 0
    """Video placeholders behind a video's last slice that are no place of it; embed() gives them their vectors."""

    # Whose call it is

    @abstractmethod
    def core(self, head: Any) -> Any:
        """The model inside the head."""

    @abstractmethod
    def check(self, head: Any) -> None:
        """Raise UnsupportedModelError if the installed release, or this model, lacks what the patch needs."""

    @abstractmethod
    def overrides(self, head_class: type) -> dict[str, Callable[..., Any]]:
        """Methods of the head to wrap besides forward(): name -> function(stock method, head, *args, **kwargs)."""

    @abstractmethod
    def has_video(self, core: Any, call: Mapping[str, Any]) -> bool:
        """Whether a core's forward() call, as a dict of its arguments, brings a video."""

    @abstractmethod
    def stock_reason(self, core: Any, call: Mapping[str, Any]) -> str | None:
        """Why this call with a video is left to the stock path, if it cannot be grouped."""

    # What the prompt is

    @abstractmethod
    def rows(self, core: Any, call: Mapping[str, Any]) -> list[Row]:
        """The prompts of a call. Raises InputError if placeholders do not match what comes with them."""

    @abstractmethod
    def grids(self, core: Any, inputs: Mapping[str, Any]) -> list[Grid]:
        """The videos of a processor's output, in order."""

    @abstractmethod
    def named(self, core: Any, ids: torch.Tensor) -> torch.Tensor:
        """Token ids (S,) of one prompt, with `video_token_id` where video goes and nowhere else."""

    @abstractmethod
    def video_token_id(self, core: Any) -> int:
        """The placeholder token of video features."""

    @abstractmethod
    def feature_mask(self, core: Any, ids: torch.Tensor) -> torch.Tensor:
        """Which token ids, of any shape, stand for features among the text: those of images, and of audio."""

    @abstractmethod
    def closing_token_ids(self, core: Any) -> frozenset[int]:
        """Tokens that only end a video: they ask nothing."""

    @abstractmethod
    def frames_per_slice(self, core: Any) -> int:
        """Video frames that the vision tower merges into one temporal slice."""

    # How it computes

    @abstractmethod
    def geometry(self, core: Any) -> Geometry:
        """The model's sizes."""

    @abstractmethod
    def new_layers(self, core: Any) -> list[Any]:
        """The layers of an empty cache, as the host's own cache has them."""

    @abstractmethod
    def norms_keys(self, core: Any) -> bool:
        """Whether the decoder norms its keys (QK norm): all are then about equally long."""

    @abstractmethod
    def attention_config(self, core: Any) -> Any:
        """The config in which the decoder layers look up their attention implementation."""

    @abstractmethod
    def embed(self, core: Any, ids: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
        """Embeddings of what is not video, (n,) -> (n, C); `features` are those that `feature_mask` tells of, in order.

        Rows may be wider than C: what later layers add rides behind the embedding, and layer() hands it on.
        """

    @abstractmethod
    def rotary(self, core: Any, hidden: torch.Tensor, positions: torch.Tensor) -> Any:
        """The rotary embedding of rows (1, n, C) at positions (P, n)."""

    @abstractmethod
    def take_rotary(self, rotary: Any, rows: torch.Tensor) -> Any:
        """The rotary embedding of some of its rows."""

    @abstractmethod
    def no_rotary(self, rotary: Any) -> Any:
        """One that leaves every vector where it is."""

    @abstractmethod
    def decode(self, core: Any, embeds: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The whole decoder as the host runs it without a cache, so as it trains: (B, n, C), or wider -> (B, n, C).

        Args:
            mask: (B, n), 1 where there is no padding.
            positions: (P, B, n).
        """

    @abstractmethod
    def layer(self, core: Any, index: int, hidden: torch.Tensor, rotary: Any, cache: Any) -> torch.Tensor:
        """One decoder layer over (1, n, C); appends its keys and values to the cache."""

    @abstractmethod
    def attention(self, core: Any, index: int, hidden: torch.Tensor, rotary: Any, cache: Any) -> None:
        """A layer's attention alone, over the layer's input (1, n, C)."""

    @abstractmethod
    def observed(self, core: Any, index: int) -> bool:
        """Whether somebody's hook or replacement looks into a layer, so that it must run as a whole."""

    @abstractmethod
    def watch_residual(self, core: Any, index: int) -> contextlib.AbstractContextManager[list[torch.Tensor]]:
        """Collects a layer's hidden states after attention and residual, before the MLP, (1, n, C)."""

    @abstractmethod
    def norm(self, core: Any, hidden: torch.Tensor) -> torch.Tensor:
        """The final norm, (1, n, C)."""

    @abstractmethod
    def output(self, core: Any, hidden: torch.Tensor, cache: Any) -> Any:
        """The core's forward() result for final hidden states (B, n, C)."""
