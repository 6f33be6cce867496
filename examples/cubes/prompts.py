"""Conversations -> what a model takes, by the stock reader and the stock processor; and the labels of their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from qwen_vl_utils import process_vision_info

from examples.cubes.data import DataError

__all__ = ["Collator", "model_inputs"]

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
        batch = model_inputs(self.processor, [row["messages"] for row in rows], [row["where"] for row in rows])
        labels = torch.full_like(batch["input_ids"], _IGNORED)
        for row, ids, own in zip(rows, batch["input_ids"].tolist(), labels, strict=True):
            for at in _answers(self.processor, row["messages"], ids, row["where"]):
                own[at] = ids[at]
        return {**batch, "labels": labels}


def model_inputs(
    processor: Any, conversations: Sequence[list[dict[str, Any]]], names: Sequence[str], *, prompt: bool = False
) -> dict[str, Any]:
    """A batch as stock scripts make it.

    Args:
        names: what each conversation is called in errors.
        prompt: whether the assistant is to speak next.

    Raises:
        DataError: an image or a video cannot be read.
    """
    patch_size = getattr(processor.video_processor, "patch_size", None)  # where the reader makes the final size
    images: list[Any] = []
    videos: list[Any] = []
    options: dict[str, Any] = {}
    for messages, name in zip(conversations, names, strict=True):
        try:
            own_images, own_videos, options = process_vision_info(
                messages, return_video_kwargs=True, return_video_metadata=True, image_patch_size=patch_size or 14
            )
        except Exception as error:
            raise DataError(f"{name}: {error}") from error
        images += own_images or ()
        videos += own_videos or ()
    if videos:
        frames, metadata = zip(*videos, strict=True)
        options |= {"videos": list(frames), "video_metadata": list(metadata)}
    if images:
        options["images"] = images
    if images or videos:
        options["do_resize"] = patch_size is None
    return dict(
        processor(
            text=[_rendered(processor, messages, prompt) for messages in conversations],
            padding=True,
            return_tensors="pt",
            **options,
        )
    )


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
