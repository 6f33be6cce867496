"""What a policy is: a frozen dataclass that derives from the base of each stage it takes.

    Compressor.compress(tokens)   behind the vision tower: fewer or merged tokens enter the decoder
    Selector.select(seen)         once, behind one decoder layer: which tokens go on, by what the question looks at
    Scorer.score(kv)              in every layer's cache: how much each token is worth keeping

A base also says what the group loop must know of a stage; each of these values has a default and may be overridden by a
class attribute, by a dataclass field or by a property.
"""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from quickprefill.errors import ConfigError
from quickprefill.policies.seen import GroupAttention, GroupKV
from quickprefill.policies.shared.rounding import round_share
from quickprefill.prompt.spans import Grid
from quickprefill.prompt.tokens import VideoTokens

__all__ = ["STAGES", "Compressor", "GroupAttention", "GroupKV", "Policy", "Scorer", "Selector"]

STAGES = ("compress", "select", "score")

if TYPE_CHECKING:
    from builtins import property as default
else:

    class default:
        """A property that a plain attribute, a dataclass field or a property of a subclass may override.

        A real property would be in the way of a field: it can't be assigned to on the instance, and on the class it
        would be taken for the field's default value. This one reads as its value on both.
        """

        def __init__(self, get):
            self._get = get
            self.__doc__ = get.__doc__

        def __get__(self, instance, owner=None):
            return self._get(instance)


@dataclass(frozen=True)
class Policy:
    """Base of the three bases. A policy's fields are its hyper-parameters.

    A list among their values becomes a tuple, so that a policy has a hash and equals what comes back from JSON.
    """

    name: ClassVar[str] = "policy"
    """Key in POLICIES; a class that gives none is called by its own name in snake_case."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" not in vars(cls):
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower()
        check = vars(cls).get("__post_init__")
        if check is not None:

            def frozen_first(self: Policy, *init_only: Any) -> None:
                _freeze_lists(self)
                check(self, *init_only)

            cls.__post_init__ = frozen_first  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        _freeze_lists(self)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that this object takes part in: those of the bases that its class derives from."""
        bases = (Compressor, Selector, Scorer)
        return tuple(stage for stage, base in zip(STAGES, bases, strict=True) if isinstance(self, base))

    @default
    def uses_question(self) -> bool:
        """Whether a stage needs the text behind the video."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """Name and hyper-parameters, in types that JSON can hold."""
        return {"name": self.name, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Policy:
        """Inverse of `to_dict`, given without the name."""
        allowed = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(allowed))
        if unknown:
            raise ConfigError(f"policy {cls.name!r} has no option {', '.join(unknown)}; its options: {allowed}")
        return cls(**values)


class Compressor(Policy, ABC):
    """Base of policies that decide what enters the decoder."""

    @default
    def scope(self) -> Literal["video", "group"]:
        """What compress() gets at a time: "group", or "video", which has to wait for the whole video."""
        return "group"

    @default
    def compress_ratio(self) -> float | None:
        """Share of the tokens that the policy's own fields ask for, 0 < ratio <= 1; None: the config's `keep`."""
        return None

    @default
    def exact(self) -> bool:
        """Whether compress() leaves exactly `tokens.num_kept` tokens, so that nobody must count them on the device."""
        return False

    @default
    def whole_slices(self) -> bool:
        """Whether compress() needs all tokens of each slice: some processors leave out those that hardly change."""
        return False

    def new_weights(self, width: int) -> torch.nn.Module | None:
        """Parameters that compress() finds in `tokens.weights`, for embeddings so wide; None: it learns nothing.

        They are called with what is to be done, weights(function, *args) -> function(weights, *args).
        """
        return None

    def own_count(self, grid: Grid) -> int | None:
        """How many tokens of a video or group the policy's own fields ask for; None: the config's `keep` says."""
        return None if self.compress_ratio is None else round_share(self.compress_ratio, grid.num_tokens)

    def most_tokens(self, grid: Grid, num_kept: int) -> int:
        """The most tokens that compress() may leave of a video or group with that grid."""
        return num_kept if self.exact else grid.num_tokens

    def workspace_bytes(
        self, num_tokens: int, slice_tokens: int, width: int, itemsize: int, num_kept: int | None = None
    ) -> int:
        """The most bytes alive at once inside compress(), its result included and its input not.

        Args:
            slice_tokens: tokens of one temporal slice.
            width: channels of a row of `tokens.embeds`.
            itemsize: bytes of one of them.
            num_kept: `tokens.num_kept`; None: as for the worst.
        """
        return num_tokens * width * (itemsize + 4)

    @abstractmethod
    def compress(self, tokens: VideoTokens) -> VideoTokens:
        """The tokens that enter the decoder, in raster order, each at a place of its own.

        A policy looks at `tokens.features`; what it takes or merges are whole rows of `tokens.embeds`.
        """


class Selector(Policy, ABC):
    """Base of policies that decide, behind one decoder layer, which tokens go on."""

    @default
    def layer(self) -> int:
        """The decoder layer, from 0, whose attention select() gets and behind which tokens are dropped."""
        return 0

    @default
    def attention(self) -> Literal["position_free", "causal"]:
        """Which attention: "causal", the layer's own, or "position_free", without rotary embedding and mask."""
        return "causal"

    @default
    def prune_cache(self) -> bool:
        """Whether the dropped tokens also leave the caches of the layers up to `layer`."""
        return True

    @default
    def select_ratio(self) -> float | None:
        """Share of a group's tokens that the policy's own fields ask for, 0 < ratio <= 1; None: the config's `keep`."""
        return None

    @default
    def uses_question(self) -> bool:
        """Always, unless a subclass says otherwise: the rows of the attention are the question's."""
        return True

    @abstractmethod
    def select(self, seen: GroupAttention) -> torch.Tensor:
        """Ascending indices of the tokens that go on, (n,), 1 <= n <= N."""


class Scorer(Policy, ABC):
    """Base of policies that score what a layer cached. The highest stay; ties go to the earlier token."""

    @default
    def per_head(self) -> bool:
        """Whether each key-value head has scores, and so tokens, of its own."""
        return False

    @default
    def uses_residual(self) -> bool:
        """Whether score() needs hidden states."""
        return False

    def rests_on(self, kv: GroupKV, scores: torch.Tensor) -> torch.Tensor:
        """What tells tokens apart, of any shape: a model in which it hardly differs gets a warning. The scores."""
        return scores

    @abstractmethod
    def score(self, kv: GroupKV) -> torch.Tensor:
        """float32, (B, N), or (B, K, N) where `per_head`."""


def _freeze_lists(policy: Policy) -> None:
    for field in dataclasses.fields(policy):
        value = getattr(policy, field.name)
        if isinstance(value, list | tuple):
            object.__setattr__(policy, field.name, _frozen(value))


def _frozen(value: Any) -> Any:
    """Lists as tuples, at any depth."""
    return tuple(map(_frozen, value)) if type(value) in (list, tuple) else value
