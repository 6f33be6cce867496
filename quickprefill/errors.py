"""Every error of this package.

QuickPrefillError
├── ConfigError            a value of QuickPrefillConfig or of a policy that is out of range (also a ValueError)
├── UnsupportedModelError  a model, or a version of it, that no family covers (also a TypeError)
│   └── UnsupportedReleaseError  a release of transformers that is too old (also an ImportError)
├── InputError             prompt, grids and pixels that do not fit together (also a ValueError)
├── AdapterError           files of weights that are not those of this model and policy (also a ValueError)
├── MemoryBudgetError      a prompt that does not fit the device's free memory (also a MemoryError)
└── CacheError             an operation that a pruned cache cannot do (also a RuntimeError)
"""

__all__ = [
    "AdapterError",
    "CacheError",
    "ConfigError",
    "InputError",
    "MemoryBudgetError",
    "QuickPrefillError",
    "UnsupportedModelError",
    "UnsupportedReleaseError",
]


class QuickPrefillError(Exception):
    """Base of every error raised by quickprefill."""


class ConfigError(QuickPrefillError, ValueError):
    """A configuration value outside its allowed range; the message names the range."""


class UnsupportedModelError(QuickPrefillError, TypeError):
    """A model that no family covers, or one that lacks a seam which the patch needs."""


class UnsupportedReleaseError(UnsupportedModelError, ImportError):
    """A release of transformers that is older than those served, in all or by one family; the message names these."""


class InputError(QuickPrefillError, ValueError):
    """Placeholders in the prompt that do not match the videos or images given with it."""


class AdapterError(QuickPrefillError, ValueError):
    """Weights to save or load that are absent, or are for another model or policy; the message shows both sides."""


class MemoryBudgetError(QuickPrefillError, MemoryError):
    """A prompt for which not even the smallest group fits beside its cache."""


class CacheError(QuickPrefillError, RuntimeError):
    """An operation on a pruned cache that would need tokens which are no longer stored."""
