"""Conversations -> what a model takes, by the stock reader and the stock processor; and the labels of their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from qwen_vl_utils import process_vision_info

from examples.cubes.data import DataError

__all__ = ["Collator", "Media", "model_inputs", "read"]

_IGNORED = -100


class Collator:
    """Rows of `Lines` -> a batch in which only the assistant's answers have labels, with the token that ends each."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """input_ids, pixels and labels.

        Raises:
            DataError: a file cannot be read, or the chat template hides where an answer begins; names the line.
        """
        media = [read(self.processor, row["messages"], row["where"]) for row in rows]
        batch = model_inputs(self.processor, [row["messages"] for row in rows], media)
        labels = torch.full_like(batch["input_ids"], _IGNORED)
        for row, ids, own in zip(rows, batch["input_ids"].tolist(), labels, strict=True):
            for at in _answers(self.processor, row["messages"], ids, row["where"]):
                own[at] = ids[at]
        return {**batch, "labels": labels}


@dataclass
class Media:
    """What the reader made of a conversation's files, in order."""

    images: list[Any] = field(default_factory=list)
    videos: list[tuple[torch.Tensor, Any]] = field(default_factory=list)
    """Frames and metadata."""


def read(processor: Any, messages: list[dict[str, Any]], name: str) -> Media:
    """The images and videos of a conversation, called `name` in errors.

    Raises:
        DataError: one of them cannot be read.
    """
    try:
        images, videos = process_vision_info(
            messages, return_video_metadata=True, image_patch_size=_patch_size(processor) or 14
        )
    except Exception as error:
        raise DataError(f"{name}: {error}") from error
    return Media(images or [], videos or [])


def model_inputs(
    processor: Any, conversations: Sequence[list[dict[str, Any]]], media: Sequence[Media], *, prompt: bool = False
) -> dict[str, Any]:
    """A batch as stock scripts make it; `prompt`: the assistant is to speak next."""
    options: dict[str, Any] = {}
    videos = [video for one in media for video in one.videos]
    images = [image for one in media for image in one.images]
    if videos:
        frames, metadata = zip(*videos, strict=True)
        options |= {"videos": list(frames), "video_metadata": list(metadata), "do_sample_frames": False}
    if images:
        options["images"] = images
    if options:
        options["do_resize"] = _patch_size(processor) is None
    text = [_rendered(processor, messages, prompt) for messages in conversations]
    return dict(processor(text=text, padding=True, return_tensors="pt", **options))


def _patch_size(processor: Any) -> int | None:
    """Where it is known, the reader makes the final size of pictures: in the Qwen families."""
    size: int | None = getattr(processor.video_processor, "patch_size", None)
    return size


def _rendered(processor: Any, messages: list[dict[str, Any]], prompt: bool) -> str:
    text: str = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    return text


def _answers(processor: Any, messages: list[dict[str, Any]], ids: list[int], name: str) -> list[int]:
    """The columns of what the assistant says.

    Found by its tokens from the one that opens its turn, which no other text holds: columns cannot be counted, since
    processors put a run of tokens in the place of each image and video.
    """
    columns, cursor = [], 0
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, asked = (_rendered(processor, messages[:number], prompt) for prompt in (False, True))
        said = _rendered(processor, messages[: number + 1], False)
        turn = processor.tokenizer(said[len(before) :].rstrip(), add_special_tokens=False, return_offsets_mapping=True)
        tokens = turn["input_ids"]
        ends = range(cursor, len(ids) - len(tokens) + 1)
        at = next((start for start in ends if ids[start : start + len(tokens)] == tokens), None)
        if at is None or not (asked.startswith(before) and said.startswith(asked)):
            raise DataError(f"{name}: the chat template does not keep message {number} as an answer after its prompt")
        lead = len(asked) - len(before)
        columns += [at + place for place, (start, _) in enumerate(turn["offset_mapping"]) if start >= lead]
        cursor = at + len(tokens)
    return columns
