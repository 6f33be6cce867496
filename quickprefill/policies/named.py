"""Policies as names and options, and back."""

from __future__ import annotations

from typing import Any

from quickprefill.errors import ConfigError
from quickprefill.policies import POLICIES, Policy

__all__ = ["policy_from_dict", "policy_to_dict"]


def policy_to_dict(policy: Any) -> Any:
    """A policy, its name, None, or several policies, in types that JSON can hold."""
    if policy is None or isinstance(policy, str):
        return policy
    return policy.to_dict() if isinstance(policy, Policy) else [policy_to_dict(item) for item in policy]


def policy_from_dict(policy: Any) -> Any:
    """Inverse of `policy_to_dict`. Raises ConfigError on a name that POLICIES lacks."""
    if isinstance(policy, list | tuple):
        return tuple(policy_from_dict(item) for item in policy)
    if not isinstance(policy, dict):
        return policy
    options = dict(policy)
    name = options.pop("name", None)
    if name not in POLICIES:
        hint = "register one of your own first, quickprefill.POLICIES[name] = YourPolicy"
        raise ConfigError(f"policy name must be one of {sorted(POLICIES)}, got {name!r}; {hint}")
    return POLICIES[name].from_dict(options)
