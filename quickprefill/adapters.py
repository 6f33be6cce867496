"""What a policy learned as files: its weights as safetensors, what they are for as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from quickprefill.applying import apply, configured
from quickprefill.config import QuickPrefillConfig
from quickprefill.errors import AdapterError
from quickprefill.targets import core_of, find_targets
from quickprefill.weights import NAME, own_weights, shapes_wanted

__all__ = ["DESCRIPTION", "WEIGHTS", "load_adapter", "save_adapter"]

WEIGHTS, DESCRIPTION = f"{NAME}.safetensors", f"{NAME}.json"
"""The files of an adapter; PEFT's have other names, so both may share a folder."""
_FORMAT = 1
_Model = TypeVar("_Model")


def save_adapter(model: Any, folder: str | Path) -> Path:
    """Write what the policy of a patched model has learned, and the config that it is patched with.

    Where FSDP has spread the weights over processes, every process must call it; the first one writes.

    Returns:
        The folder, with quickprefill.safetensors and quickprefill.json.

    Raises:
        AdapterError: the model is not patched with a policy that has weights.
    """
    ((target, host),) = find_targets(model)
    core = core_of(target, host)
    weights = None if isinstance(target, type) else own_weights(core)
    if weights is None:
        raise AdapterError(
            "there is nothing to save: the model is not patched with a policy that learns, such as "
            'Cubes(gate="learned"); call quickprefill.apply(model, policy=...) first'
        )
    folder = Path(folder)
    held = weights.state_dict()
    tensors = {name: _whole(tensor) for name, tensor in held.items()}
    if any(isinstance(tensor, DTensor) for tensor in held.values()) and torch.distributed.get_rank() > 0:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / DESCRIPTION).write_text(json.dumps(describe(model), indent=2) + "\n")
    return folder


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    full: torch.Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu().contiguous()


def describe(model: Any) -> dict[str, Any]:
    """What quickprefill.json says: for which model the weights are, and how to patch it."""
    core, host, config, _ = configured(model, None, {})
    return {
        "format": _FORMAT,
        "quickprefill_version": sys.modules["quickprefill"].__version__,
        "model_type": host.model_type,
        "hidden_size": host.geometry(core).hidden,
        "base_model": getattr(core.config, "_name_or_path", "") or None,
        "config": config.to_dict(),
    }


def load_adapter(model: _Model, folder: str | Path, config: QuickPrefillConfig | None = None) -> _Model:
    """Patch a model with a policy that was trained before: apply() with the folder's config, and its weights.

    Args:
        folder: what save_adapter() wrote, or a checkpoint of Trainer or PEFT with those weights among others.
        config: instead of the folder's; must be given, or be the model's present one, where the folder has none.

    Returns:
        `model`, for chaining.

    Raises:
        AdapterError: the folder holds no such weights, or they are for another model or policy. The model is as before.
    """
    folder = Path(folder)
    description = _description(folder)
    tensors = _tensors(folder)
    ((target, host),) = find_targets(model)
    core = core_of(target, host)
    if isinstance(target, type):
        raise AdapterError(f"weights need a model to live in, got the class {target.__name__}")
    if config is None and description is not None:
        config = QuickPrefillConfig.from_dict(description["config"])
    elif config is None:
        config = configured(model, None, {})[2]
    width = host.geometry(core).hidden
    wanted = shapes_wanted(config, width)
    if wanted is None:
        raise AdapterError(
            f"{folder} has no {DESCRIPTION} that says with which policy its weights go; give config=, or apply() that "
            f"policy first (now: {config.policies})"
        )
    if description is not None and (description["model_type"], description["hidden_size"]) != (host.model_type, width):
        raise AdapterError(
            f"{folder} was trained with a {description['model_type']} of width {description['hidden_size']} "
            f"({description.get('base_model')}), but this model is a {host.model_type} of width {width}"
        )
    _check(folder, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, wanted)
    apply(model, config)
    weights = own_weights(core)
    if weights is not None:
        weights.load_state_dict(tensors)
    return model


def _description(folder: Path) -> dict[str, Any] | None:
    path = folder / DESCRIPTION
    if not path.is_file():
        return None
    try:
        description: dict[str, Any] = json.loads(path.read_text())
        missing = [name for name in ("format", "model_type", "hidden_size", "config") if name not in description]
    except (ValueError, TypeError) as error:
        raise AdapterError(f"{path} is not the description of an adapter: {error}") from error
    if missing or description["format"] != _FORMAT:
        raise AdapterError(
            f"{path} is not of format {_FORMAT}: " + (f"it lacks {missing}" if missing else f"{description['format']}")
        )
    return description


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The weights by their names in the policy's module; in a larger checkpoint they stand behind ".quickprefill."."""
    own = folder / WEIGHTS
    files = [own] if own.is_file() else sorted(folder.glob("*.safetensors"))
    found: dict[str, torch.Tensor] = {}
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118  # it is no dict
                    short = name if path == own else name.partition(f"{NAME}.")[2]
                    if short:
                        found[short.removeprefix("modules_to_save.").removeprefix("default.")] = file.get_tensor(name)
        except SafetensorError as error:
            raise AdapterError(f"{path} cannot be read: {error}") from error
    if not found:
        raise AdapterError(
            f"{folder} holds no weights of a policy: neither {WEIGHTS} nor tensors named *.{NAME}.* in "
            f"{[path.name for path in files] or 'any *.safetensors file'}"
        )
    return found


def _check(folder: Path, given: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    odd = [
        f"{name}: {given.get(name, 'absent')} in the folder, {wanted.get(name, 'absent')} in this model"
        for name in sorted({*given, *wanted})
        if given.get(name) != wanted.get(name)
    ]
    if odd:
        raise AdapterError(
            f"{folder} was trained with another model or policy; they differ in {'; '.join(odd[:4])}"
            + (f" and {len(odd) - 4} more" if len(odd) > 4 else "")
        )
