"""What the suite asks of a model family: its stock classes in a tiny size, and what differs when batches are packed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from transformers import PreTrainedTokenizerFast

__all__ = ["SLICE_TOKENS", "Family"]

SLICE_TOKENS = 4
"""Tokens of a slice in every tiny model: 2 x 2."""


class Family(ABC):
    """Facts about one family. A `core` is `model.model`, an `inputs` what the family's stock processor returned."""

    title: ClassVar[str]
    """The family's name for people."""
    head: ClassVar[Any]
    """The stock class of the model."""
    chat_template: ClassVar[str]
    special_tokens: ClassVar[tuple[str, ...]]
    frames: ClassVar[str]
    """A sentence of the model card: what becomes of frames, and how clips are given."""
    seconds: ClassVar[tuple[str, ...]] = (" {}",)
    """How a prompt spells a number of seconds; each spelling is a token of its own."""
    words: ClassVar[tuple[str, ...]] = ()
    """What else the tokenizer knows whole."""
    slice_frames: ClassVar[int] = 2
    """Frames that the tower puts together."""
    spacing: ClassVar[float | None] = None
    """The only number of seconds between frames that can be trained, where nothing tells the model what it is."""
    closing: ClassVar[str] = ""
    """What the processor puts behind the last slice, as the prompt's text."""

    @abstractmethod
    def processor(self, tokenizer: PreTrainedTokenizerFast) -> Any:
        """The stock processor, with sizes that make SLICE_TOKENS tokens of a slice."""

    @abstractmethod
    def config(self, tokenizer: PreTrainedTokenizerFast, **text: Any) -> Any:
        """The tiny model's config; `text` overrides values of the decoder's."""

    @abstractmethod
    def radians_per_second(self, model: Any) -> torch.Tensor:
        """Frequencies (F,) of the curve on which the words of the seconds start: by how much a second turns each.

        Where positions tell the time they are those of the rotary embedding.
        """

    @abstractmethod
    def positions(self, core: Any, inputs: Any) -> torch.Tensor:
        """Rotary positions (P, S) that generate() gives a prompt; P is 1 or 3."""

    @abstractmethod
    def encode(self, core: Any, inputs: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The tower's tokens (B, N, C) of B equally long videos, and those that later layers add to them."""

    def embed(self, core: Any, tokens: torch.Tensor) -> torch.Tensor:
        """Vectors (B, S, C) of what stands behind the video, tokens (B, S)."""
        return core.get_input_embeddings()(tokens)

    def later(self, levels: list[torch.Tensor], is_video: torch.Tensor) -> dict[str, Any]:
        """Arguments of the decoder for `levels` of encode(); `is_video` (B, S) says where they go."""
        return {}

    def hasten(self, model: Any) -> None:
        """Replace what is slow in training by something that computes the same."""
        return


def text_config(tokenizer: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    """The decoder's sizes, the same for all families; Qwen2.5-VL-7B's stand beside them."""
    return {
        "vocab_size": len(tokenizer),  # 152064
        "hidden_size": 128,  # 3584
        "intermediate_size": 384,  # 18944
        "num_hidden_layers": 6,  # 28
        "num_attention_heads": 4,  # 28
        "num_key_value_heads": 2,  # 4
        "max_position_embeddings": 32768,  # 128000
        "initializer_range": 0.05,  # 0.02
        "bos_token_id": None,
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        "pad_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        **more,
    }
