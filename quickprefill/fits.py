"""A config and one model: what its layers cannot do is refused, and where no policy is named it gets its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from quickprefill import versions
from quickprefill.config import DEFAULT_POLICY, QuickPrefillConfig
from quickprefill.errors import ConfigError
from quickprefill.hosts.base import Host

__all__ = ["check_layers", "with_default_policy"]

_FOR_NORMED_KEYS = "value_norm"
"""A score like DEFAULT_POLICY, so that every option means the same; examples/guides/quality.md has the evidence."""


def with_default_policy(config: QuickPrefillConfig, host: Host, core: Any) -> QuickPrefillConfig:
    """The config with a policy: where none was named, one whose scores can tell this model's tokens apart."""
    if config.policy is not None:
        return config
    return dataclasses.replace(config, policy=_FOR_NORMED_KEYS if host.norms_keys(core) else DEFAULT_POLICY)


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
