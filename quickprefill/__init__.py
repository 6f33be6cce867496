"""quickprefill: long videos through stock Hugging Face video LLMs, prefilled by groups into a pruned cache.

    quickprefill.apply(model, keep=0.5)     # the same model.generate(...) as before
    quickprefill.estimate(model, inputs)    # bytes and work before, quickprefill.report(model) after
    quickprefill.remove(model)

Importing changes nothing, and loads torch and transformers only once a name is asked for. Shapes, throughout the
package: B batch, S sequence columns, T temporal slices, N video tokens of a group, H query heads, K key-value heads,
D head dimension, C hidden size, W wanted columns.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from quickprefill.errors import (
    AdapterError,
    CacheError,
    ConfigError,
    InputError,
    MemoryBudgetError,
    QuickPrefillError,
    UnsupportedModelError,
    UnsupportedReleaseError,
)

if TYPE_CHECKING:
    from quickprefill.adapters import load_adapter, save_adapter
    from quickprefill.applying import apply, disabled, patched, remove, report
    from quickprefill.callback import CubesCallback
    from quickprefill.config import QuickPrefillConfig
    from quickprefill.estimating import Estimate, estimate
    from quickprefill.hosts import FAMILIES
    from quickprefill.policies import POLICIES

__version__ = "0.1.0"

__all__ = [
    "FAMILIES",
    "POLICIES",
    "AdapterError",
    "CacheError",
    "ConfigError",
    "CubesCallback",
    "Estimate",
    "InputError",
    "MemoryBudgetError",
    "QuickPrefillConfig",
    "QuickPrefillError",
    "UnsupportedModelError",
    "UnsupportedReleaseError",
    "__version__",
    "apply",
    "disabled",
    "estimate",
    "load_adapter",
    "patched",
    "remove",
    "report",
    "save_adapter",
]

_HOMES = {
    **dict.fromkeys(("load_adapter", "save_adapter"), "adapters"),
    "CubesCallback": "callback",
    **dict.fromkeys(("apply", "disabled", "patched", "remove", "report"), "applying"),
    **dict.fromkeys(("Estimate", "estimate"), "estimating"),
    "FAMILIES": "hosts",
    "POLICIES": "policies",
    "QuickPrefillConfig": "config",
}
"""The module of each name that is loaded when it is asked for."""


def __getattr__(name: str) -> Any:
    if name == "policies":
        return import_module("quickprefill.policies")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"quickprefill.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
