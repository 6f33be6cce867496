"""Runs of train_clients.py in several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

import quickprefill
from examples import train_cubes
from examples.integrations.trained import TINY, build, losses, moved, rows, weights


def ddp(folder: Path) -> dict[str, Any]:
    """Two processes; the second has no video."""
    torch.distributed.init_process_group("gloo")
    rank, data = torch.distributed.get_rank(), rows(folder)
    model, collator = build()
    before = weights(model)
    parallel = torch.nn.parallel.DistributedDataParallel(model.train())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    batch = collator([data[0 if rank == 0 else len(data) - 1]])
    taken, apart = [], 0.0
    for _ in range(3):
        loss = parallel(**batch).loss
        loss.backward()
        for parameter in (p for p in model.parameters() if p.requires_grad):
            both = [torch.empty_like(parameter.grad) for _ in range(2)]
            torch.distributed.all_gather(both, parameter.grad)
            apart = max(apart, float((both[0] - both[1]).abs().max()))
        optimizer.step()
        optimizer.zero_grad()
        taken.append(round(loss.item(), 4))
    return {
        "losses": taken,
        "videos of this process": int("video_grid_thw" in batch),
        "gradients apart": apart,
        "moved": moved(before, weights(model)),
    }


def example(folder: Path, name: str, *more: str) -> dict[str, Any]:
    """examples/train_cubes.py with further options, then the adapter in a fresh model."""
    output = folder / name
    trainer = train_cubes.main(
        [
            *("--model", TINY, "--data", str(folder / "questions.jsonl"), "--output_dir", str(output), "--fps", "2"),
            *("--min_pixels", "3136", "--max_pixels", "3136", "--max_steps", "3", "--learning_rate", "1e-2"),
            *("--save_steps", "3"),
            *("--use_cpu", "True", "--logging_steps", "1", "--dataloader_num_workers", "0", "--disable_tqdm", "True"),
            *("--frames_per_cube", "8", "--warmup_steps", "0", "--seed", "0", *more),
        ]
    )
    found: dict[str, Any] = {"losses": losses(trainer)}
    if trainer.is_world_process_zero():
        before = weights(build()[0])
        plain = AutoModelForImageTextToText.from_pretrained(TINY, dtype=torch.float32)
        found["moved"] = moved(before, weights(quickprefill.load_adapter(plain, output)))
    return found


def fsdp(folder: Path) -> dict[str, Any]:
    """train_cubes.py --fsdp."""
    return example(folder, "fsdp", "--fsdp")


def deepspeed(folder: Path) -> dict[str, Any]:
    """train_cubes.py --deepspeed, with the file beside this one."""
    return example(folder, "deepspeed", "--deepspeed", "examples/integrations/cubes_deepspeed.json")
