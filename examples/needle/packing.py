"""Training batches: one video and all its questions in one sequence, each question as if it were the only one.

    <|im_start|>user\\n<|vision_start|> video <|vision_end|> [question 1] [question 2] ...
                                                            each sees the video and itself, never another question

Every question sits in a slot of SLOT tokens and takes the positions it has when it is asked alone, so a packed sequence
computes exactly what separate sequences would, for one pass over the video.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from examples.needle.checkpoint import FRAME_SIZE
from examples.needle.clip import frame_times, through_h264
from examples.needle.paint import paint
from examples.needle.scene import Difficulty, sample_scene
from examples.needle.tasks import TASKS, Question, ask

__all__ = ["SLOT", "BatchPlan", "Batches", "packed_mask", "packed_positions"]

SLOT = 17
"""Tokens in a question's slot: its words, the turn's end, the assistant's opening, the answer; padding behind."""
PREFIX = "<|im_start|>user\n<|vision_start|>"
_AFTER = "<|im_end|>\n<|im_start|>assistant\n"
_TOKENS_PER_FRAME = (FRAME_SIZE // 28) ** 2 // 2
_MERGED = FRAME_SIZE // 28


@dataclass(frozen=True)
class BatchPlan:
    """What one training step sees."""

    clips: int
    difficulty: Difficulty
    h264: float = 0.25
    """Share of the clips that go through the codec."""
    quick: int | None = None
    """How many of the questions that are learnt early (state and time) to ask about a clip; None is all."""
    skip: tuple[str, ...] = ()
    """Tasks not asked for."""


class Batches(Dataset[dict[str, torch.Tensor]]):
    """Batch number n of a split, the same every time; a plan may depend on n. Use with batch_size=None."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, split: str, count: int, plan: Callable[[int], BatchPlan]):
        self._tokenizer, self._split, self._count, self._plan = tokenizer, split, count, plan
        self._words: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        plan = self._plan(number)
        rng = np.random.default_rng((3, number))
        frames, rows = [], []
        for clip in range(plan.clips):
            scene = sample_scene(self._split, number * 1000 + clip, plan.difficulty)
            real = rng.random() < plan.h264
            pixels = through_h264(scene, crf=int(rng.integers(16, 27))) if real else paint(scene, frame_times(scene))
            frames.append(torch.from_numpy(pixels))
            chosen = _choose(rng, ask(scene), plan)
            rows.append([self._slot(question.task, question.text, question.answer) for question in chosen])
        most = max(map(len, rows))
        rows = [row + [row[-1][:2] + (-1,)] * (most - len(row)) for row in rows]  # task -1: counts for nothing
        return {
            "frames": torch.stack(frames),
            "tokens": torch.tensor([[slot[0] for slot in row] for row in rows]),
            "answer_at": torch.tensor([[slot[1] for slot in row] for row in rows]),
            "task": torch.tensor([[slot[2] for slot in row] for row in rows]),
            "seconds_per_slice": torch.tensor(2 * plan.difficulty.spacing),
        }

    def _slot(self, task: str, text: str, answer: str) -> tuple[list[int], int, int]:
        """(the slot's tokens, where in it the answer is, the task's number)."""
        tokens = self._encode(text) + self._encode(_AFTER) + self._encode(answer) + self._encode("<|im_end|>")
        if len(tokens) > SLOT:
            raise ValueError(f"{text!r} takes {len(tokens)} tokens, more than the {SLOT} of a slot")
        padding = [self._tokenizer.pad_token_id] * (SLOT - len(tokens))
        return tokens + padding, len(tokens) - 2, TASKS.index(task)

    def _encode(self, text: str) -> list[int]:
        if text not in self._words:
            self._words[text] = self._tokenizer(text).input_ids
        return self._words[text]


def _choose(rng: np.random.Generator, questions: list[Question], plan: BatchPlan) -> list[Question]:
    """The questions that the plan wants asked."""
    early = [question for question in questions if question.task in ("state", "time")]
    late = [question for question in questions if question not in early and question.task not in plan.skip]
    if plan.quick is None or plan.quick >= len(early):
        return late + early
    return late + [early[number] for number in rng.permutation(len(early))[: plan.quick].tolist()]


def packed_positions(
    num_slices: int, answer_at: torch.Tensor, seconds_per_slice: float, tokens_per_second: float
) -> torch.Tensor:
    """Rotary positions (3, B, S) of packed sequences, for answers at (B, Q) in their slots.

    They are those of `get_rope_index` for each question alone; from the answer on, those of generate(), which goes on
    behind the largest position of the prompt.
    """
    prefix = 4
    time = (torch.arange(num_slices) * (tokens_per_second * seconds_per_slice)).long() + prefix
    row, column = torch.meshgrid(torch.arange(_MERGED), torch.arange(_MERGED), indexing="ij")
    per_slice = _MERGED**2
    video = torch.stack(
        [
            time.repeat_interleave(per_slice),
            row.flatten().repeat(num_slices) + prefix,
            column.flatten().repeat(num_slices) + prefix,
        ]
    )
    head = torch.cat([torch.arange(prefix).expand(3, -1), video, torch.full((3, 1), prefix + _MERGED)], dim=1)
    slot = torch.arange(SLOT) + prefix + _MERGED + 1
    largest = torch.maximum(time[-1], slot[0] + answer_at - 1)[..., None]
    behind = torch.arange(SLOT) - answer_at[..., None]
    slots = torch.where(behind >= 0, largest + 1 + behind, slot).flatten(1)
    batch = answer_at.shape[0]
    return torch.cat([head[:, None].expand(3, batch, -1), slots.expand(3, batch, -1)], dim=2)


def packed_mask(num_shared: int, num_slots: int) -> torch.Tensor:
    """(1, 1, S, S) booleans: causal, and no slot sees another slot."""
    length = num_shared + num_slots * SLOT
    causal = torch.ones(length, length).tril().bool()
    slot = torch.cat([torch.full((num_shared,), -1), torch.arange(num_slots).repeat_interleave(SLOT)])
    same = (slot[:, None] == slot) | (slot == -1)
    return (causal & same)[None, None]
