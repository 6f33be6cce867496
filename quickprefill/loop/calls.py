"""Whose call it is: a patched model's forward() groups a prompt with video, and leaves all else to the stock model.

Two methods take part. The head's notes what only it knows (which logits are wanted, whether there are labels) and then
runs the stock head; the core's, inside it, prefills. So the head's logits, loss and output class, and whatever others
wrapped around it (autocast, hooks), are the stock model's own.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicCache
from transformers.generation.configuration_utils import GenerationMode

from quickprefill import versions
from quickprefill.attention.running import Running, running
from quickprefill.cache.layer import PrunedLayer
from quickprefill.config import QuickPrefillConfig
from quickprefill.hosts.base import Host
from quickprefill.loop.prefill import MAX_LENGTH, prefill
from quickprefill.loop.reasons import layers_reason, machinery_reason
from quickprefill.loop.training import Training
from quickprefill.reporting import Recorder
from quickprefill.spread import LEAST, Spread
from quickprefill.weights import weights_of

__all__ = ["EVERYTHING", "Calls", "left_to_stock"]

logger = logging.getLogger("quickprefill")

_READS_LAST = "_quickprefill_reads_last"
"""Attribute of a cache in which generate() leaves that it looks at the last column's logits only."""
EVERYTHING = 0
"""Stands for every model in left_to_stock()."""


@dataclass
class _Request:
    """What the head's forward() was asked for."""

    logits_to_keep: int | torch.Tensor = 0
    labels: torch.Tensor | None = None


_request: ContextVar[_Request | None] = ContextVar("quickprefill_request", default=None)
_left: ContextVar[frozenset[int]] = ContextVar("quickprefill_left_to_stock", default=frozenset())


@contextlib.contextmanager
def left_to_stock(*objects: Any) -> Iterator[None]:
    """While the context lasts, in this thread, calls of these cores (or classes of cores, or EVERYTHING) are stock."""
    ids = {one if one is EVERYTHING else id(one) for one in objects}
    token = _left.set(_left.get() | ids)
    try:
        yield
    finally:
        _left.reset(token)


class Calls:
    """The methods that a patch puts in the place of a host's; warns once per reason for which a video is stock."""

    def __init__(self, host: Host, config: QuickPrefillConfig) -> None:
        self.host = host
        self.config = config
        self.last_prefill: Recorder | None = None
        self._training = Training(host, config)
        self._warned: set[str] = set()
        self._spread: Spread | None = Spread()
        """Of the first scores; None once it has been looked at."""

    def head_forward(self, stock: Callable[..., Any], head: Any, *args: Any, **kwargs: Any) -> Any:
        """The stock head, which finds our core inside."""
        call = _named(stock, args, kwargs)
        request = _Request(_wanted(type(head), call), call.get("labels"))
        token = _request.set(request)
        try:
            return stock(*args, **kwargs)
        finally:
            _request.reset(token)

    def prepare_cache(self, stock: Callable[..., Any], head: Any, *args: Any, **kwargs: Any) -> Any:
        """generate()'s own preparation of a cache, which also learns how long the sequence may become."""
        prepared = stock(*args, **kwargs)
        call = _named(stock, args, kwargs)
        cache = versions.cache_of(call.get("model_kwargs", {}))
        if isinstance(cache, DynamicCache):
            setattr(cache, MAX_LENGTH, int(call.get("max_cache_length", 0)))
            setattr(cache, _READS_LAST, call.get("generation_mode") != GenerationMode.ASSISTED_GENERATION)
        return prepared

    def core_forward(self, stock: Callable[..., Any], core: Any, *args: Any, **kwargs: Any) -> Any:
        """Group prefill for a prompt with video; else the stock forward, which can read a pruned cache."""
        request = _request.get() or _Request()
        token = _request.set(None)  # what the core calls in turn asks for nothing
        try:
            call = _named(stock, args, kwargs)
            if self._spread is not None and self._spread.noted:  # by now the device has done that prefill
                self._look_at_scores(core, self._spread.told())
                self._spread = None
            if self._trains(core, call, request):
                return self._training.forward(stock, core, call, request.labels)
            if self._is_ours(core, call, request):
                geometry = self.host.geometry(core)
                recorder = Recorder(self.config.trace, geometry.devices[-1], spread=self._spread)
                output = prefill(self.host, core, self.config, call, request.logits_to_keep, geometry, recorder)
                self.last_prefill = recorder
                return output
            return self._stock(stock, core, call)
        finally:
            _request.reset(token)

    def _trains(self, core: Any, call: dict[str, Any], request: _Request) -> bool:
        """Whether a call that leaves the prefill alone passes what the policy learns."""
        if weights_of(core) is None or versions.cache_of(call) is not None or _is_left(core):
            return False
        return _is_inert(core, call, request)

    def _look_at_scores(self, core: Any, spread: float) -> None:
        if spread < LEAST:
            scorer = self.config.scorer
            logger.warning(
                "quickprefill: %s cannot tell this model's tokens apart: std / mean of what it goes by was %.1g in the "
                "first group, below %g, so that what stays is nearly arbitrary%s; use value_norm, vidcom2 or "
                "query_attention",
                "the policy" if scorer is None else scorer.name,
                spread,
                LEAST,
                ". The decoder norms its keys" if self.host.norms_keys(core) else "",
            )

    def _is_ours(self, core: Any, call: dict[str, Any], request: _Request) -> bool:
        if not self.host.has_video(core, call) or _is_left(core) or _is_inert(core, call, request):
            return False
        reason = (
            machinery_reason(core, call)
            or self.host.stock_reason(core, call)
            or layers_reason(self.host, core, self.config, call)
        )
        if reason is not None and reason not in self._warned:
            self._warned.add(reason)
            logger.warning("quickprefill leaves this video to the stock model, unpruned: %s", reason)
        return reason is None

    def _stock(self, stock: Callable[..., Any], core: Any, call: dict[str, Any]) -> Any:
        layers = getattr(versions.cache_of(call), "layers", [])
        if not any(isinstance(layer, PrunedLayer) for layer in layers):
            return stock(**call)
        mask = call.get("attention_mask")
        padding = mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None
        with running(self.host.attention_config(core), Running(layers, padding)):
            return stock(**call)


def _wanted(head_class: type, call: dict[str, Any]) -> int | torch.Tensor:
    """Columns whose logits somebody reads.

    A head that does not take logits_to_keep makes those of all columns that its core gives it, for generate() too: then
    our core gives it the last.
    """
    reads_last = getattr(versions.cache_of(call), "__dict__", {}).pop(_READS_LAST, False)
    if _takes_logits_to_keep(head_class):
        wanted: int | torch.Tensor = call.get("logits_to_keep", 0)
        return wanted
    return int(reads_last)


@functools.cache
def _takes_logits_to_keep(head_class: Any) -> bool:
    return "logits_to_keep" in inspect.signature(head_class.forward).parameters


def _is_left(core: Any) -> bool:
    left = _left.get()
    return bool(left) and not left.isdisjoint({EVERYTHING, id(core), *map(id, type(core).__mro__)})


def _is_inert(core: Any, call: dict[str, Any], request: _Request) -> bool:
    """Training, scoring and cache-less calls are the stock model's, without a word.

    In train() mode only generate() is ours, as in the rollouts of reinforcement learning: a forward() there computes
    probabilities of what was sampled, and those must be the model's own.
    """
    use_cache = call.get("use_cache")
    if use_cache is None:
        use_cache = core.config.get_text_config().use_cache
    if torch.is_grad_enabled() or request.labels is not None or not use_cache:
        return True
    if not core.training:
        return False
    # A layer that checkpoints while training drops the cache that it is given.
    checkpoints = any(getattr(part, "gradient_checkpointing", False) for part in core.modules())
    return checkpoints or not hasattr(versions.cache_of(call), MAX_LENGTH)


def _named(method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments by name, extra keyword arguments included."""
    if not args:
        return dict(kwargs)
    bound = inspect.signature(method).bind(*args, **kwargs).arguments
    return {**{name: value for name, value in bound.items() if name != "kwargs"}, **bound.get("kwargs", {})}
