"""Models for lmms-eval beside its own: the same classes, with videos read by quickdecode and prefilled by groups.

    python -m lmms_eval --model qwen2_5_vl_quick --model_args pretrained=...,keep=0.25,group_frames=64,stream=True ...

They take the stock model's arguments, every field of QuickPrefillConfig, `adapter` (a folder for load_adapter(), whose
config holds unless fields are given), and `stream` and `resize` of quickdecode.register(). lmms-eval finds them through
the entry point group "lmms_eval.models"; nothing of its own models changes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import quickdecode
from quickprefill.adapters import load_adapter
from quickprefill.applying import apply, report
from quickprefill.config import QuickPrefillConfig
from quickprefill.errors import ConfigError, InputError, UnsupportedModelError
from quickprefill.settings import FIELDS

__all__ = ["SERVED", "SUFFIX", "manifests"]

SERVED = ("internvl_hf", "llava_hf", "qwen2_5_omni", "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_vl")
"""Models of lmms-eval that are, or may be, of a family in quickprefill.FAMILIES."""
SUFFIX = "_quick"
"""What the names of ours end with."""

_KINDS = ("simple", "chat")
_READING = ("stream", "resize")


def manifests() -> list[Any]:
    """What lmms-eval asks an entry point for: a ModelManifest for each model in SERVED that it has."""
    from lmms_eval import models
    from lmms_eval.models.registry_v2 import ModelManifest

    stock = {"simple": models.AVAILABLE_SIMPLE_MODELS, "chat": models.AVAILABLE_CHAT_TEMPLATE_MODELS}
    found = []
    for model in SERVED:
        paths = {f"{kind}_class_path": f"{__name__}.{kind}_{model}" for kind in _KINDS if model in stock[kind]}
        if paths:
            found.append(ModelManifest(model_id=model + SUFFIX, **paths))
    return found


def __getattr__(name: str) -> type:
    """The class that a manifest names, built on the stock one when it is asked for: chat_qwen2_5_vl."""
    kind, _, model = name.partition("_")
    if kind not in _KINDS or model not in SERVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _quick(kind, model)


@functools.cache
def _quick(kind: str, model: str) -> type:
    from lmms_eval.models import get_model

    _give_prompts_of_stock_models()
    stock: Any = get_model(model, force_simple=kind == "simple")

    class Quick(stock):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            adapter, given = options.pop("adapter", None), not FIELDS.keys().isdisjoint(options)
            config, reading = _config(options), _taken(options, _READING)
            quickdecode.register(**reading)
            alone = options.get("device") == "cpu" and int(os.environ.get("WORLD_SIZE", "1")) > 1
            with _as_if_alone(stock) if alone else contextlib.nullcontext():
                super().__init__(*arguments, **options)
            if adapter is None:
                apply(self.model, config)
            else:
                load_adapter(self.model, adapter, config if given else None)
            _say(f"{model}{SUFFIX}: {adapter or config}")

        def clean(self) -> None:
            """lmms-eval calls this when all requests are answered."""
            with contextlib.suppress(InputError):  # no video among them
                _say(f"{model}{SUFFIX}, the last video:\n{report(self.model)}")
            quickdecode.unregister()
            super().clean()

    Quick.__name__ = Quick.__qualname__ = f"{stock.__name__}Quick"
    return Quick


def _config(options: dict[str, Any]) -> QuickPrefillConfig:
    """Takes the config's fields out of the model's arguments. A policy may be JSON, as lmms-eval knows no objects."""
    fields = _taken(options, tuple(FIELDS))
    policy = fields.get("policy")
    if isinstance(policy, str) and policy[:1] in ("{", "["):
        try:
            fields["policy"] = json.loads(policy)
        except ValueError as error:
            raise ConfigError(f"policy is neither a name nor JSON ({error}): {policy}") from error
    return QuickPrefillConfig.from_dict(fields)


def _taken(options: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: options.pop(name) for name in names if name in options}


@functools.cache
def _give_prompts_of_stock_models() -> None:
    """Tasks have prompts for some models by name: a model of ours gets the stock one's, or figures do not compare."""
    from lmms_eval.api.task import ConfigurableTask

    name = "_prepare_model_specific_config"
    original: Callable[[Any], None] | None = getattr(ConfigurableTask, name, None)
    if original is None:
        raise UnsupportedModelError(f"lmms-eval has no ConfigurableTask.{name}; install lmms-eval 0.7.3")

    @functools.wraps(original)
    def prepare(task: Any) -> None:
        model = (task.model_name or "").removesuffix(SUFFIX)
        if model in SERVED:
            task.model_name = model
        original(task)

    setattr(ConfigurableTask, name, prepare)


@contextlib.contextmanager
def _as_if_alone(stock: type) -> Iterator[None]:
    """Stock classes know several processes on GPUs only: on CPUs each builds its model as if there were no others."""
    holders: list[Any] = [
        module for cls in stock.__mro__ if hasattr(module := sys.modules[cls.__module__], "Accelerator")
    ]
    kept = {holder: holder.Accelerator for holder in holders}
    for holder in holders:
        holder.Accelerator = _Alone
    try:
        yield
    finally:
        for holder, original in kept.items():
            holder.Accelerator = original


class _Alone:
    """An Accelerator that gathers from all processes, and says that there is one."""

    num_processes = 1

    def __init__(self, *arguments: Any, **options: Any) -> None:
        from accelerate import Accelerator

        self._accelerator = Accelerator(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)


def _say(text: str) -> None:
    from loguru import logger  # lmms-eval's own

    logger.info(text)
