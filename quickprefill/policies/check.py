"""Which policies make a pipeline: every stage has its base, and no stage is taken twice."""

from __future__ import annotations

from collections.abc import Sequence

from quickprefill.errors import ConfigError
from quickprefill.policies.base import Compressor, Policy, Scorer, Selector

__all__ = ["check_policies"]

_BASES = (("compress", Compressor), ("select", Selector), ("score", Scorer))


def check_policies(policies: Sequence[Policy]) -> None:
    """Raise ConfigError where a policy is not what the group loop could use, or two don't go together."""
    for policy in policies:
        _check_policy(policy)
    for stage, _ in _BASES:
        names = [policy.name for policy in policies if stage in policy.stages]
        if len(names) > 1:
            raise ConfigError(f"only one policy of a tuple may {stage}, got {names}")
    taken = {stage for policy in policies for stage in policy.stages}
    if {"select", "score"} <= taken:
        names = [policy.name for policy in policies]
        raise ConfigError(
            f"select() and score() would prune the same caches twice, got {names}; switch one off, as with "
            "PruneVid(select_tokens=False)"
        )


def _check_policy(policy: Policy) -> None:
    kind = type(policy).__name__
    for stage, base in _BASES:
        claims = stage in policy.stages or callable(getattr(policy, stage, None))
        if claims and not isinstance(policy, base):
            raise ConfigError(
                f"{kind} has {stage}() but does not derive from quickprefill.policies.{base.__name__}, which tells the "
                f"group loop how to call it; write class {kind}({base.__name__})"
            )
    if not policy.stages:
        raise ConfigError(f"{policy!r} defines none of compress(), select() and score(); a policy needs one")
    if isinstance(policy, Compressor):
        _check_choice(kind, "scope", policy.scope, ("video", "group"))
        _check_ratio(kind, "compress_ratio", policy.compress_ratio)
    if isinstance(policy, Selector):
        _check_choice(kind, "attention", policy.attention, ("position_free", "causal"))
        _check_ratio(kind, "select_ratio", policy.select_ratio)
        if isinstance(policy.layer, bool) or not isinstance(policy.layer, int) or policy.layer < 0:
            raise ConfigError(f"{kind}.layer must be an integer >= 0, got {policy.layer!r}")


def _check_choice(kind: str, name: str, value: object, choices: tuple[str, str]) -> None:
    if value not in choices:
        raise ConfigError(f"{kind}.{name} must be {choices[0]!r} or {choices[1]!r}, got {value!r}")


def _check_ratio(kind: str, name: str, value: float | None) -> None:
    if value is not None and not 0 < value <= 1:
        raise ConfigError(f"{kind}.{name} must be None or in (0, 1], got {value!r}")
