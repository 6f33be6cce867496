"""quickprefill: long videos through stock Hugging Face video LLMs, prefilled by groups into a pruned cache.

    quickprefill.apply(model, keep=0.5)     # the same model.generate(...) as before
    quickprefill.estimate(model, inputs)    # bytes and work before, quickprefill.report(model) after
    quickprefill.remove(model)

Importing changes nothing. Shapes, throughout the package: B batch, S sequence columns, T temporal slices, N video
tokens of a group, H query heads, K key-value heads, D head dimension, C hidden size, W wanted columns.
"""

from quickprefill.apply import apply, disabled, patched, remove, report
from quickprefill.config import QuickPrefillConfig
from quickprefill.errors import (
    CacheError,
    ConfigError,
    InputError,
    MemoryBudgetError,
    QuickPrefillError,
    UnsupportedModelError,
)
from quickprefill.estimate import Estimate, estimate
from quickprefill.hosts import FAMILIES
from quickprefill.policies import POLICIES

__version__ = "0.1.0"

__all__ = [
    "FAMILIES",
    "POLICIES",
    "CacheError",
    "ConfigError",
    "Estimate",
    "InputError",
    "MemoryBudgetError",
    "QuickPrefillConfig",
    "QuickPrefillError",
    "UnsupportedModelError",
    "__version__",
    "apply",
    "disabled",
    "estimate",
    "patched",
    "remove",
    "report",
]
