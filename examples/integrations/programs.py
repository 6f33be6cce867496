"""What clients.py runs: other people's programs, each started as it is and patched."""

from __future__ import annotations

from dataclasses import dataclass, field

HERE = "examples/integrations"
CHECKPOINT = "examples/tiny-qwen2.5-vl"
LAUNCHER = [f"{HERE}/watched.py", "--keep", "1", "--group-frames", "8"]
REMOVED = [f"{HERE}/removed.py", "{work}"]

WAYS = ("stock", "patched", "streamed", "removed")


@dataclass(frozen=True)
class Run:
    """A program: arguments behind `python` in each way. {work} is the folder of the run, {clip} a video."""

    stock: list[str]
    patched: list[str]
    streamed: list[str] | None = None
    """Patched, and its videos are still being decoded while they are prefilled."""
    removed: list[str] | None = None
    """Patched, then stock again in the same process."""
    hook: bool = False
    """Whether it is the hook that patches it."""


@dataclass(frozen=True)
class Client:
    """What to install, and what to run."""

    requirements: list[str]
    runs: dict[str, Run]
    packages: list[str] = field(default_factory=list)
    """Whose versions are recorded, beside transformers and av."""


def launched(*program: str, streamed: bool = False, removed: bool = False) -> Run:
    """A program as it is, and under the launcher."""
    return Run(
        [*program],
        [*LAUNCHER, *program],
        [*LAUNCHER, "--stream", *program] if streamed else None,
        [*REMOVED, *program] if removed else None,
    )


def hooked(*program: str) -> Run:
    """A program that starts its own children, without the hook and with it."""
    return Run([*program], [*program], hook=True)


def plugged(*program: str, removed: bool = False) -> Run:
    """A command of ms-swift's, and with our plugin."""
    own = ["--external_plugins", f"{HERE}/tiny_tokens.py"]
    patched = [*program, *own, f"{HERE}/tell.py", f"{HERE}/ms_swift_plugin.py"]
    return Run([*program, *own], patched, removed=[*REMOVED, *program, *own] if removed else None)


_SWIFT = ["--model", CHECKPOINT, "--model_type", "qwen2_5_vl", "--template", "qwen2_5_vl", "--torch_dtype", "float32"]
_LMMS = ["--device", "cpu", "--tasks", "needle_clips", "--include_path", f"{HERE}/lmms_eval", "--log_samples"]
_LMMS += ["--limit", "12", "--output_path", "{work}"]
_LMMS_MODEL = f"pretrained={CHECKPOINT},device_map=cpu,min_pixels=3136,max_pixels=3136,max_num_frames=64"
_ASKED = ["What colour was the square?", "What pattern has the floor?", "How many crosses appeared?"]
_PIPELINE = [f"{HERE}/pipeline.py", CHECKPOINT, "{clip}"]

CLIENTS = {
    "lmms_eval": Client(
        ["lmms-eval==0.7.3", "decord2"],
        {
            "evaluation": launched(
                *("-m", "lmms_eval", "--model", "qwen2_5_vl", "--model_args", _LMMS_MODEL, *_LMMS), removed=True
            ),
            "evaluation, model of ours": Run(
                ["-m", "lmms_eval", "--model", "qwen2_5_vl", "--model_args", _LMMS_MODEL, *_LMMS],
                [
                    *("-m", "lmms_eval", "--model", "qwen2_5_vl_quick", "--model_args"),
                    *(f"{_LMMS_MODEL},keep=1,group_frames=8", *_LMMS),
                ],
            ),
        },
        ["lmms_eval"],
    ),
    "ms_swift": Client(
        ["ms-swift==4.6.0", "decord2"],
        {
            "infer": plugged(
                *("-m", "swift.cli.infer", *_SWIFT, "--val_dataset", "{work}/../swift.jsonl", "--max_new_tokens", "4"),
                *("--temperature", "0", "--system", "", "--result_path", "{work}/answers.jsonl"),
                removed=True,
            ),
            "sft": plugged(
                *("-m", "swift.cli.sft", *_SWIFT, "--dataset", "{work}/../swift.jsonl", "--max_steps", "3"),
                *(
                    "--logging_steps",
                    "1",
                    "--output_dir",
                    "{work}",
                    "--tuner_type",
                    "full",
                    "--split_dataset_ratio",
                    "0",
                ),
                *("--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "1", "--report_to", "none"),
            ),
        },
        ["ms_swift"],
    ),
    "trl": Client(
        ["trl==1.16.0", "decord2", "torchcodec"],
        {
            "SFTTrainer": launched(f"{HERE}/trl_sft.py", CHECKPOINT, "{questions}"),
            "GRPOTrainer": launched(f"{HERE}/trl_grpo.py", CHECKPOINT, "{questions}"),
            "Trainer, then generate()": launched(f"{HERE}/hf_trainer.py", CHECKPOINT, "{questions}"),
            "the same by torchrun, 2 processes": hooked(
                *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--tee", "3"),
                *("--log-dir", "{work}", f"{HERE}/hf_trainer.py", CHECKPOINT, "{questions}"),
            ),
            "the same by accelerate launch, 2 processes": hooked(
                *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--tee", "3"),
                *("--log_dir", "{work}", f"{HERE}/hf_trainer.py", CHECKPOINT, "{questions}"),
            ),
            "pipeline": launched(*_PIPELINE, "image-text-to-text", *_ASKED, streamed=True, removed=True),
            "pipeline any-to-any": launched(*_PIPELINE, "any-to-any", *_ASKED),
        },
        ["trl"],
    ),
    "llamafactory": Client(
        ["llamafactory==0.9.5"],
        {
            "chat": launched(f"{HERE}/llamafactory_chat.py", CHECKPOINT, "{questions}", removed=True),
            "sft": launched(
                *("-m", "llamafactory.cli", "train", f"{HERE}/llamafactory.yaml", f"model_name_or_path={CHECKPOINT}"),
                *("dataset_dir={work}/../llamafactory", "output_dir={work}", "finetuning_type=full", "use_cpu=true"),
                *("video_max_pixels=3136", "video_min_pixels=3136", "overwrite_output_dir=true"),
            ),
        },
        ["llamafactory"],
    ),
    "kvpress": Client(
        ["kvpress==0.5.5", "torchcodec"],
        {"side by side": launched(f"{HERE}/kvpress_side_by_side.py", CHECKPOINT, "{clip}", removed=True)},
        ["kvpress"],
    ),
}
