"""What a user may pass as a model, and what there is to patch in it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

import torch

from quickprefill.errors import UnsupportedModelError
from quickprefill.hosts import FAMILIES, Host

__all__ = ["Target", "absent_hosts", "core_of", "find_targets"]

Target = tuple[Any, Host]
"""A host's model with its head, or the class of such models."""


def find_targets(model: Any) -> list[Target]:
    """What to patch for a model, a class, or None: all host classes that are imported by now.

    Raises:
        UnsupportedModelError: it is none of these, naming what would be.
    """
    if model is None:
        return [(head, host) for host in FAMILIES.values() if (head := _class(host, host.head_name)) is not None]
    if isinstance(model, type):
        for host in FAMILIES.values():
            head = _class(host, host.head_name)
            if head is not None and issubclass(model, head):
                return [(model, host)]
    for module, host in _hosts_in(model):
        head = _class(host, host.head_name)
        if head is not None and isinstance(module, head):
            return [(module, host)]
    raise UnsupportedModelError(_refusal(model))


def absent_hosts() -> list[Host]:
    """Hosts that the installed transformers has, but nobody has imported yet."""
    return [host for host in FAMILIES.values() if host.module_name not in sys.modules and _installed(host.module_name)]


def core_of(target: Any, host: Host) -> Any:
    """The core of a head, or the class of cores for a class of heads."""
    return _class(host, host.core_name) if isinstance(target, type) else host.core(target)


def _class(host: Host, name: str) -> Any:
    return getattr(sys.modules.get(host.module_name), name, None)


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _hosts_in(model: Any) -> Iterator[Target]:
    """Modules of a supported type, wrappers such as PEFT's looked through."""
    for module in model.modules() if isinstance(model, torch.nn.Module) else ():
        # Of the config's class: in early releases of 4.57 a loaded config answers with its decoder's.
        host = FAMILIES.get(getattr(type(getattr(module, "config", None)), "model_type", ""))
        if host is not None:
            yield module, host


def _refusal(model: Any) -> str:
    heads = {host.head_name: model_type for model_type, host in FAMILIES.items()}
    allowed = f"pass one of {list(heads)} (model_type {sorted(heads.values())}), its class, or None for all of them"
    if isinstance(model, str):
        return f"cannot patch the name {model!r}; load the model with from_pretrained() first: {allowed}"
    kind = model.__name__ if isinstance(model, type) else type(model).__name__
    if not isinstance(model, type | torch.nn.Module) and isinstance(getattr(model, "model", None), torch.nn.Module):
        return f"cannot patch the {kind} itself; pass pipe.model, the model that it holds: {allowed}"
    for _, host in _hosts_in(model):
        return f"cannot patch {kind}, which has no language-model head; pass the {host.head_name} around it: {allowed}"
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    return f"cannot patch {kind} (model_type {model_type!r}); {allowed}"
