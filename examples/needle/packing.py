"""Training batches: one video and many questions in one sequence, each question as if it were the only one.

    <|im_start|>user\\n<|vision_start|> video [<|vision_end|> question 1] [<|vision_end|> question 2] ...
                                              each sees the video up to some slice and itself, never another question

A question behind part of the video is the question about a shorter video: its causal tokens are the same. Every
question sits in a slot of SLOT tokens and takes the positions it has when it is asked alone, so a packed sequence
computes exactly what separate sequences would, for one pass over the video. What stands around the video and between
its slices, and all positions, come from the family's stock processor and model (`Prompts`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from examples.needle.clip import frame_times, through_h264
from examples.needle.families import Family
from examples.needle.paint import FRAME_SIZE, paint
from examples.needle.scene import Difficulty, Scene, sample_scene
from examples.needle.tasks import TASKS, Question, ask
from examples.needle.truth import so_far, visible

__all__ = ["SLOT", "BatchPlan", "Batches", "Prompt", "Prompts", "slot_mask", "slot_positions"]

SLOT = 18
"""Tokens in a question's slot: its words, the turn's end, the assistant's opening, the answer; padding behind."""
_QUESTION = "?"
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

    def __init__(self, family: Family, processor: Any, split: str, count: int, plan: Callable[[int], BatchPlan]):
        self._family, self._tokenizer = family, processor.tokenizer
        self._split, self._count, self._plan = split, count, plan
        _, between, self._after = _wording(processor)
        self._before = family.closing + between
        self._words: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        plan, slice_frames = self._plan(number), self._family.slice_frames
        rng = np.random.default_rng((3, number))
        scenes = [sample_scene(self._split, number * 1000 + clip, plan.difficulty) for clip in range(plan.clips)]
        frames, rows = [], []
        for scene in scenes:
            real = rng.random() < plan.h264
            pixels = through_h264(scene, crf=int(rng.integers(16, 27))) if real else paint(scene, frame_times(scene))
            frames.append(torch.from_numpy(pixels))
            rows.append([self._slot(question, cut // slice_frames) for cut, question in _questions(rng, scene, plan)])
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
            "seconds_per_slice": torch.tensor(slice_frames * plan.difficulty.spacing),
            "visible": torch.from_numpy(np.stack([visible(scene, slice_frames) for scene in scenes])),
            "so_far": torch.from_numpy(np.stack([so_far(scene, slice_frames) for scene in scenes])),
        }

    def _slot(self, question: Question, slices: int) -> tuple[list[int], int, int, int]:
        """(the slot's tokens, where in it the answer is, the task's number, slices of the video that it sees)."""
        parts = (self._before, question.text, self._after, question.answer, "<|im_end|>")
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


@dataclass(frozen=True)
class Prompt:
    """A prompt up to the last slice of its video: what the slots behind it share."""

    tokens: torch.Tensor
    """(S,), the video's placeholders among them."""
    positions: torch.Tensor
    """Rotary positions (P, S)."""
    next_position: int
    """Where what stands behind goes on."""


class Prompts:
    """Prompts as the stock processor and the stock model lay them out."""

    def __init__(self, family: Family, model: Any, processor: Any) -> None:
        self._family, self._core, self._processor = family, model.model, processor
        before, between, after = _wording(processor)
        self._text = before + processor.video_token + between + after
        self._behind = len(processor.tokenizer(family.closing + between + after).input_ids)
        self._known: dict[tuple[int, float], Prompt] = {}

    def prompt(self, num_slices: int, seconds_per_slice: float) -> Prompt:
        """The prompt of a video of that many slices."""
        key = (num_slices, seconds_per_slice)
        if key not in self._known:
            self._known[key] = self._lay_out(*key)
        return self._known[key]

    def _lay_out(self, num_slices: int, seconds_per_slice: float) -> Prompt:
        frames = num_slices * self._family.slice_frames
        fps = self._family.slice_frames / seconds_per_slice
        metadata = {"fps": fps, "frames_indices": list(range(frames)), "total_num_frames": frames}
        inputs = self._processor(
            text=[self._text],
            videos=[torch.zeros(frames, 3, FRAME_SIZE, FRAME_SIZE, dtype=torch.uint8)],
            video_metadata=[metadata],
            do_sample_frames=False,
            return_tensors="pt",
        )
        positions = self._family.positions(self._core, inputs)
        end = positions.shape[1] - self._behind
        return Prompt(inputs["input_ids"][0, :end], positions[:, :end], int(positions[0, end]))


def _wording(processor: Any) -> tuple[str, str, str]:
    """What the chat template puts before the video's placeholder, between it and the question, and behind that."""
    content = [{"type": "video"}, {"type": "text", "text": _QUESTION}]
    turn = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    before, _, rest = text.partition(processor.video_token)
    between, _, after = rest.partition(_QUESTION)
    return before, between, after


def slot_positions(seen: list[Prompt], answer_at: torch.Tensor) -> torch.Tensor:
    """Rotary positions (B, Q, SLOT) of slots that see these prompts, B x Q in a row, and answer at (B, Q).

    From the answer on they are those of generate(), which goes on behind the largest position of the prompt.
    """
    first, largest = (
        torch.tensor(numbers).view_as(answer_at)
        for numbers in ([part.next_position for part in seen], [int(part.positions.max()) for part in seen])
    )
    slot = first[..., None] + torch.arange(SLOT)
    largest = torch.maximum(largest, first + answer_at - 1)[..., None]
    behind = torch.arange(SLOT) - answer_at[..., None]
    return torch.where(behind >= 0, largest + 1 + behind, slot)


def slot_mask(seen: torch.Tensor, shared: int) -> torch.Tensor:
    """(B, Q, SLOT, shared + SLOT) booleans for slots that see the first `seen` (B, Q) shared tokens, and themselves."""
    before = torch.arange(shared) < seen[..., None]
    before = before[:, :, None].expand(-1, -1, SLOT, -1)
    own = torch.ones(SLOT, SLOT).tril().bool().expand(*seen.shape, -1, -1)
    return torch.cat([before, own], dim=-1)
