"""What a host must say about its model. The group loop calls nothing else."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from quickprefill.prompt.pending import PendingVideo
from quickprefill.prompt.spans import Grid

__all__ = ["Geometry", "Host", "Row", "StateLayers"]


@dataclass(frozen=True)
class StateLayers:
    """Layers of linear attention, which hold a state of constant size instead of keys and values."""

    layers: frozenset[int] = frozenset()
    heads: int = 0
    """Of values; fewer heads of keys are shared by several."""
    key_heads: int = 0
    key_dim: int = 0
    value_dim: int = 0
    kernel: int = 0
    """Tokens that the causal convolution before them looks at."""

    @property
    def mixed(self) -> int:
        """Channels of queries, keys and values together, which pass the convolution."""
        return 2 * self.key_heads * self.key_dim + self.heads * self.value_dim

    def nbytes(self, itemsize: int) -> int:
        """Of one layer's state: the convolution's last inputs, and a matrix for each head in float32."""
        return self.mixed * self.kernel * itemsize + 4 * self.heads * self.key_dim * self.value_dim


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
    vision_heads: int
    vision_mlp: int
    vision_mlp_tensors: int
    """How many tensors of that width its MLP holds at once: gate, up and their product, or steps of the activation."""
    vision_window: int
    """Tokens along a side of the tower's windows; 0: it has none."""
    patches_per_token: float
    """Patches of the vision tower that merge into one token; not whole where they are resized."""
    patch_values: int
    """Numbers in a patch."""
    dtype: torch.dtype
    devices: tuple[torch.device, ...]
    """Where each decoder layer runs."""
    vision_device: torch.device
    eager: bool = False
    """Whether the decoder's attention maps are made in memory."""
    vision_eager: bool = False
    """Whether the tower's are."""
    vision_table: bool = False
    """Whether the tower adds positions from a learned table, which it keeps in float32."""
    vision_pictures: bool = False
    """Whether it sees slices as pictures of one batch, without turning queries and keys by position."""
    vision_copies: bool = False
    """Whether it copies pixels even where they lie as it takes them."""
    vision_states: int = 0
    """States behind earlier layers that it keeps until its last."""
    vision_projected: int = 0
    """Numbers a patch that what follows the tower holds at once beside its last states."""
    levels: int = 0
    """Features for later layers that ride behind an embedding, each as wide as it."""
    gated: bool = False
    """Whether queries come with a gate, as wide as they, that scales the attention's output."""
    states: StateLayers = StateLayers()

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one token in one layer."""
        return 2 * self.kv_heads * self.head_dim * self.dtype.itemsize

    def state_bytes(self, layer: int) -> int:
        """Of the state that a layer holds instead of keys and values; 0: it holds those."""
        return self.states.nbytes(self.dtype.itemsize) if layer in self.states.layers else 0


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
