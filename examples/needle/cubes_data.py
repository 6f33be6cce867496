"""Clips of uneven density for models that are trained and asked as users do: stock processor, one question a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from examples.needle.bursts import sample_bursts
from examples.needle.clip import frame_times, through_h264
from examples.needle.paint import paint
from examples.needle.scene import Difficulty, Scene, sample_scene
from examples.needle.tasks import Question, ask

__all__ = ["FRAMES", "SETS", "Clips", "Prompts", "scene"]

FRAMES = 64
SETS: dict[str, tuple[int, ...]] = {"one stretch": (16,), "two stretches": (8, 8), "anywhere": ()}
"""Where things happen: name -> frames of each stretch; none: anywhere in the clip."""
_SPACING_SECONDS = 0.5
_ANSWER_TOKENS = 2
"""Of a row, that count: the answer, and the end of the turn."""


def scene(split: str, number: int, stretches: Sequence[int]) -> Scene:
    """Clip `number` of a split; every other one shows one symbol instead of two, as in the test suite."""
    difficulty = Difficulty(frames=FRAMES, spacing=_SPACING_SECONDS, lone=number % 2 == 0)
    if stretches:
        return sample_bursts(split, number, difficulty, stretches)
    return sample_scene(split, number, difficulty)


@dataclass(frozen=True)
class Clips(Dataset[tuple[np.ndarray, list[Question]]]):
    """Training clip n, of each of SETS in turn, the same every time: its frames, and some questions about it."""

    count: int
    seed: int
    questions: int = 4
    h264: float = 0.1
    """Share of the clips that go through the codec."""

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[np.ndarray, list[Question]]:
        if number >= self.count:
            raise IndexError(number)
        rng = np.random.default_rng((6, self.seed, number))
        own = scene("train", self.seed * 1_000_000 + number, list(SETS.values())[number % len(SETS)])
        pixels = through_h264(own, crf=int(rng.integers(16, 27))) if rng.random() < self.h264 else None
        asked = ask(own)
        chosen = rng.permutation(len(asked))[: self.questions].tolist()
        return paint(own, frame_times(own)) if pixels is None else pixels, [asked[place] for place in chosen]


class Prompts:
    """Model inputs from a stock processor, as a collator of a stock Trainer."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, clips: Sequence[tuple[np.ndarray, list[Question]]]) -> dict[str, torch.Tensor]:
        """A row for each question about each clip, with labels at its answer only."""
        rows = [(pixels, question, True) for pixels, asked in clips for question in asked]
        inputs = self._inputs(rows)
        labels = torch.full_like(inputs["input_ids"], -100)
        labels[:, -_ANSWER_TOKENS:] = inputs["input_ids"][:, -_ANSWER_TOKENS:]
        return {**inputs, "labels": labels}

    def questions(self, pixels: np.ndarray, asked: Sequence[Question]) -> dict[str, torch.Tensor]:
        """A row for each question about one clip, up to where the model answers."""
        return self._inputs([(pixels, question, False) for question in asked])

    def answer_ids(self, asked: Sequence[Question]) -> torch.Tensor:
        """The token that answers each question."""
        return torch.tensor([self._processor.tokenizer(question.answer).input_ids[0] for question in asked])

    def _inputs(self, rows: Sequence[tuple[np.ndarray, Question, bool]]) -> dict[str, torch.Tensor]:
        texts = [self._text(question, answered) for _, question, answered in rows]
        metadata = {"fps": 1 / _SPACING_SECONDS, "frames_indices": list(range(FRAMES)), "total_num_frames": FRAMES}
        inputs = self._processor(
            text=texts,
            videos=[torch.from_numpy(pixels).permute(0, 3, 1, 2) for pixels, _, _ in rows],
            video_metadata=[metadata] * len(rows),
            do_sample_frames=False,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        return dict(inputs)

    def _text(self, question: Question, answered: bool) -> str:
        content = [{"type": "video"}, {"type": "text", "text": question.text}]
        turns = [{"role": "user", "content": content}]
        text: str = self._processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return f"{text}{question.answer}<|im_end|>" if answered else text
