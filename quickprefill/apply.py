"""apply(), remove() and patched(): swap the host's methods, show it in print(model), and undo it without a trace."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import types
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import transformers

from quickprefill.config import QuickPrefillConfig
from quickprefill.errors import InputError, UnsupportedModelError
from quickprefill.hosts import FAMILIES, Family
from quickprefill.loop.dispatch import Dispatcher
from quickprefill.report import PrefillReport

__all__ = ["apply", "patched", "remove", "report"]

logger = logging.getLogger("quickprefill")

_ATTRIBUTE = "_quickprefill"
_Target = TypeVar("_Target")
_Handler = Callable[..., Any]


@dataclasses.dataclass
class _Patch:
    config: QuickPrefillConfig
    dispatcher: Dispatcher
    handlers: dict[str, _Handler]
    """Method name -> handler(stock method, model, *args, **kwargs)."""
    saved: dict[str, Any]
    """What the target's own namespace held under those names; a name that it did not hold is absent here too."""


def apply(model: _Target = None, config: QuickPrefillConfig | None = None, **overrides: Any) -> _Target:  # type: ignore[assignment]
    """Patch a model so that its videos are prefilled group by group into a pruned cache.

    Args:
        model: a model (only this instance is patched; wrappers such as PEFT's are looked through), one of the host
            classes (every model of that class, also those built later, is patched), or None for all host classes.
        config: default QuickPrefillConfig().
        **overrides: fields of the config that differ: `apply(model, keep=0.25)`.

    Returns:
        `model`, for chaining. A second apply replaces the first.

    Raises:
        ConfigError: a value is out of range, or names a layer that the model does not have.
        UnsupportedModelError: no family covers the model, or it lacks a seam. Nothing is changed then.
    """
    config = _configure(config, overrides)
    targets = _targets(model)
    for target, family in targets:
        family.check_seams(target)
        if not isinstance(target, type):
            config.check_layers(family.num_layers(target))
    for target, family in targets:
        _undo(target)
        _patch(target, family, config)
        logger.info("patched %s %s: %s", *_names(target), config)
        _warn_if_untested(family)
    return model


def remove(model: _Target = None) -> _Target:  # type: ignore[assignment]
    """Undo apply(model), for the same kind of argument. Leaves no trace; does nothing where nothing was applied."""
    for target, _ in _targets(model):
        _undo(target)
    return model


@contextlib.contextmanager
def patched(model: Any = None, config: QuickPrefillConfig | None = None, **overrides: Any) -> Iterator[Any]:
    """apply() for the duration of a with block; afterwards the model is as it was, patched before or not."""
    before = [(target, vars(target).get(_ATTRIBUTE)) for target, _ in _targets(model)]
    apply(model, config, **overrides)
    try:
        yield model
    finally:
        remove(model)
        for target, patch in before:
            if patch is not None:
                apply(target, patch.config)


def report(model: Any = None) -> PrefillReport:
    """What the last prefill of a patched model (or class) did: tokens by stage and layer, cache bytes, seconds.

    Raises:
        InputError: the model is not patched, or has prefilled no video yet.
    """
    for target, _ in _targets(model):
        if getattr(target, _ATTRIBUTE, None) is None:
            raise InputError("the model is not patched; call quickprefill.apply(model) before generate()")
        last = last_report(target)
        if last is not None:
            return last
    raise InputError("no prefill yet: generate() has not met a video since apply()")


def last_report(target: Any) -> PrefillReport | None:
    """What a patched model's last prefill did; None before the first."""
    patch: _Patch | None = getattr(target, _ATTRIBUTE, None)
    recorder = None if patch is None else patch.dispatcher.last_prefill
    return None if recorder is None else recorder.report()


def configured(
    model: Any, config: QuickPrefillConfig | None, overrides: dict[str, Any]
) -> tuple[Any, Family, QuickPrefillConfig]:
    """The host model, its family, and the config that apply() would use, or that the model is patched with."""
    ((target, family),) = _targets(model)
    patch: _Patch | None = getattr(target, _ATTRIBUTE, None)
    if config is None and patch is not None:
        config = patch.config
    config = _configure(config, overrides)
    config.check_layers(family.num_layers(target))
    return target, family, config


def _configure(config: QuickPrefillConfig | None, overrides: dict[str, Any]) -> QuickPrefillConfig:
    if config is None:
        return QuickPrefillConfig.from_dict(overrides)
    return QuickPrefillConfig.from_dict({**vars(config), **overrides})


def _targets(model: Any) -> list[tuple[Any, Family]]:
    """What to patch: (host model or class, its family) pairs."""
    if model is None:
        return [(family.host_class(), family) for family in FAMILIES.values()]
    for family in FAMILIES.values():
        if isinstance(model, type) and issubclass(model, family.host_class()):
            return [(model, family)]
    for module in model.modules() if isinstance(model, torch.nn.Module) else ():
        family = FAMILIES.get(getattr(getattr(module, "config", None), "model_type", None))  # type: ignore[arg-type, assignment]
        if family is not None and isinstance(module, family.host_class()):
            return [(module, family)]
    kind = model.__name__ if isinstance(model, type) else type(model).__name__
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    hosts = [family.host_class().__name__ for family in FAMILIES.values()]
    raise UnsupportedModelError(
        f"cannot patch {kind} (model_type {model_type!r}); pass one of {hosts} (model_type {sorted(FAMILIES)}), "
        "its class, or None for all of them"
    )


def _patch(target: Any, family: Family, config: QuickPrefillConfig) -> None:
    dispatcher = Dispatcher(family, config)
    handlers = {**family.overrides(), "forward": dispatcher.forward, "extra_repr": _extra_repr}
    saved = {name: vars(target)[name] for name in handlers if name in vars(target)}
    wrap = _class_method if isinstance(target, type) else _instance_method
    patch = _Patch(config, dispatcher, handlers, saved)
    swapped = {name: wrap(target, name, patch) for name in handlers}
    for name, method in swapped.items():
        setattr(target, name, method)
    setattr(target, _ATTRIBUTE, patch)


def _undo(target: Any) -> None:
    patch = vars(target).get(_ATTRIBUTE)
    if patch is None:
        return
    for name in patch.handlers:
        if name in patch.saved:
            setattr(target, name, patch.saved[name])
        else:
            delattr(target, name)
    delattr(target, _ATTRIBUTE)


def _instance_method(model: Any, name: str, patch: _Patch) -> Any:
    """A method in the instance's own namespace. It finds its patch there, so that a deep copy finds the copy's."""

    @functools.wraps(getattr(type(model), name))
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        own: _Patch = vars(self)[_ATTRIBUTE]
        stock = own.saved[name] if name in own.saved else getattr(type(self), name).__get__(self)
        return own.handlers[name](stock, self, *args, **kwargs)

    return types.MethodType(method, model)


def _class_method(host: type, name: str, patch: _Patch) -> Any:
    stock = getattr(host, name)

    @functools.wraps(stock)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = stock.__get__(self)
        if _ATTRIBUTE in vars(self):  # the instance has a patch of its own, which got here for the stock method
            return bound(*args, **kwargs)
        return patch.handlers[name](bound, self, *args, **kwargs)

    return method


def _extra_repr(stock: Callable[[], str], model: Any) -> str:
    patch: _Patch = getattr(model, _ATTRIBUTE)
    config = patch.config
    ours = (
        f"(quickprefill): keep={config.keep}, keep_tokens={config.keep_tokens}, "
        f"group_frames={config.group_frames}, policy={_policy_repr(config)}"
    )
    return "\n".join(filter(None, (stock(), ours)))


def _warn_if_untested(family: Family) -> None:
    oldest, newest = (tuple(map(int, version.split("."))) for version in family.tested)
    if not oldest <= tuple(map(int, transformers.__version__.split(".")[:2])) <= newest:
        logger.warning(
            "transformers %s is outside the tested range %s; compare keep=1.0 with the stock model first",
            transformers.__version__,
            " to ".join(family.tested),
        )


def _policy_repr(config: QuickPrefillConfig) -> str:
    return " + ".join(map(repr, config.policies))


def _names(target: Any) -> tuple[str, str]:
    return ("class", target.__name__) if isinstance(target, type) else ("model", type(target).__name__)
