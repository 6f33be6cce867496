"""Training of Cubes by a stock Trainer, watched: accuracy, and where the cubes begin, on a few validation clips."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainerCallback, TrainingArguments

import quickprefill
from examples.benchmarks.quality import write_json
from examples.needle.clip import through_h264
from examples.needle.cubes_data import SETS, Clips, Prompts, scene
from examples.needle.tasks import ask
from examples.needle.truth import visible
from quickprefill.policies import Cubes

__all__ = ["TRAINED", "cube_starts", "train", "true_changes"]

TRAINED = {
    "learned": {"gate": "learned", "resampler": "attention"},
    "momentum and attention": {"gate": "momentum", "resampler": "attention"},
    "fixed and attention": {"gate": "fixed", "resampler": "attention"},
}
_WATCH_STEPS, _WATCHED_CLIPS = 50, 24


def train(arguments: argparse.Namespace, name: str, ratio: int, seed: int) -> tuple[Path, list[dict[str, float]]]:
    """The folder of the trained adapter, and the curve of its training; trains, or goes on, where it is not done."""
    work = arguments.work / "training" / f"{name.replace(' ', '_')}_{ratio}x_{seed}"
    adapter = work / "adapter"
    if not adapter.exists():
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_pretrained(arguments.model, dtype=torch.float32).requires_grad_(False)
        prompts = Prompts(AutoProcessor.from_pretrained(arguments.model))
        quickprefill.apply(model, policy=Cubes(frames_per_cube=2 * ratio, **TRAINED[name]), trace=True)
        options = TrainingArguments(
            output_dir=str(work / "checkpoints"),
            max_steps=arguments.steps,
            per_device_train_batch_size=arguments.batch,
            learning_rate=arguments.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=max(arguments.steps // 50, 1),
            max_grad_norm=1.0,
            seed=seed,
            save_steps=_WATCH_STEPS,
            save_total_limit=1,
            logging_steps=_WATCH_STEPS,
            remove_unused_columns=False,
            report_to=[],
            use_cpu=not torch.cuda.is_available(),
        )
        watch = Watch(prompts, work / "curve.json")
        data = Clips(arguments.steps * arguments.batch, seed)
        callbacks = [quickprefill.CubesCallback(), watch]
        trainer = Trainer(model, options, train_dataset=data, data_collator=prompts, callbacks=callbacks)
        trainer.train(resume_from_checkpoint=any((work / "checkpoints").glob("checkpoint-*")))
        partial = quickprefill.save_adapter(model, work / "adapter.new")
        partial.rename(adapter)
        shutil.rmtree(work / "checkpoints")
    return adapter, json.loads((work / "curve.json").read_text())


class Watch(TrainerCallback):  # type: ignore[misc]
    """Notes accuracy on validation clips, and what share of the cubes begins where something changes."""

    def __init__(self, prompts: Prompts, path: Path) -> None:
        self._path, self._clips = path, []
        for number in range(_WATCHED_CLIPS):
            own = scene("validation", number, list(SETS.values())[number % len(SETS)])
            asked = ask(own)[:3]
            inputs = prompts.questions(through_h264(own), asked)
            self._clips.append((inputs, prompts.answer_ids(asked), true_changes(own)))

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step == 0:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, [])
            self._note(0, given["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step % _WATCH_STEPS == 0 or state.global_step == state.max_steps:
            self._note(state.global_step, given["model"])

    def _note(self, step: int, model: Any) -> None:
        model.eval()
        right, hits = [], []
        for inputs, answers, changes in self._clips:
            with torch.inference_mode():
                said = model(**inputs, logits_to_keep=1).logits[:, -1].argmax(dim=-1)
            right += (said == answers).tolist()
            hits += [start in changes for start in cube_starts(model)[1:]]
        model.train()
        curve = [point for point in json.loads(self._path.read_text()) if point["step"] < step]
        point = {"step": step, "accuracy": float(np.mean(right)), "at_a_change": float(np.mean(hits))}
        write_json(self._path, [*curve, point])


def cube_starts(model: Any) -> list[int]:
    """The slices in which the cubes of the last prompt's first video began; needs trace=True."""
    kept = next(kept for kept in quickprefill.report(model).kept_places if kept.stage == "compress")
    return sorted(set((kept.places // (kept.grid[1] * kept.grid[2])).tolist()))


def true_changes(own: Any) -> set[int]:
    """Slices that show other things than the slice before."""
    shown = visible(own)
    return {slice_ for slice_ in range(1, len(shown)) if (shown[slice_] != shown[slice_ - 1]).any()}
