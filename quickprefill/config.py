"""QuickPrefillConfig: the dials of a patch, checked when built."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from quickprefill.errors import ConfigError
from quickprefill.policies import POLICIES, Compressor, Policy, Scorer, Selector
from quickprefill.policies.check import check_policies
from quickprefill.policies.named import policy_from_dict, policy_to_dict

__all__ = ["DEFAULT_POLICY", "QuickPrefillConfig"]

DEFAULT_POLICY = "value_norm"
"""examples/guides/quality.md has the evidence."""
_DEFAULT_KEEP = 0.5


@dataclass(frozen=True)
class QuickPrefillConfig:
    """How a video is prefilled. The first five fields are the ones to know.

    >>> QuickPrefillConfig(keep=0.25, group_frames=32).policies
    (ValueNorm(largest=True, per_head=False),)

    Raises:
        ConfigError: a value is outside its range, or two values do not go together.
    """

    keep: float | None = None
    """Share of each group's video tokens that stays, 0 < keep <= 1: in every layer's cache if the policy scores, in the
    decoder if it compresses or selects. At 1 the answers are the stock model's. A ratio that a policy was given of its
    own wins. None: 0.5, or 1 where `keep_tokens` or such a ratio sets the budget."""
    keep_tokens: int | None = None
    """At most this many of each group's video tokens stay. Given together with `keep`, the smaller budget holds."""
    group_frames: int | Literal["auto"] | None = None
    """Video frames prefilled at a time; even, because the vision tower merges two frames into one temporal slice.
    None: as many whole slices as make 2,048 tokens that enter the decoder; from sizes and the config, never from the
    machine. "auto": the most that fit the free memory, up to where more no longer helps; the number, and with it what
    is kept, may then differ from one machine to another. QuickVideo's way is 16."""
    policy: str | Policy | Sequence[str | Policy] | None = None
    """Which tokens stay: a key of POLICIES, a policy object, or several that each take another stage. None: value_norm;
    QuickVideo's default is key_norm."""
    progress: bool = False
    """Show a progress bar over groups."""
    first_layer: int = 0
    """The first decoder layer whose cache is pruned; earlier ones keep everything (QuickVideo)."""
    layer_decay: Literal["linear"] | float | None = None
    """A smaller budget for deeper layers (QuickVideo): "linear" from all of it in layer 0 towards none behind the last
    layer, or a factor 0 < f < 1 per layer. A layer always keeps at least one token."""
    progressive_from: int | None = None
    """From this layer on dropped tokens leave the hidden states too, so that later layers are cheaper (QuickVideo)."""
    see_past: bool = True
    """False: a group sees neither the groups nor the text before it (QuickVideo's non-adaptive attention)."""
    prune_text: bool = False
    """Also prune the text behind the last video, by the same score and share (QuickVideo)."""
    trace: bool = False
    """The report also says which places stayed in every layer, and when each stage ran."""

    def __post_init__(self) -> None:
        if not isinstance(self.policy, str | Policy) and isinstance(self.policy, Iterable):
            object.__setattr__(self, "policy", tuple(self.policy))  # hashable, and equal however it was written
        if self.keep is not None:
            _check_share(self.keep)
        _check_whole("keep_tokens", self.keep_tokens, least=1, otherwise="None or ")
        _check_whole("group_frames", self.group_frames, least=2, step=2, otherwise='None, "auto" or ')
        _check_whole("first_layer", self.first_layer, least=0)
        _check_whole("progressive_from", self.progressive_from, least=0, otherwise="None or ")
        decay = self.layer_decay
        if decay is not None and decay != "linear" and (isinstance(decay, str) or not 0 < decay < 1):
            raise ConfigError(f'layer_decay must be None, "linear" or a factor 0 < f < 1 per layer, got {decay!r}')
        check_policies(self.policies)
        self._check_budget()
        self._check_scoring()

    def _check_budget(self) -> None:
        """Every stage that drops tokens has one number to go by."""
        compressor = self.compressor
        later: Policy | None = self.scorer or self.selector
        if compressor and later and compressor != later and compressor.compress_ratio is None:
            raise ConfigError(
                f"keep is what stays behind {later.name}; say what {compressor.name} leaves before it by a ratio of "
                "its own, as with VidCom2(retention_ratio=0.5) or PruneVid.merge_only()"
            )
        ratio = self.own_ratio
        if ratio is not None and self.keep_tokens is not None:
            raise ConfigError(
                f"keep_tokens={self.keep_tokens} and a ratio of {ratio} in {self.selector or compressor!r} both say "
                "how much stays; give one"
            )

    def _check_scoring(self) -> None:
        scorer = self.scorer
        asked = {
            "first_layer": self.first_layer or None,
            "layer_decay": self.layer_decay,
            "progressive_from": self.progressive_from,
            "prune_text": self.prune_text or None,
        }
        named = ", ".join(f"{name}={value!r}" for name, value in asked.items() if value is not None)
        if scorer is None and named:
            names = [policy.name for policy in self.policies]
            raise ConfigError(f"{named} needs a policy that scores, such as key_norm, beside or instead of {names}")
        if self.progressive_from is not None and self.progressive_from < self.first_layer:
            raise ConfigError(
                f"progressive_from must be >= first_layer ({self.first_layer}): a token leaves the hidden states where "
                f"it is pruned; got {self.progressive_from}"
            )
        if scorer is not None and scorer.per_head and self.progressive_from is not None:
            raise ConfigError(
                "per_head=True keeps other tokens in every head, so none can leave the hidden states; "
                "use progressive_from=None"
            )
        if self.prune_text and scorer is not None and scorer.uses_question:
            raise ConfigError(
                f"prune_text=True cannot score the question by itself; use a policy other than {scorer.name}"
            )

    @property
    def keep_share(self) -> float:
        """`keep`, or what it is where it was not given."""
        if self.keep is not None:
            return self.keep
        return _DEFAULT_KEEP if self.keep_tokens is None and self.own_ratio is None else 1.0

    @property
    def question_rides(self) -> bool:
        """Whether the text behind the last video passes the decoder behind every group."""
        return any(policy is not None and policy.uses_question for policy in (self.scorer, self.selector))

    @property
    def own_ratio(self) -> float | None:
        """The ratio that the last stage to drop tokens has of its own; it then wins over `keep`. A scorer has none."""
        if self.scorer is not None:
            return None
        if self.selector is not None:
            return self.selector.select_ratio
        return None if self.compressor is None else self.compressor.compress_ratio

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The policies as objects."""
        named = DEFAULT_POLICY if self.policy is None else self.policy
        given: Any = named if isinstance(named, tuple) else (named,)
        for policy in given:
            if not isinstance(policy, Policy) and not (isinstance(policy, str) and policy in POLICIES):
                raise ConfigError(f"policy must be one of {sorted(POLICIES)} or a Policy object, got {policy!r}")
        if not given:
            raise ConfigError(f"policy must name at least one of {sorted(POLICIES)}, got {self.policy!r}")
        return tuple(policy if isinstance(policy, Policy) else POLICIES[policy]() for policy in given)

    @property
    def compressor(self) -> Compressor | None:
        """The policy that decides what enters the decoder, if any."""
        policies = (policy for policy in self.policies if isinstance(policy, Compressor))
        return next((policy for policy in policies if "compress" in policy.stages), None)

    @property
    def selector(self) -> Selector | None:
        """The policy that decides behind one layer what goes on, if any."""
        policies = (policy for policy in self.policies if isinstance(policy, Selector))
        return next((policy for policy in policies if "select" in policy.stages), None)

    @property
    def scorer(self) -> Scorer | None:
        """The policy that scores what each layer cached, if any."""
        policies = (policy for policy in self.policies if isinstance(policy, Scorer))
        return next((policy for policy in policies if "score" in policy.stages), None)

    def to_dict(self) -> dict[str, Any]:
        """The fields in types that JSON can hold; a policy object becomes its name and options."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["policy"] = policy_to_dict(self.policy)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> QuickPrefillConfig:
        """Inverse of `to_dict`. Raises ConfigError on an unknown field or policy."""
        allowed = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(allowed))
        if unknown:
            raise ConfigError(f"unknown field {', '.join(map(repr, unknown))}; the fields are {allowed}")
        if "policy" in values:
            values = {**values, "policy": policy_from_dict(values["policy"])}
        return cls(**values)

    @classmethod
    def from_lvu(cls, **lvu_options: Any) -> QuickPrefillConfig:
        """The config that does what QuickVideo's LVUConfig(**lvu_options) asks for.

        examples/guides/quickvideo.md has the table of names.

        >>> QuickPrefillConfig.from_lvu(top_k=64, video_group_size=16).keep_tokens
        64

        Raises:
            ConfigError: no such field or score, or a score that never worked in the original.
        """
        from quickprefill.lvu import options_from_lvu

        return cls(**options_from_lvu(lvu_options))

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> QuickPrefillConfig:
        """Inverse of `to_json`."""
        return cls.from_dict(json.loads(text))


def _check_share(keep: object) -> None:
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep <= 1 or math.isnan(keep):
        raise ConfigError(f"keep must be a number with 0 < keep <= 1 (the share that stays), got {keep!r}")


def _check_whole(name: str, value: object, *, least: int, step: int = 1, otherwise: str = "") -> None:
    """`otherwise` names what else is allowed."""
    if (value is None and "None" in otherwise) or (value == "auto" and '"auto"' in otherwise):
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least or value % step:
        kind = "an even integer" if step == 2 else "an integer"
        raise ConfigError(f"{name} must be {otherwise}{kind} >= {least}, got {value!r}")
