"""Where the parts of a model run, also when accelerate moves weights or activations about."""

from __future__ import annotations

from collections.abc import Iterable

import torch

__all__ = ["execution_device", "layer_devices"]


def execution_device(module: torch.nn.Module) -> torch.device:
    """Where a module's inputs go, also where accelerate brings its weights only for the call."""
    hooks = (getattr(part, "_hf_hook", None) for part in module.modules())
    devices = (getattr(hook, "execution_device", None) for hook in hooks)
    device = next((device for device in devices if device is not None), None)
    return torch.device(next(module.parameters()).device if device is None else device)


def layer_devices(layers: Iterable[torch.nn.Module]) -> tuple[torch.device, ...]:
    """The device of each decoder layer, where its keys and values come to lie."""
    return tuple(execution_device(layer) for layer in layers)
