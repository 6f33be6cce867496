"""A config and one model: what its layers cannot do is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quickprefill import versions
from quickprefill.config import QuickPrefillConfig
from quickprefill.errors import ConfigError

__all__ = ["check_layers"]


def check_layers(config: QuickPrefillConfig, layers: Sequence[Any]) -> None:
    """Raise ConfigError if a model's layers, as its own empty cache has them, cannot do what is asked."""
    selector = config.selector
    named = {"first_layer": config.first_layer, "progressive_from": config.progressive_from}
    if selector is not None:
        named[f"{type(selector).__name__}.layer"] = selector.layer
    for name, layer in named.items():
        if layer is not None and layer >= len(layers):
            raise ConfigError(f"{name} must be below the model's {len(layers)} decoder layers, got {layer}")
    full = [index for index, layer in enumerate(layers) if not versions.has_state(layer)]
    if not config.see_past and len(full) < len(layers):
        raise ConfigError(
            "see_past=False has no meaning for layers of linear attention, whose state is the past; use True"
        )
    if selector is not None and selector.uses_question and selector.layer not in full:
        raise ConfigError(
            f"{type(selector).__name__}.layer={selector.layer} is a layer of linear attention, in which no token "
            f"attends to another; this model's layers of full attention are {full}"
        )
