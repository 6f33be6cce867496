"""apply(), remove(), patched() and disabled(): swap the host's methods, show it in print(model), undo it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, TypeVar

from quickprefill import late, release, versions
from quickprefill.config import QuickPrefillConfig
from quickprefill.errors import ConfigError, InputError, QuickPrefillError
from quickprefill.fits import check_layers
from quickprefill.hosts import Host
from quickprefill.loop.calls import EVERYTHING, Calls, left_to_stock
from quickprefill.patch import ATTRIBUTE, install, live, uninstall
from quickprefill.reporting import PrefillReport
from quickprefill.targets import absent_hosts, core_of, find_targets
from quickprefill.weights import attach, detach, needs_a_model, put_back, weights_of

__all__ = ["apply", "configured", "disabled", "patched", "remove", "report"]

logger = logging.getLogger("quickprefill")

_Model = TypeVar("_Model")


def apply(model: _Model = None, config: QuickPrefillConfig | None = None, **overrides: Any) -> _Model:  # type: ignore[assignment]
    """Patch a model so that its videos are prefilled group by group into a pruned cache.

    Args:
        model: a model (only this instance is patched; wrappers such as PEFT's are looked through), one of the host
            classes (every model of that class, also those built later, is patched), or None for all host classes, also
            those that are imported later.
        config: default QuickPrefillConfig().
        **overrides: fields of the config that differ: `apply(model, keep=0.25)`.

    Returns:
        `model`, for chaining. A second apply replaces the first; weights that a policy learned stay if they fit.

    Raises:
        ConfigError: a value is out of range, names a layer that the model does not have, or a policy has weights and
            this is no single model.
        UnsupportedModelError: no family covers the model, or it lacks a seam. Nothing is changed then.
    """
    config = _configure(config, overrides)
    targets = [one for one in find_targets(model) if model is not None or _can_be_patched(*one)]
    for target, host in targets:
        host.check(target)
        if not isinstance(target, type):
            check_layers(config, host.new_layers(host.core(target)))
    if model is None or isinstance(model, type):
        needs_a_model(config)
    for target, host in targets:
        if not isinstance(target, type):
            attach(host, host.core(target), config)
        _patch(target, host, config)
    for host in absent_hosts() if model is None else ():
        late.when_imported(host.module_name, _Late(host, config))
    return model


def remove(model: _Model = None) -> _Model:  # type: ignore[assignment]
    """Undo apply(model), for the same kind of argument. Leaves no trace; does nothing where nothing was applied.

    Weights that a policy learned go too: save_adapter() first. Where somebody wrapped the patched forward() meanwhile,
    their wrapper stays and leads to the stock model.
    """
    for target, host in find_targets(model):
        for part in (target, core_of(target, host)):
            if part is not None:  # a release may lack a class that the host has in others
                uninstall(part)
                detach(part)
    for name in list(late.waiting) if model is None else ():
        late.cancel(name)
    return model


@contextlib.contextmanager
def patched(model: Any = None, config: QuickPrefillConfig | None = None, **overrides: Any) -> Iterator[Any]:
    """apply() for the duration of a with block; afterwards the model is as it was, patched before or not."""
    targets = find_targets(model)
    before = [(target, host, record.calls.config) for target, host in targets if (record := live(target)) is not None]
    cores = [(host, core_of(target, host)) for target, host in targets]
    weights = [(host, core, weights_of(core)) for host, core in cores if core is not None]
    waited = dict(late.waiting)
    apply(model, config, **overrides)
    try:
        yield model
    finally:
        remove(model)
        for host, core, held in weights:
            put_back(host, core, held)
        for target, host, config_before in before:
            _patch(target, host, config_before)
        for name, action in waited.items() if model is None else ():
            late.when_imported(name, action)


@contextlib.contextmanager
def disabled(model: Any = None) -> Iterator[Any]:
    """Leave a with block to the stock model, patched or not: scoring, reference probabilities, a comparison.

    Holds for the calls of this thread. The patch stays where it is.
    """
    cores = [EVERYTHING] if model is None else [core_of(target, host) for target, host in find_targets(model)]
    with left_to_stock(*cores):
        yield model


def report(model: Any = None) -> PrefillReport:
    """What the last prefill of a patched model (or class) did: tokens by stage and layer, cache bytes, seconds.

    Raises:
        InputError: the model is not patched, or has prefilled no video yet.
    """
    found = [calls for target, _ in find_targets(model) if (calls := _calls(target)) is not None]
    if not found:
        raise InputError("the model is not patched; call quickprefill.apply(model) before generate()")
    for calls in found:
        if calls.last_prefill is not None:
            return calls.last_prefill.report()
    raise InputError("no prefill yet: generate() has not met a video since apply()")


def configured(
    model: Any, config: QuickPrefillConfig | None, overrides: dict[str, Any]
) -> tuple[Any, Host, QuickPrefillConfig, PrefillReport | None]:
    """A model's core and host, the config that it is patched with or that apply() would use, and its last report."""
    ((target, host),) = find_targets(model)
    calls = _calls(target)
    if config is None and calls is not None:
        config = calls.config
    config = _configure(config, overrides)
    core = host.core(target)
    check_layers(config, host.new_layers(core))
    last = None if calls is None or calls.last_prefill is None else calls.last_prefill.report()
    return core, host, config, last


def _configure(config: QuickPrefillConfig | None, overrides: dict[str, Any]) -> QuickPrefillConfig:
    if config is not None and not isinstance(config, QuickPrefillConfig):
        hint = f"; write keep={config!r}" if isinstance(config, int | float) else ""
        raise ConfigError(f"config must be a QuickPrefillConfig or None, got {config!r}{hint}")
    return QuickPrefillConfig.from_dict({**({} if config is None else vars(config)), **overrides})


def _calls(target: Any) -> Calls | None:
    """The patch that a model or class obeys: its own, or that of a class."""
    spaces = [target, *(target.__mro__ if isinstance(target, type) else type(target).__mro__)]
    records = (live(space) for space in spaces if ATTRIBUTE in vars(space))
    record = next((record for record in records if record is not None), None)
    return None if record is None else record.calls


def _patch(target: Any, host: Host, config: QuickPrefillConfig) -> None:
    calls = Calls(host, config)
    head_class = target if isinstance(target, type) else type(target)
    head: dict[str, Callable[..., Any]] = {"forward": calls.head_forward, "extra_repr": _extra_repr}
    head |= host.overrides(head_class)
    head |= versions.overridable(head_class, {"_prepare_cache_for_generation": calls.prepare_cache})
    install(target, calls, head)
    install(core_of(target, host), calls, {"forward": calls.core_forward})
    kind, name = ("class", target.__name__) if isinstance(target, type) else ("model", type(target).__name__)
    logger.info("patched %s %s: %s", kind, name, config)
    _warn_if_untested(host)


class _Late:
    """Patches a host's class once its module is imported."""

    def __init__(self, host: Host, config: QuickPrefillConfig) -> None:
        self._host, self._config = host, config

    def __call__(self, module: ModuleType) -> None:
        target = getattr(module, self._host.head_name)
        if _can_be_patched(target, self._host):
            _patch(target, self._host, self._config)


def _can_be_patched(target: type, host: Host) -> bool:
    """Whether a class that nobody named can be; if not, the others, or somebody else's import, must not fail for it."""
    try:
        host.check(target)
    except QuickPrefillError as error:
        logger.warning("quickprefill leaves %s as it is: %s", host.head_name, error)
        return False
    return True


def _extra_repr(stock: Callable[[], str], model: Any) -> str:
    calls = _calls(model)
    if calls is None:
        return stock()
    fields = [f"{field.name}={_shown(calls.config, field.name)}" for field in dataclasses.fields(calls.config)]
    return "\n".join(filter(None, (stock(), f"(quickprefill): {', '.join(fields)}")))


def _shown(config: QuickPrefillConfig, name: str) -> str:
    if name == "policy":
        return " + ".join(map(repr, config.policies))
    if name == "keep" and config.own_ratio is not None:
        return f"{config.keep} (the policy's own {config.own_ratio} wins)"
    if name == "keep" and config.keep is None:
        return f"{config.keep_share} (default)"
    return repr(getattr(config, name))


def _warn_if_untested(host: Host) -> None:
    if release.is_untested(host.tested):
        logger.warning(
            "transformers %s is newer than what is tested, %s; compare keep=1.0 with the stock model first",
            release.INSTALLED,
            " to ".join(host.tested),
        )
