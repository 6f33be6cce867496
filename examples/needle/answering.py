"""Asking a model about a clip file: stock reader, stock processor, stock generate(), whatever is patched onto them.

Models whose processor says its patch size (the Qwen families) get their clips through qwen-vl-utils, all others through
transformers' own loading, as their users would.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from qwen_vl_utils import process_vision_info
from transformers import AutoModelForImageTextToText, AutoProcessor

from examples.needle.tasks import Question

__all__ = ["Answer", "Answerer", "CheckpointError", "Video"]

_MAX_NEW_TOKENS = 4


class CheckpointError(ValueError):
    """A checkpoint that cannot be asked about videos."""


@dataclass(frozen=True)
class Video:
    """What the reader made of a clip: frames (T, 3, H, W) and the metadata that the processor wants."""

    message: dict[str, Any]
    frames: torch.Tensor
    metadata: Any
    options: dict[str, Any]

    def noise(self, seed: int) -> Video:
        """The same video with every pixel replaced by noise: what a blind model would see."""
        generator = torch.Generator().manual_seed(seed)
        frames = torch.randint(0, 256, self.frames.shape, generator=generator).to(self.frames.dtype)
        return Video(self.message, frames, self.metadata, self.options)


@dataclass(frozen=True)
class Answer:
    """What a model said, and how many bytes of keys and values it had stored by then."""

    text: str
    cache_bytes: int

    def says(self, answer: str) -> bool:
        """Whether the first word is the wanted one."""
        words = self.text.lower().replace(".", " ").replace(",", " ").split()
        return bool(words) and words[0] == answer


class Answerer:
    """A checkpoint and its processor."""

    def __init__(self, folder: str, *, frame_size: int, device: str = "cpu", dtype: str = "auto") -> None:
        """Load a local folder or a hub name.

        Raises:
            CheckpointError: it takes no videos, or no frames of `frame_size` pixels a side.
        """
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).to(device).eval()
        self.frame_size = frame_size
        token = getattr(self.model.config, "video_token_id", None)
        if token is None or getattr(self.processor, "video_processor", None) is None:
            raise CheckpointError(
                f"{folder} (model_type {self.model.config.model_type!r}) has no video token or no video processor, so "
                "it cannot be asked about clips; pass a video model such as a Qwen2.5-VL checkpoint with --model"
            )
        self._patch_size = getattr(self.processor.video_processor, "patch_size", None)
        if self._patch_size is None:
            height, width = (self.processor.video_processor.size[side] for side in ("height", "width"))
            if (height, width) != (frame_size, frame_size):
                raise CheckpointError(
                    f"the processor of {folder} brings every frame to {height} x {width} pixels, not to "
                    f"{frame_size} x {frame_size}; pass --frame-size {height}"
                )

    @property
    def num_layers(self) -> int:
        """Decoder layers of the model."""
        return int(self.model.config.get_text_config().num_hidden_layers)

    def watch(self, path: Path, frames: int) -> Video:
        """Read `frames` frames of a clip."""
        if self._patch_size is None:
            return self._load(path, frames)
        size = {"resized_height": self.frame_size, "resized_width": self.frame_size}
        part = {"type": "video", "video": str(path), "nframes": frames, **size}
        _, videos, options = process_vision_info(
            [{"role": "user", "content": [part]}],
            return_video_kwargs=True,
            return_video_metadata=True,
            image_patch_size=self._patch_size,
        )
        ((pixels, metadata),) = videos
        return Video(part, pixels, metadata, options)

    def _load(self, path: Path, frames: int) -> Video:
        """What apply_chat_template() does of itself for a path and num_frames."""
        processor = self.processor.video_processor
        pixels, metadata = processor.fetch_videos(
            str(path), sample_indices_fn=functools.partial(processor.sample_frames, num_frames=frames)
        )
        message = {"type": "video", "path": str(path)}
        return Video(message, torch.as_tensor(pixels), metadata, {"do_sample_frames": False})

    def prepare(self, video: Video, question: Question) -> Any:
        """Model inputs for one question; they may be answered any number of times."""
        content = [video.message, {"type": "text", "text": question.text}]
        prompt = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        return self.processor(
            text=[prompt],
            videos=[video.frames],
            video_metadata=[video.metadata],
            return_tensors="pt",
            **video.options,
        ).to(self.model.device)

    def answer(self, inputs: Any, *, max_new_tokens: int = _MAX_NEW_TOKENS) -> Answer:
        """One greedy generate() call."""
        output = self.model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, return_dict_in_generate=True
        )
        tokens = output.sequences[:, inputs["input_ids"].shape[1] :]
        stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in output.past_key_values.layers)
        return Answer(self.processor.batch_decode(tokens, skip_special_tokens=True)[0].strip(), stored)
