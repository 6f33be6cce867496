"""What train_clients.py runs: Cubes with weights under each trainer, on the checkpoint of this repository.

    python -m examples.integrations.trainers NAME FOLDER      # under torchrun where several processes take part

Every answer is wrong on purpose, so that there is something to learn. Writes NAME.RANK.json into the folder.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments

import quickdecode
import quickprefill
from examples.cubes.prompts import Collator
from examples.integrations import parallel_trainers
from examples.integrations.trained import OPTIONS, POLICY, STEPS, TINY, build, losses, moved, rows, weights
from quickprefill.weights import own_weights


@torch.no_grad()
def plain_loss(model: Any, collator: Collator, data: Any) -> float:
    """The mean over all labels of a plain forward, batches of two."""
    model.eval()
    total = count = 0.0
    for start in range(0, len(data), 2):
        batch = collator([data[at] for at in range(start, min(start + 2, len(data)))])
        number = int((batch["labels"][:, 1:] != -100).sum())
        total, count = total + float(model(**batch).loss) * number, count + number
    return total / count


def hf_trainer(folder: Path) -> dict[str, Any]:
    """Trainer, with gradient checkpointing and without."""
    runs = {}
    for checkpointing in (False, True):
        model, collator = build()
        before = weights(model)
        name = "activation_checkpointing" if hasattr(TrainingArguments, "activation_checkpointing") else None
        options = {name or "gradient_checkpointing": checkpointing, **OPTIONS}
        trainer = Trainer(
            model,
            TrainingArguments(str(folder / "hf"), save_strategy="no", **options),
            train_dataset=rows(folder),
            eval_dataset=rows(folder),
            data_collator=collator,
            callbacks=[quickprefill.CubesCallback()],
        )
        trainer.train()
        runs[checkpointing] = losses(trainer), weights(model)
        evaluated = trainer.evaluate()["eval_loss"]
    apart = max(float((runs[True][1][name] - tensor).abs().max()) for name, tensor in runs[False][1].items())
    return {
        "losses": runs[True][0],
        "moved": moved(before, runs[True][1]),
        "weights apart from those without checkpointing": apart,
        "eval loss": evaluated,
        "plain forward": plain_loss(model, collator, rows(folder)),
    }


def trl(folder: Path) -> dict[str, Any]:
    """SFTTrainer, which calls the backbone and has a head of its own."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, collator = build()
    before, data = weights(model), rows(folder)
    lines = Dataset.from_list([{"conversation": json.dumps(data[at])} for at in range(len(data))])
    trainer = SFTTrainer(
        model,
        SFTConfig(str(folder / "trl"), dataset_kwargs={"skip_prepare_dataset": True}, save_strategy="no", **OPTIONS),
        train_dataset=lines,
        eval_dataset=lines,
        data_collator=lambda batch: collator([json.loads(row["conversation"]) for row in batch]),
        processing_class=collator.processor,
        callbacks=[quickprefill.CubesCallback()],
    )
    trainer.train()
    seen: list[dict[str, Any]] = []
    watched = ("use_cache", "past_key_values", "labels")
    hook = model.model.register_forward_pre_hook(
        lambda module, given, call: seen.append({name: call.get(name, "absent") for name in watched}), with_kwargs=True
    )
    evaluated = trainer.evaluate()["eval_loss"]
    hook.remove()
    return {
        "losses": losses(trainer),
        "moved": moved(before, weights(model)),
        "eval loss": evaluated,
        "plain forward": plain_loss(model, collator, data),
        "evaluate() gives the backbone": str(seen[0]),
    }


def accelerate_loop(folder: Path) -> dict[str, Any]:
    """A loop of one's own."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    model, collator = build()
    before = weights(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    loader = DataLoader(rows(folder), batch_size=2, collate_fn=collator)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    callback, taken = quickprefill.CubesCallback(), []
    model.train()
    own = own_weights(accelerator.unwrap_model(model).model)
    for batch in loader:
        own.noise = callback.noise(len(taken), STEPS)
        loss = model(**batch).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        taken.append(round(loss.item(), 4))
    quickprefill.save_adapter(model, folder / "accelerate")
    return {"losses": taken, "moved": moved(before, weights(model))}


def peft(folder: Path) -> dict[str, Any]:
    """LoRA on the decoder's queries, with the policy's weights beside it."""
    from peft import LoraConfig, get_peft_model

    model, collator = build()
    before = weights(model)
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["quickprefill"]))
    trainer = Trainer(
        wrapped,
        TrainingArguments(str(folder / "peft"), save_strategy="no", **OPTIONS),
        train_dataset=rows(folder),
        data_collator=collator,
        callbacks=[quickprefill.CubesCallback()],
    )
    trainer.train()
    wrapped.save_pretrained(folder / "peft")
    quickprefill.save_adapter(wrapped, folder / "beside")
    trained = weights(wrapped)
    config = quickprefill.QuickPrefillConfig(policy=POLICY)
    plain = AutoModelForImageTextToText.from_pretrained(TINY, dtype=torch.float32)
    loaded = weights(quickprefill.load_adapter(copy.deepcopy(plain), folder / "peft", config))
    beside = weights(quickprefill.load_adapter(plain, folder / "beside"))
    lora = [p for name, p in wrapped.named_parameters() if "lora_B" in name]
    return {
        "losses": losses(trainer),
        "moved": moved(before, trained),
        "LoRA moved": all(float(p.detach().abs().max()) > 0 for p in lora),
        "load_adapter(PEFT's folder)": "equal" if moved(trained, loaded).startswith("0 ") else "differs",
        "save_adapter, load_adapter": "equal" if moved(trained, beside).startswith("0 ") else "differs",
    }


RUNS: dict[str, tuple[Callable[[Path], dict[str, Any]], int]] = {
    "Trainer": (hf_trainer, 1),
    "TRL SFTTrainer": (trl, 1),
    "accelerate": (accelerate_loop, 1),
    "PEFT LoRA": (peft, 1),
    "DDP": (parallel_trainers.ddp, 2),
    "FSDP": (parallel_trainers.fsdp, 2),
    "DeepSpeed": (parallel_trainers.deepspeed, 2),
}
"""What to run, in how many processes."""


def main(name: str, folder: str) -> None:
    """Run one."""
    quickdecode.register()
    rank = os.environ.get("RANK", "0")
    Path(folder, f"{name}.{rank}.json").write_text(json.dumps(RUNS[name][0](Path(folder))))


if __name__ == "__main__":
    main(*sys.argv[1:])
