"""Train a family's tiny model from scratch, on clips rendered as it goes. Resumes where it stopped.

python -m examples.needle.train --output examples/tiny-qwen2.5-vl
python -m examples.needle.train --family qwen3_vl --output tiny-qwen3-vl
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm import tqdm

from examples.needle.card import model_card, plot_curves
from examples.needle.checkpoint import build_model, build_processor, save
from examples.needle.families import FAMILIES, Family
from examples.needle.packed_model import PackedModel
from examples.needle.packing import Batches, BatchPlan
from examples.needle.scene import Difficulty
from examples.needle.tasks import TASKS

CLIPS = {8: 12, 16: 8, 32: 6, 64: 4}
"""Frames -> clips in a batch."""
SPACINGS = (0.25, 0.5, 0.5, 0.5, 1.0, 1.0, 2.0, 2.0, 4.0, 8.0)
"""Seconds between frames. Wide ones let few frames reach the positions that long videos have."""
QUESTIONS = 20
"""Questions about a clip."""


@dataclass(frozen=True)
class Stage:
    """What is drawn from up to step `until`."""

    until: float
    lengths: tuple[int, ...]
    spacings: tuple[float, ...]
    distractors: int


CURRICULUM = (
    Stage(500, (8,), (0.5,), 0),
    Stage(1200, (8, 16), (0.5, 0.5, 1.0), 1),
    Stage(2000, (8, 16, 32), (0.5, 0.5, 1.0, 2.0), 2),
    Stage(math.inf, (8, 16, 32, 32, 64, 64), SPACINGS, 2),
)
"""Short clips first: what cannot be found among four slices will not be found among thirty-two."""
LONE = 0.3
"""Share of the batches in whose clips only one of the two symbols appears."""
VALIDATION_LENGTHS = (16, 32, 64)


def plan(family: Family, step: int) -> BatchPlan:
    """What training step `step` sees: drawn from its number, so that a resumed run sees the same."""
    rng = np.random.default_rng((4, step))
    stage = next(stage for stage in CURRICULUM if step < stage.until)
    frames, spacing = int(rng.choice(stage.lengths)), float(rng.choice(stage.spacings))
    distractors = int(rng.integers(0, stage.distractors + 1))
    difficulty = Difficulty(frames, family.spacing or spacing, distractors=distractors, lone=bool(rng.random() < LONE))
    return BatchPlan(CLIPS[frames], difficulty, h264=0.2, cuts=3, questions=QUESTIONS)


def validation_plan(number: int) -> BatchPlan:
    """Batch `number` of the validation set: each length, with one symbol and with two, all through H.264."""
    turn, place = divmod(number, len(VALIDATION_LENGTHS))
    return BatchPlan(16, Difficulty(frames=VALIDATION_LENGTHS[place], lone=turn % 2 == 0), h264=1.0)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--family", choices=sorted(FAMILIES), default="qwen2_5_vl")
    parser.add_argument("--work", type=Path, help="folder to resume from (default: .cache/needle/FAMILY)")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--stop-at", type=int, help="stop at this step, to be resumed later")
    parser.add_argument("--workers", type=int, default=1, help="processes that render clips")
    parser.add_argument("--validation", type=int, default=6, help="batches in the validation set")
    parser.add_argument("--mixed-precision", choices=("no", "bf16"), default="no")
    arguments = parser.parse_args(argv)
    arguments.work = arguments.work or Path(".cache/needle") / arguments.family
    return arguments


def main(argv: list[str] | None = None) -> None:
    """Train, or go on training."""
    arguments = parse_arguments(argv)
    accelerator = Accelerator(mixed_precision=arguments.mixed_precision)
    family = FAMILIES[arguments.family]
    processor = build_processor(family)
    model = build_model(family, processor.tokenizer, seed=arguments.seed).train()
    packed = PackedModel(family, model, processor)
    optimizer = build_optimizer(packed, arguments)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, functools.partial(_rate, arguments))
    packed, optimizer = accelerator.prepare(packed, optimizer)
    accelerator.register_for_checkpointing(scheduler)
    history = _resume(accelerator, arguments.work)
    stop = min(arguments.stop_at or arguments.steps, arguments.steps)
    data = Batches(family, processor, "train", arguments.steps, functools.partial(plan, family))
    batches = _loader(data, range(history["step"], stop), arguments.workers)
    validation = Batches(family, processor, "validation", arguments.validation, validation_plan)
    checks = list(_loader(validation, range(len(validation)), 0))
    _train(accelerator, packed, optimizer, scheduler, batches, checks, history, arguments)
    if history["step"] == arguments.steps and accelerator.is_main_process:
        _export(family, accelerator.unwrap_model(packed).model, processor, history, arguments.output)


def _train(
    accelerator: Accelerator,
    packed: Any,
    optimizer: Any,
    scheduler: Any,
    batches: DataLoader[dict[str, torch.Tensor]],
    validation: list[dict[str, torch.Tensor]],
    history: dict[str, Any],
    arguments: argparse.Namespace,
) -> None:
    """Take the steps, keep the curves, save now and then and at the end."""
    running: list[tuple[dict[str, float], np.ndarray]] = []
    bar = tqdm(batches, initial=history["step"], total=arguments.steps, unit="step", smoothing=0.05)
    last = history["step"] + len(batches)
    for batch in bar:
        loss, right, losses = packed(_to(batch, accelerator.device))
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(packed.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        parts = {name: part.item() for name, part in losses.items()}
        running.append((parts, _count(right.cpu(), batch["task"])))
        history["step"] += 1
        if history["step"] % 50 == 0:
            bar.set_postfix_str(_note(history, running))
            running = []
        if history["step"] % arguments.save_every == 0 or history["step"] == last:
            history["validation"].append(evaluate(packed, validation, history["step"], accelerator.device))
            history["seconds"] += time.monotonic() - history["_since"]
            history["_since"] = time.monotonic()
            if accelerator.is_main_process:
                tqdm.write(json.dumps(history["validation"][-1]))
                _save(accelerator, arguments.work, history)


def build_optimizer(packed: PackedModel, arguments: argparse.Namespace) -> torch.optim.Optimizer:
    """AdamW; norms and biases are not decayed."""
    weights = [p for p in packed.parameters() if p.ndim > 1]
    others = [p for p in packed.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": arguments.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=arguments.learning_rate, betas=(0.9, 0.98))


def _rate(arguments: argparse.Namespace, step: int) -> float:
    """Warm up, hold, and go down to zero over the last quarter; until then the number of steps may still change."""
    return min((step + 1) / arguments.warmup, 1.0, (arguments.steps - step) / (arguments.steps / 4))


def _loader(data: Batches, numbers: range, workers: int) -> DataLoader[dict[str, torch.Tensor]]:
    return DataLoader(
        data, batch_size=None, sampler=numbers, num_workers=workers, prefetch_factor=4 if workers else None
    )


def _to(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def _count(right: torch.Tensor, task: torch.Tensor) -> np.ndarray:
    """(tasks, 2): right answers and questions of each task."""
    return np.array([[int((right & (task == n)).sum()), int((task == n).sum())] for n in range(len(TASKS))])


def _shares(counts: np.ndarray) -> dict[str, float]:
    return {task: round(float(r / max(n, 1)), 4) for task, (r, n) in zip(TASKS, counts, strict=True)}


def _note(history: dict[str, Any], running: list[tuple[dict[str, float], np.ndarray]]) -> str:
    """Add the last steps to the curve; returns a line for the bar."""
    losses = {name: round(float(np.mean([parts[name] for parts, _ in running])), 4) for name in running[0][0]}
    shares = _shares(sum(counts for _, counts in running))
    history["train"].append({"step": history["step"], "loss": losses, **shares})
    return " ".join(f"{name} {figure:.2f}" for name, figure in {**losses, **shares}.items())


@torch.no_grad()
def evaluate(packed: Any, batches: list[dict[str, torch.Tensor]], step: int, device: torch.device) -> dict[str, Any]:
    """Accuracy per length and task on the validation clips."""
    packed.eval()
    counts = {frames: np.zeros((len(TASKS), 2), int) for frames in VALIDATION_LENGTHS}
    for batch in batches:
        _, right, _ = packed(_to(batch, device))
        counts[batch["frames"].shape[1]] += _count(right.cpu(), batch["task"])
    packed.train()
    return {"step": step, **{str(frames): _shares(count) for frames, count in counts.items()}}


def _resume(accelerator: Accelerator, work: Path) -> dict[str, Any]:
    state = work / "state"
    history: dict[str, Any] = {"step": 0, "seconds": 0.0, "train": [], "validation": []}
    if state.exists():
        accelerator.load_state(str(state))
        history = json.loads((state / "history.json").read_text())
    return {**history, "_since": time.monotonic()}


def _save(accelerator: Accelerator, work: Path, history: dict[str, Any]) -> None:
    """Write weights, optimiser and curves; the old state goes only once the new one is whole."""
    fresh, state, old = work / "state.new", work / "state", work / "state.old"
    shutil.rmtree(fresh, ignore_errors=True)
    accelerator.save_state(str(fresh))
    (fresh / "history.json").write_text(_text(history))
    if state.exists():
        shutil.rmtree(old, ignore_errors=True)
        state.rename(old)
    os.rename(fresh, state)
    shutil.rmtree(old, ignore_errors=True)


def _export(family: Family, model: Any, processor: Any, history: dict[str, Any], folder: Path) -> None:
    """Write the checkpoint, its card and its curves into a folder that appears, or is replaced, as a whole."""
    fresh, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    card = model_card(family, history, model.num_parameters(), max(CLIPS))
    save(model, processor, fresh, card)
    (fresh / "training.json").write_text(_text(history))
    plot_curves(history, fresh / "training.png")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _text(history: dict[str, Any]) -> str:
    return json.dumps({name: value for name, value in history.items() if name != "_since"})


if __name__ == "__main__":
    main()
