"""Training batches: one video and many questions in one sequence, each question as if it were the only one.

    <|im_start|>user\\n<|vision_start|> video [<|vision_end|> question 1] [<|vision_end|> question 2] ...
                                              each sees the video up to some slice and itself, never another question

A question behind part of the video is the question about a shorter video: its causal tokens are the same. Every
question sits in a slot of SLOT tokens and takes the positions it has when it is asked alone, so a packed sequence
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
from examples.needle.scene import Difficulty, Scene, sample_scene
from examples.needle.tasks import TASKS, Question, ask
from examples.needle.truth import so_far, visible

__all__ = ["PREFIX", "SLOT", "BatchPlan", "Batches", "packed_positions", "slot_mask"]

SLOT = 18
"""Tokens in a question's slot: its words, the turn's end, the assistant's opening, the answer; padding behind."""
PREFIX = "<|im_start|>user\n<|vision_start|>"
_BEFORE = "<|vision_end|>"
_AFTER = "<|im_end|>\n<|im_start|>assistant\n"
_MERGED = FRAME_SIZE // 28
_SHORTEST_CUT = 8
_TIMES = 4


@dataclass(frozen=True)
class BatchPlan:
    """What one training step sees."""

    clips: int
    difficulty: Difficulty
    h264: float = 0.25
    """Share of the clips that go through the codec."""
    cuts: int = 0
    """How many times to ask also about the beginning of a clip, up to a random slice."""
    questions: int | None = None
    """How many to ask about a clip, drawn from all that it can answer; None is all."""


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
        scenes = [sample_scene(self._split, number * 1000 + clip, plan.difficulty) for clip in range(plan.clips)]
        frames, rows = [], []
        for scene in scenes:
            real = rng.random() < plan.h264
            pixels = through_h264(scene, crf=int(rng.integers(16, 27))) if real else paint(scene, frame_times(scene))
            frames.append(torch.from_numpy(pixels))
            rows.append([self._slot(question, cut // 2) for cut, question in _questions(rng, scene, plan)])
        most = max(map(len, rows))
        rows = [row + [_uncounted(row[-1])] * (most - len(row)) for row in rows]
        tokens, answer_at, task, slices = (
            torch.tensor([[slot[part] for slot in row] for row in rows]) for part in range(4)
        )
        return {
            "frames": torch.stack(frames),
            "tokens": tokens,
            "answer_at": answer_at,
            "task": task,
            "slices": slices,
            "seconds_per_slice": torch.tensor(2 * plan.difficulty.spacing),
            "visible": torch.from_numpy(np.stack([visible(scene) for scene in scenes])),
            "so_far": torch.from_numpy(np.stack([so_far(scene) for scene in scenes])),
        }

    def _slot(self, question: Question, slices: int) -> tuple[list[int], int, int, int]:
        """(the slot's tokens, where in it the answer is, the task's number, slices of the video that it sees)."""
        parts = (_BEFORE, question.text, _AFTER, question.answer, "<|im_end|>")
        tokens = [token for part in parts for token in self._encode(part)]
        if len(tokens) > SLOT:
            raise ValueError(f"{question.text!r} takes {len(tokens)} tokens, more than the {SLOT} of a slot")
        padding = [self._tokenizer.pad_token_id] * (SLOT - len(tokens))
        return tokens + padding, len(tokens) - 2, TASKS.index(question.task), slices

    def _encode(self, text: str) -> list[int]:
        if text not in self._words:
            self._words[text] = self._tokenizer(text).input_ids
        return self._words[text]


def _uncounted(slot: tuple[list[int], int, int, int]) -> tuple[list[int], int, int, int]:
    """A slot that fills a row up: its task is -1, which counts for nothing."""
    return (*slot[:2], -1, slot[3])


def _questions(rng: np.random.Generator, scene: Scene, plan: BatchPlan) -> list[tuple[int, Question]]:
    """(frames of the clip that are seen, question) pairs."""
    frames = scene.difficulty.frames
    if not plan.cuts:
        asked = [(frames, question) for question in ask(scene)]
    else:
        asked = [(frames, question) for question in ask(scene, times=_TIMES)]
        clear = [cut for cut in range(_SHORTEST_CUT, frames, 2) if scene.is_clear_at(cut)]
        for cut in rng.permutation(clear)[: plan.cuts].tolist():
            # What is seen all along is asked once, behind the whole clip.
            asked += [(cut, q) for q in ask(scene.cut(cut), times=_TIMES) if q.task != "state"]
    if plan.questions is None or plan.questions >= len(asked):
        return asked
    return [asked[number] for number in rng.permutation(len(asked))[: plan.questions].tolist()]


def packed_positions(
    slices: torch.Tensor, answer_at: torch.Tensor, num_slices: int, seconds_per_slice: float, tokens_per_second: float
) -> torch.Tensor:
    """Rotary positions (3, B, S) of packed sequences, for slots that see `slices` (B, Q) and answer at (B, Q).

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
    shared = torch.cat([torch.arange(prefix).expand(3, -1), video], dim=1)
    slot = torch.arange(SLOT) + prefix + _MERGED
    largest = torch.maximum(time[slices - 1], slot[0] + answer_at - 1)[..., None]
    behind = torch.arange(SLOT) - answer_at[..., None]
    slots = torch.where(behind >= 0, largest + 1 + behind, slot).flatten(1)
    batch = answer_at.shape[0]
    return torch.cat([shared[:, None].expand(3, batch, -1), slots.expand(3, batch, -1)], dim=2)


def slot_mask(slices: torch.Tensor, num_slices: int) -> torch.Tensor:
    """(B, Q, SLOT, shared + SLOT) booleans for slots that see `slices` (B, Q): a part of the video, then themselves."""
    seen = torch.arange(4 + num_slices * _MERGED**2) < 4 + slices[..., None] * _MERGED**2
    seen = seen[:, :, None].expand(-1, -1, SLOT, -1)
    own = torch.ones(SLOT, SLOT).tril().bool().expand(*slices.shape, -1, -1)
    return torch.cat([seen, own], dim=-1)
