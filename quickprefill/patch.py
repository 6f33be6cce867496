"""Methods of ours in the place of a host's: looked up at every call, and taken out again without a trace.

What a model or class is patched with stands in its own namespace, and our methods look there when they are called. So a
wrapper that somebody puts around them (accelerate, TRL, PEFT) may outlive remove() or a second apply(): it then leads
to the stock method, or to the new patch.
"""

from __future__ import annotations

import inspect
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["ATTRIBUTE", "Record", "install", "live", "uninstall"]

ATTRIBUTE = "_quickprefill"

_FUNCTIONS: weakref.WeakSet[Any] = weakref.WeakSet()
"""Functions of ours that stand, or stood, in classes."""


@dataclass
class Record:
    """What a namespace is patched with."""

    calls: Any
    """Whose methods stand in the place of the host's; None: taken out, but somebody's wrapper may still lead here."""
    handlers: dict[str, Callable[..., Any]]
    """Method name -> handler(stock method, model, *args, **kwargs)."""
    saved: dict[str, Any]
    """What the namespace held under those names; a name that it did not hold is absent here too."""


def live(target: Any) -> Record | None:
    """The patch of a model or class itself, if it is on."""
    record: Record | None = vars(target).get(ATTRIBUTE)
    return None if record is None or record.calls is None else record


def install(target: Any, calls: Any, handlers: dict[str, Callable[..., Any]]) -> None:
    """Patch a model, or every model of a class; a patch that is there already is replaced where it stands."""
    before: Record | None = vars(target).get(ATTRIBUTE)
    record = Record(calls, handlers, {} if before is None else before.saved)
    for name in handlers:
        present = vars(target).get(name)
        if _is_ours(present, target) or (before is not None and name in before.handlers and not _is_stock(present)):
            continue  # ours, or somebody's wrapper around ours
        record.saved.pop(name, None)
        if name in vars(target):
            record.saved[name] = present
        setattr(target, name, _function(target, name) if isinstance(target, type) else Bound(target, name))
    setattr(target, ATTRIBUTE, record)


def uninstall(target: Any) -> None:
    """Undo install(). Somebody's wrapper stays, and finds the stock method behind ours from then on."""
    record: Record | None = vars(target).get(ATTRIBUTE)
    if record is None:
        return
    record.calls = None
    wrapped = False
    for name in record.handlers:
        if not _is_ours(vars(target).get(name), target):
            wrapped = wrapped or name in vars(target)
        elif name in record.saved:
            setattr(target, name, record.saved[name])
        else:
            delattr(target, name)
    if not wrapped:
        delattr(target, ATTRIBUTE)


class Unbound:
    """A method of ours as a function of the model: what others find at `model.forward.__func__`."""

    __slots__ = ("__name__", "_owner")

    def __init__(self, owner: type, name: str) -> None:
        self._owner, self.__name__ = owner, name

    @property
    def __signature__(self) -> inspect.Signature:
        """The stock method's: generate() and pipelines decide by it what they may pass."""
        return inspect.signature(getattr(self._owner, self.__name__))

    def __call__(self, model: Any, /, *args: Any, **kwargs: Any) -> Any:
        record: Record | None = vars(model).get(ATTRIBUTE)
        saved = {} if record is None else record.saved
        name = self.__name__
        stock = saved[name] if name in saved else getattr(type(model), name).__get__(model)
        if record is None or record.calls is None:
            return stock(*args, **kwargs)
        return record.handlers[name](stock, model, *args, **kwargs)


class Bound:
    """A method of ours in a model's own namespace. It copies and pickles with the model, as a closure could not.

    It holds the model weakly: a model that held itself would keep its weights until the next garbage collection.
    """

    __slots__ = ("__name__", "_model")

    def __init__(self, model: Any, name: str) -> None:
        self._model, self.__name__ = weakref.ref(model), name

    def __reduce__(self) -> tuple[Any, ...]:
        return Bound, (self.__self__, self.__name__)

    @property
    def __self__(self) -> Any:
        model = self._model()
        if model is None:
            raise ReferenceError(f"the model whose {self.__name__}() this is was deleted")
        return model

    @property
    def __func__(self) -> Unbound:
        return Unbound(type(self.__self__), self.__name__)

    @property
    def __signature__(self) -> inspect.Signature:
        """The stock method's, bound."""
        return inspect.signature(getattr(type(self.__self__), self.__name__).__get__(self.__self__))

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        text: str | None = getattr(type(self.__self__), self.__name__).__doc__
        return text

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        model = self.__self__
        if args and args[0] is model:  # accelerate took its wrapper from under this, and bound what it found once more
            args = args[1:]
            vars(model)[ATTRIBUTE].saved.pop(self.__name__, None)
        return self.__func__(model, *args, **kwargs)


def _function(owner: type, name: str) -> Any:
    """A method of ours in a class's namespace; a model with a patch of its own gets the stock method from it."""
    stock = getattr(owner, name)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound, record = stock.__get__(self), live(owner)
        if record is None or name not in record.handlers or live(self) is not None:
            return bound(*args, **kwargs)
        return record.handlers[name](bound, self, *args, **kwargs)

    method.__name__, method.__qualname__, method.__doc__ = name, stock.__qualname__, stock.__doc__
    method.__module__ = stock.__module__
    method.__signature__ = inspect.signature(stock)  # type: ignore[attr-defined]
    _FUNCTIONS.add(method)
    return method


def _is_ours(present: Any, target: Any) -> bool:
    if isinstance(target, type):
        return present in _FUNCTIONS if present is not None else False
    if isinstance(present, types.MethodType):
        present = present.__func__
    return isinstance(present, Bound | Unbound)


def _is_stock(present: Any) -> bool:
    """Whether nobody's method stands there, or the class's own, as unwrapping leaves it behind."""
    if present is None:
        return True
    return isinstance(present, types.MethodType) and present.__func__ is getattr(
        type(present.__self__), present.__name__, None
    )
