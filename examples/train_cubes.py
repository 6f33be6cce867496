"""Train Cubes(gate="learned", resampler="attention") in a stock video LLM with the stock Trainer.

    python examples/train_cubes.py --stage 1 --model Qwen/Qwen2.5-VL-7B-Instruct --data captions.jsonl --output_dir run1
    python examples/train_cubes.py --stage 2 --model Qwen/Qwen2.5-VL-7B-Instruct --adapter run1 --data mixed.jsonl ...

The stages of the paper are presets: 1 trains the adapter, 2 the vision tower too, 3 everything. They are defaults only:
every field of TrainingArguments is an option (--learning_rate, --max_steps, --deepspeed, --fsdp, ...) and wins. With
several processes: accelerate launch --config_file examples/integrations/cubes_accelerate.yaml examples/train_cubes.py
... Data is one JSON object a line, see examples/cubes/data.py.

In the output folder: quickprefill.safetensors and .json, for quickprefill.load_adapter(); curves.json and .png; the
Trainer's checkpoints, from which --resume_from_checkpoint goes on; from stage 2 on the model itself.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

import quickdecode
import quickprefill
from quickprefill.policies import Cubes

sys.path.insert(0, str(Path(__file__).parents[1]))
from examples.cubes.adapter import adapter_config
from examples.cubes.curves import Curves
from examples.cubes.data import DataError, Lines
from examples.cubes.prompts import Collator
from examples.cubes.stages import STAGES, TRAINS, choose


@dataclass
class Options:
    """What is trained on what."""

    model: str = field(metadata={"help": "name or folder of a checkpoint"})
    data: str = field(metadata={"help": "JSONL to train on: a.jsonl, or a.jsonl#0_20000;b.jsonl*2"})
    stage: int = field(default=1, metadata={"choices": tuple(STAGES), "help": "whose presets are the defaults"})
    eval_data: str | None = field(default=None, metadata={"help": "JSONL to evaluate on"})
    media: str | None = field(default=None, metadata={"help": "where relative paths start; default: beside the JSONL"})
    adapter: str | None = field(default=None, metadata={"help": "folder of an adapter to start from"})
    trains: str | None = field(default=None, metadata={"help": f"{', '.join(TRAINS)}; default: the stage's"})
    frames: int | None = field(default=None, metadata={"help": "at most, of a video; default: the stage's"})
    fps: float = field(default=1.0, metadata={"help": "frames per second of video"})
    max_pixels: int | None = field(default=None, metadata={"help": "of a frame; default: qwen-vl-utils'"})
    min_pixels: int | None = field(default=None, metadata={"help": "of a frame; default: qwen-vl-utils'"})
    frames_per_cube: float | None = field(default=None, metadata={"help": "mean length; default: the adapter's, or 5"})
    tokens_per_cube: int | None = field(default=None, metadata={"help": "at most; default: the adapter's, or 64"})
    noise_share: float | None = field(default=None, metadata={"help": "of the steps, anneals the gate's noise"})
    attention: str | None = field(default=None, metadata={"help": "attn_implementation; default: the model's"})


def parse(argv: list[str] | None = None) -> tuple[Options, TrainingArguments]:
    """The command line; a stage's presets are defaults, which anything that is said overrides."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--stage", type=int, choices=tuple(STAGES), default=1)
    stage = STAGES[first.parse_known_args(argv)[0].stage]
    parser = HfArgumentParser(
        (Options, TrainingArguments), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(
        trains=stage.trains, frames=stage.frames, noise_share=stage.noise_share, output_dir="runs/cubes",
        **stage.arguments(),
    )  # fmt: skip
    options, arguments = parser.parse_args_into_dataclasses(argv)
    if options.trains not in TRAINS:
        parser.error(f"--trains must be one of {', '.join(TRAINS)}, got {options.trains!r}")
    return options, arguments


def build(options: Options) -> tuple[Any, Any]:
    """The patched model, with its adapter, and the processor."""
    # What trains is brought to float32 afterwards; a CPU computes in one type only.
    dtype = "auto" if torch.cuda.is_available() else torch.float32
    more = {} if options.attention is None else {"attn_implementation": options.attention}
    model = AutoModelForImageTextToText.from_pretrained(options.model, dtype=dtype, **more)
    processor = AutoProcessor.from_pretrained(options.model)
    sizes = {
        name: value for name in ("frames_per_cube", "tokens_per_cube") if (value := getattr(options, name)) is not None
    }
    if options.adapter is None:
        sizes = {"frames_per_cube": 5.0, "tokens_per_cube": 64, **sizes}
        quickprefill.apply(model, policy=Cubes(**sizes, gate="learned", resampler="attention"))
    else:
        quickprefill.load_adapter(model, options.adapter, adapter_config(options.adapter, sizes))
    return model, processor


def train(options: Options, arguments: TrainingArguments) -> Trainer:
    """A stock Trainer's run."""
    limits = {"fps": options.fps, "max_frames": options.frames}
    limits |= {name: value for name in ("min_pixels", "max_pixels") if (value := getattr(options, name)) is not None}
    media = None if options.media is None else Path(options.media)
    resumed = checkpoint(arguments)
    if resumed is not None and any(Path(resumed).glob("*.safetensors")):
        # transformers 5 writes checkpoints in the names of the hub's files, which its Trainer does not read back.
        options = replace(options, model=resumed, adapter=resumed)
    rows, checks = (files and Lines(files, media, limits) for files in (options.data, options.eval_data))
    set_seed(arguments.seed)  # a new adapter is the same in every process
    model, processor = build(options)
    number = choose(model, options.trains)
    print(f"{len(rows)} conversations; {number:,} of {model.num_parameters():,} parameters train ({options.trains})")
    trainer = Trainer(
        model,
        arguments,
        train_dataset=rows,
        eval_dataset=checks,
        data_collator=Collator(processor),
        processing_class=processor,
        callbacks=[quickprefill.CubesCallback(share=options.noise_share), Curves()],
    )
    trainer.train(resume_from_checkpoint=resumed)
    if options.trains != "adapter":
        trainer.save_model()  # every process takes part where weights are spread
    if trainer.is_fsdp_enabled or trainer.is_world_process_zero():  # FSDP has spread the adapter too
        quickprefill.save_adapter(model, arguments.output_dir)
    return trainer


def checkpoint(arguments: TrainingArguments) -> str | None:
    """--resume_from_checkpoint FOLDER, or True for the last one in the output folder."""
    asked = arguments.resume_from_checkpoint
    if asked is None or asked.lower() == "false":
        return None
    found = get_last_checkpoint(arguments.output_dir) if asked.lower() == "true" else asked
    if found is None or not Path(found).is_dir():
        raise DataError(f"there is no checkpoint to go on with: {found or f'none in {arguments.output_dir}'}")
    return str(found)


def main(argv: list[str] | None = None) -> Trainer:
    """Train; a mistake in the data or the options is one line."""
    options, arguments = parse(argv)
    quickdecode.register()
    try:
        return train(options, arguments)
    except (DataError, quickprefill.QuickPrefillError) as error:
        sys.exit(f"train_cubes.py: {error}")
    finally:
        quickdecode.unregister()


if __name__ == "__main__":
    main()
