"""What a policy learns, as a module of the model: optimizers, checkpoints and devices treat it as the model's own."""

from __future__ import annotations

from typing import Any

import torch

from quickprefill.config import QuickPrefillConfig
from quickprefill.errors import ConfigError
from quickprefill.hosts.base import Host

__all__ = ["NAME", "attach", "detach", "needs_a_model", "own_weights", "put_back", "shapes_wanted", "weights_of"]

NAME = "quickprefill"
"""The child module of the core."""
_SOME_WIDTH = 16


def weights_of(core: Any) -> torch.nn.Module | None:
    """The weights in a core, as it runs them: PEFT may have put a module of its own in the place of ours."""
    return core._modules.get(NAME) if isinstance(core, torch.nn.Module) else None


def own_weights(core: Any) -> torch.nn.Module | None:
    """Those that a policy made: of the copies that PEFT puts in their place, the one that is active."""
    held: Any = weights_of(core)
    copies = getattr(held, "modules_to_save", None)
    if not isinstance(copies, torch.nn.ModuleDict):
        return weights_of(core)
    active = [name for name in held.active_adapters if name in copies]
    own: torch.nn.Module = copies[active[-1]] if active else held.original_module
    return own


def needs_a_model(config: QuickPrefillConfig) -> None:
    """Raise ConfigError if a policy has weights, for which a class, or all classes, have no place."""
    if shapes_wanted(config, _SOME_WIDTH) is not None:
        raise ConfigError(
            f"{config.compressor!r} has weights, which need a model to live in; call apply(model, ...) with a model, "
            "not with a class or None"
        )


def attach(host: Host, core: Any, config: QuickPrefillConfig) -> None:
    """Give a core the weights that its policy needs: those that it holds, if they fit, else new ones."""
    if config.compressor is None:
        detach(core)
        return
    geometry, held = host.geometry(core), own_weights(core)
    wanted = shapes_wanted(config, geometry.hidden)
    if held is not None and wanted == _shapes(held):
        return
    detach(core)
    fresh = config.compressor.new_weights(geometry.hidden)
    if fresh is not None:
        core.add_module(NAME, fresh.to(geometry.vision_device, geometry.dtype).train(core.training))


def detach(core: Any) -> None:
    """Take the weights out of a core."""
    if weights_of(core) is not None:
        delattr(core, NAME)


def put_back(host: Host, core: Any, weights: torch.nn.Module | None) -> None:
    """Undo what happened since weights_of(core) gave these; they follow where the model went meanwhile."""
    detach(core)
    if weights is not None:
        geometry = host.geometry(core)
        core.add_module(NAME, weights.to(geometry.vision_device, geometry.dtype).train(core.training))


def _shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Of the tensors that a module saves."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def shapes_wanted(config: QuickPrefillConfig, width: int) -> dict[str, tuple[int, ...]] | None:
    """Those of the weights that its policy has for embeddings so wide, none of which is made; None: it has none."""
    with torch.device("meta"):
        weights = None if config.compressor is None else config.compressor.new_weights(width)
    return None if weights is None else _shapes(weights)
