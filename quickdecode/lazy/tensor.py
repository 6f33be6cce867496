"""LazyTensor: a tensor whose rows are still being made; anything that needs its values gets a real tensor.

Shape, dtype and device are known from the start. Moving, casting, joining, stacking and cutting along the first
dimension give another LazyTensor; every other use makes the whole tensor, once, and from then on works on that. Who
goes through the rows in order and wants only some at a time calls three methods instead, which no other tensor has:

    rows(start, stop, device)   rows [start, stop), on a device
    same_rows(other)            whether two are known to hold the same values, without making them
    close()                     stop whatever makes the rows; asking for more starts it again
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch

from .functions import FACTS, JOINING, METHODS
from .memory import refuse_memory
from .rows import Piece

View: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""From a real tensor to another that shares its memory."""
PART_BYTES = 32 << 20
"""How much of a real tensor is made at a time."""


class LazyTensor(torch.Tensor):
    """See the module; functions.py says which functions leave it lazy."""

    pieces: tuple[Piece, ...] | None
    """What the rows are, joined, several of them for each along the first dimension if it is a stack; None for a single
    row of another."""
    casts: tuple[torch.dtype, ...]
    _real: torch.Tensor | None
    _whole: LazyTensor | None
    _view: View

    @staticmethod
    def __new__(
        cls: type[LazyTensor],
        pieces: tuple[Piece, ...] | None,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        casts: tuple[torch.dtype, ...] = (),
        base: LazyTensor | None = None,
        view: View = torch.Tensor.detach,
    ) -> LazyTensor:
        """
        Args:
            pieces: what the rows are, joined; None for a row of `base`.
            shape, dtype, device: of the whole.
            casts: dtypes that the pieces' rows go through.
            base: the tensor whose memory it shares, as view(base).
        """
        _hide_from_compiler()
        self = torch.Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=dtype, device=device)
        refuse_memory(self)
        self.pieces, self.casts, self._whole, self._view = pieces, casts, base, view
        self._real = None
        lazy: LazyTensor = self
        return lazy

    def rows(self, start: int, stop: int, device: torch.device | None = None) -> torch.Tensor:
        """Rows [start, stop) as a real tensor on `device`. Raises what making them raises."""
        device = self.device if device is None else torch.device(device)
        known = self.known()
        if known is None and self.pieces is None:
            known = self.made()
        if known is not None:
            return known[start:stop].to(device)
        rows = self._rows(start * self.depth, stop * self.depth, device)
        return rows.reshape(len(rows) // self.depth, *self.shape[1:])

    @property
    def depth(self) -> int:
        """Rows in each place along the first dimension: 1, or more if this is a stack."""
        return sum(map(len, self.pieces)) // len(self) if self.pieces else 1

    def _rows(self, start: int, stop: int, device: torch.device) -> torch.Tensor:
        """Rows [start, stop) of all places one after the other, each in one dimension."""
        taken = (piece.source.take(piece.start, piece.stop, device) for piece in self._between(start, stop))
        parts = [rows.reshape(len(rows), -1) for rows in taken]
        rows = torch.cat(parts) if len(parts) != 1 else parts[0]
        for dtype in self.casts:
            rows = rows.to(dtype)
        return rows

    def same_rows(self, other: object) -> bool:
        """Whether `other` is known to hold the same values."""
        if self is other:
            return True
        if not isinstance(other, LazyTensor) or self.pieces is None or self.known() is not None:
            return False
        return self.pieces == other.pieces and self.casts == other.casts and other.known() is None

    def close(self) -> None:
        """Stop what is being made ahead."""
        for piece in self.pieces or ():
            piece.source.close()

    def known(self) -> torch.Tensor | None:
        """The real tensor if it has been made, by this tensor or by the one it is a part of."""
        if self._real is None and self._whole is not None:
            whole = self._whole.known()
            self._real = None if whole is None else self._view(whole)
        return self._real

    def made(self) -> torch.Tensor:
        """The real tensor; made now if need be."""
        if self.known() is None:
            if self._whole is not None:
                self._real = self._view(self._whole.made())
            else:
                self._real = self._gathered()
        assert self._real is not None
        return self._real

    def _gathered(self) -> torch.Tensor:
        assert self.pieces is not None
        whole = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        flat = whole.view(sum(map(len, self.pieces)), -1)
        row_bytes = max(flat[:1].nbytes, 1)
        begin = 0
        for piece in self.pieces:
            step = piece.source.step
            part = max(PART_BYTES // row_bytes // step, 1) * step
            for start in range(begin, begin + len(piece), part):
                stop = min(start + part, begin + len(piece))
                flat[start:stop] = self._rows(start, stop, self.device)
            begin += len(piece)
        return whole

    def _between(self, start: int, stop: int) -> Iterator[Piece]:
        begin = 0
        for piece in self.pieces or ():
            first, last = max(start - begin, 0), min(stop - begin, len(piece))
            if first < last:
                yield replace(piece, start=piece.start + first, stop=piece.start + last)
            begin += len(piece)

    def cut(self, start: int, stop: int) -> LazyTensor:
        """Rows [start, stop), sharing memory with this one."""
        each = self.depth
        pieces = None if self.pieces is None else tuple(self._between(start * each, stop * each))
        return self._shared(pieces, (stop - start, *self.shape[1:]), lambda whole: whole[start:stop])

    def item_at(self, place: int) -> LazyTensor:
        """What lies in one place of the first dimension, sharing memory with this one."""
        each = self.depth
        pieces = tuple(self._between(place * each, (place + 1) * each)) if each > 1 else None
        return self._shared(pieces, self.shape[1:], lambda whole: whole[place])

    def laid_out(self, shape: Sequence[int]) -> LazyTensor:
        """The same rows in a shape that only counts them otherwise, sharing memory with this one."""
        return self._shared(self.pieces, shape, lambda whole: whole.view(shape))

    def _shared(self, pieces: tuple[Piece, ...] | None, shape: Sequence[int], view: View) -> LazyTensor:
        return LazyTensor(pieces, shape, self.dtype, self.device, self.casts, self, view)

    def alias(self) -> LazyTensor:
        """The same rows, sharing memory with this one, without its gradients."""
        alias = self._shared(self.pieces, self.shape, lambda whole: whole[...])
        if (known := self.known()) is not None:
            alias.pieces, alias._whole, alias._real = None, None, known.detach()
        return alias

    def with_rows(self, pieces: tuple[Piece, ...], shape: Sequence[int]) -> LazyTensor:
        """A tensor of this kind with other rows, in memory of its own."""
        return LazyTensor(pieces, shape, self.dtype, self.device, self.casts)

    def copied(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A tensor with the same values in memory of its own."""
        device, dtype = device or self.device, dtype or self.dtype
        if self.pieces is None:
            return self.made().to(device, dtype, copy=True)
        casts = self.casts if dtype == self.dtype else (*self.casts, dtype)
        return LazyTensor(self.pieces, self.shape, dtype, device, casts)

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self, **options: Any) -> str:  # type: ignore[override]
        if self.known() is not None:
            return repr(self.known())
        return f"LazyTensor(shape={tuple(self.shape)}, dtype={self.dtype}, device={str(self.device)!r}, not yet made)"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if not hasattr(self, "_is_param"):
            return super().__deepcopy__(memo)  # type: ignore[no-untyped-call]
        return memo.setdefault(id(self), copy.deepcopy(self._parameter(), memo))

    def __reduce_ex__(self, protocol: Any) -> Any:
        given = self._parameter().__reduce_ex__ if hasattr(self, "_is_param") else super().__reduce_ex__
        return given(protocol)  # type: ignore[no-untyped-call]

    def _parameter(self) -> torch.nn.Parameter:
        """What torch.nn.Parameter would have made of the real tensor."""
        real = self.made()
        return torch.nn.Parameter(real.detach(), real.requires_grad)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        answer = NotImplemented
        if func in JOINING:
            answer = JOINING[func](*args, **kwargs)
        elif func is torch.Tensor.detach:
            answer = args[0].alias()
        elif args and isinstance(args[0], LazyTensor) and args[0].known() is None:
            if func in FACTS:
                with torch._C.DisableTorchFunctionSubclass():
                    return func(*args, **kwargs)
            answer = METHODS[func](*args, **kwargs) if func in METHODS else NotImplemented
        if answer is not NotImplemented:
            return answer
        answer = func(*_real(args), **_real(kwargs))
        for given in (*args[:1], kwargs.get("out")):  # what works in place returns what it was given
            if isinstance(given, LazyTensor) and answer is given.known():
                return given
        return answer

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return func(*_real(args), **_real(kwargs or {}))


@functools.cache
def _hide_from_compiler() -> None:
    """Let torch.compile take what is called on a LazyTensor as it comes, instead of looking into it.

    Not before there is one: this imports the compiler.
    """
    function = vars(LazyTensor)["__torch_function__"].__func__
    LazyTensor.__torch_function__ = classmethod(torch.compiler.disable(function))  # type: ignore[assignment, no-untyped-call]


def _real(value: Any) -> Any:
    if isinstance(value, LazyTensor):
        return value.made()
    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        return type(value)(_real(item) for item in value)
    if isinstance(value, dict):
        return {key: _real(item) for key, item in value.items()}
    return value
