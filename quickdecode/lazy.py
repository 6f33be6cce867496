"""LazyTensor: a tensor whose rows are still being made; anything that needs its values gets a real tensor.

Shape, dtype and device are known from the start. Moving, casting, joining and cutting along the first dimension give
another LazyTensor; every other use makes the whole tensor, once, and from then on works on that. A reader that goes
through the rows in order and wants only some at a time calls three methods instead, which no other tensor has:

    rows(start, stop, device)   rows [start, stop), on a device
    same_rows(other)            whether two are known to hold the same values, without making them
    close()                     stop whatever makes the rows; asking for more starts it again
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

PART_BYTES = 32 << 20
"""How much of a real tensor is made at a time."""


class RowSource(Protocol):
    """Makes rows, in any order, but best in ascending order."""

    @property
    def step(self) -> int:
        """Rows that are made together."""

    def take(self, start: int, stop: int, device: torch.device) -> torch.Tensor:
        """A new tensor of rows [start, stop). Raises whatever making them raises."""

    def close(self) -> None:
        """Stop what is being made ahead."""


@dataclass(frozen=True)
class Held:
    """Rows of a tensor that is there already."""

    tensor: torch.Tensor
    step: int = 1

    def take(self, start: int, stop: int, device: torch.device) -> torch.Tensor:
        return self.tensor[start:stop].to(device, copy=True)

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of a source."""

    source: RowSource
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class LazyTensor(torch.Tensor):
    """See the module. It has pieces, which say what it holds, or is one item of another."""

    _pieces: tuple[Piece, ...] | None
    _casts: tuple[torch.dtype, ...]
    _real: torch.Tensor | None
    _whole: LazyTensor | None
    _place: Any

    @staticmethod
    def __new__(
        cls: type[LazyTensor],
        pieces: tuple[Piece, ...] | None,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        casts: tuple[torch.dtype, ...] = (),
        base: LazyTensor | None = None,
        index: Any = None,
    ) -> LazyTensor:
        """
        Args:
            pieces: what the rows are, joined; None for an item of `base`.
            shape, dtype, device: of the whole.
            casts: dtypes that the pieces' rows go through.
            base: the tensor whose memory it shares, as base[index].
        """
        self = torch.Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=dtype, device=device)
        self._pieces, self._casts, self._whole, self._place = pieces, casts, base, index
        self._real = None
        lazy: LazyTensor = self
        return lazy

    def rows(self, start: int, stop: int, device: torch.device | None = None) -> torch.Tensor:
        """Rows [start, stop) as a real tensor on `device`. Raises what making them raises."""
        device = self.device if device is None else torch.device(device)
        known = self.known()
        if known is None and self._pieces is None:
            known = self.made()
        if known is not None:
            return known[start:stop].to(device)
        parts = [piece.source.take(piece.start, piece.stop, device) for piece in self._between(start, stop)]
        rows = torch.cat(parts) if len(parts) != 1 else parts[0]
        for dtype in self._casts:
            rows = rows.to(dtype)
        return rows

    def same_rows(self, other: object) -> bool:
        """Whether `other` is known to hold the same values."""
        if self is other:
            return True
        if not isinstance(other, LazyTensor) or self._pieces is None or self.known() is not None:
            return False
        return self._pieces == other._pieces and self._casts == other._casts and other.known() is None

    def close(self) -> None:
        """Stop what is being made ahead."""
        for piece in self._pieces or ():
            piece.source.close()

    def known(self) -> torch.Tensor | None:
        """The real tensor if it has been made, by this tensor or by the one it is a part of."""
        if self._real is None and self._whole is not None:
            whole = self._whole.known()
            self._real = None if whole is None else whole[self._place]
        return self._real

    def made(self) -> torch.Tensor:
        """The real tensor; made now if need be."""
        if self.known() is None:
            if self._whole is not None:
                self._real = self._whole.made()[self._place]
            else:
                self._real = self._gathered()
        assert self._real is not None
        return self._real

    def _gathered(self) -> torch.Tensor:
        assert self._pieces is not None
        whole = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        row_bytes = max(whole[:1].nbytes, 1)
        begin = 0
        for piece in self._pieces:
            step = piece.source.step
            part = max(PART_BYTES // row_bytes // step, 1) * step
            for start in range(begin, begin + len(piece), part):
                stop = min(start + part, begin + len(piece))
                whole[start:stop] = self.rows(start, stop)
            begin += len(piece)
        return whole

    def _between(self, start: int, stop: int) -> Iterator[Piece]:
        begin = 0
        for piece in self._pieces or ():
            first, last = max(start - begin, 0), min(stop - begin, len(piece))
            if first < last:
                yield replace(piece, start=piece.start + first, stop=piece.start + last)
            begin += len(piece)

    def cut(self, start: int, stop: int) -> LazyTensor:
        """Rows [start, stop), sharing memory with this one."""
        pieces = None if self._pieces is None else tuple(self._between(start, stop))
        shape = (stop - start, *self.shape[1:])
        return LazyTensor(pieces, shape, self.dtype, self.device, self._casts, self, slice(start, stop))

    def item_at(self, row: int) -> LazyTensor:
        """One row without the first dimension, sharing memory with this one."""
        return LazyTensor(None, self.shape[1:], self.dtype, self.device, (), self, row)

    def copied(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A tensor with the same values in memory of its own."""
        device, dtype = device or self.device, dtype or self.dtype
        if self._pieces is None:
            return self.made().to(device, dtype, copy=True)
        casts = self._casts if dtype == self.dtype else (*self._casts, dtype)
        return LazyTensor(self._pieces, self.shape, dtype, device, casts)

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self, **options: Any) -> str:  # type: ignore[override]
        if self.known() is not None:
            return repr(self.known())
        return f"LazyTensor(shape={tuple(self.shape)}, dtype={self.dtype}, device={str(self.device)!r}, not yet made)"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        lazy = args[0] if args and isinstance(args[0], LazyTensor) else None
        if lazy is None or lazy.known() is None:
            if lazy is not None and func in _FACTS:
                with torch._C.DisableTorchFunctionSubclass():
                    return func(*args, **kwargs)
            answer = _LAZY[func](*args, **kwargs) if func in _LAZY else NotImplemented
            if answer is not NotImplemented:
                return answer
        return func(*_real(args), **_real(kwargs))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return func(*_real(args), **_real(kwargs or {}))


def joined(parts: Sequence[torch.Tensor]) -> LazyTensor:
    """torch.cat(parts) of tensors that agree in dtype, device and all but the first dimension."""
    pieces: list[Piece] = []
    for part in parts:
        lazy = part if isinstance(part, LazyTensor) and part.known() is None else None
        pieces += (lazy._pieces or ()) if lazy is not None else (Piece(Held(_real(part)), 0, len(part)),)
    casts = next((part._casts for part in parts if isinstance(part, LazyTensor)), ())
    shape = (sum(len(piece) for piece in pieces), *parts[0].shape[1:])
    return LazyTensor(tuple(pieces), shape, parts[0].dtype, parts[0].device, casts)


def _real(value: Any) -> Any:
    if isinstance(value, LazyTensor):
        return value.made()
    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        return type(value)(_real(item) for item in value)
    if isinstance(value, dict):
        return {key: _real(item) for key, item in value.items()}
    return value


def _to(self: LazyTensor, *args: Any, copy: bool = False, **kwargs: Any) -> Any:
    device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    return _moved(self, device, dtype, copy)


def _moved(self: LazyTensor, device: Any = None, dtype: Any = None, copy: bool = False) -> Any:
    device = self.device if device is None else torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    same = device == self.device and dtype in (None, self.dtype)
    return self if same and not copy else self.copied(device, dtype)


def _type(self: LazyTensor, dtype: Any = None, non_blocking: bool = False) -> Any:
    return _moved(self, dtype=dtype) if isinstance(dtype, torch.dtype) else NotImplemented


def _cuda(self: LazyTensor, device: Any = None, non_blocking: bool = False, **options: Any) -> Any:
    return _moved(self, torch.device("cuda", device) if isinstance(device, int) else device or "cuda")


def _getitem(self: Any, index: Any) -> Any:
    if not isinstance(self, LazyTensor) or not self.ndim:
        return NotImplemented
    if isinstance(index, int) and not isinstance(index, bool) and -len(self) <= index < len(self):
        return self.item_at(index % len(self))
    if isinstance(index, slice) and all(
        part is None or isinstance(part, int) for part in (index.start, index.stop, index.step)
    ):
        start, stop, step = index.indices(len(self))
        if step == 1 and start < stop:
            return self.cut(start, stop)
    return NotImplemented


def _split(self: Any, sizes: Any, dim: int = 0) -> Any:
    if not isinstance(self, LazyTensor) or dim != 0:
        return NotImplemented
    length = len(self)
    if isinstance(sizes, int):
        sizes = [min(sizes, length - start) for start in range(0, length, sizes)] if sizes > 0 else []
    sizes = [int(size) for size in sizes]
    if sum(sizes) != length or min(sizes) < 0:
        return NotImplemented
    stops = [sum(sizes[: count + 1]) for count in range(len(sizes))]
    return tuple(self.cut(stop - size, stop) for size, stop in zip(sizes, stops, strict=True))


def _cat(tensors: Any, dim: int = 0, **options: Any) -> Any:
    parts = list(tensors)
    lazy = [
        part for part in parts if isinstance(part, LazyTensor) and part.known() is None and part._pieces is not None
    ]
    kinds = {(part.dtype, part.device, part.shape[1:], part._casts) for part in lazy}
    simple = len(lazy) == len(parts) and len(kinds) == 1 and dim == 0 and not options
    return joined(parts) if simple else NotImplemented


def _repeat(self: Any, *sizes: Any) -> Any:
    sizes = tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    lazily = isinstance(self, LazyTensor) and self._pieces is not None and len(sizes) == self.ndim and sizes[0] > 0
    return joined([self] * sizes[0]) if lazily and set(sizes[1:]) <= {1} else NotImplemented


def _own_memory(self: LazyTensor, *args: Any, **kwargs: Any) -> Any:
    return NotImplemented if kwargs else self.copied()


def _itself(self: LazyTensor, *args: Any, **kwargs: Any) -> Any:
    return NotImplemented if args or kwargs else self


_T = torch.Tensor
_LAZY: dict[Any, Callable[..., Any]] = {
    _T.to: _to,
    _T.type: _type,
    _T.cuda: _cuda,
    _T.cpu: lambda self, **options: _moved(self, "cpu"),
    _T.float: lambda self, **options: _moved(self, dtype=torch.float32),
    _T.double: lambda self, **options: _moved(self, dtype=torch.float64),
    _T.half: lambda self, **options: _moved(self, dtype=torch.float16),
    _T.bfloat16: lambda self, **options: _moved(self, dtype=torch.bfloat16),
    _T.contiguous: _itself,
    _T.pin_memory: lambda self, *args, **options: self,
    _T.clone: _own_memory,
    _T.__deepcopy__: lambda self, memo: memo.setdefault(id(self), self.copied()),
    _T.__getitem__: _getitem,
    _T.split: _split,
    torch.split: _split,
    torch.cat: _cat,
    torch.concat: _cat,
    torch.concatenate: _cat,
    _T.repeat: _repeat,
}
"""What stays lazy; each may answer NotImplemented."""

_FACTS = {
    *(getattr(_T, name).__get__ for name in ("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_leaf")),
    *(getattr(_T, name).__get__ for name in ("is_cuda", "is_cpu", "is_meta", "is_sparse", "is_nested", "is_quantized")),
    *(getattr(_T, name).__get__ for name in ("itemsize", "nbytes", "grad_fn", "grad")),
    *(_T.__len__, _T.size, _T.dim, _T.ndimension, _T.numel, _T.nelement, _T.element_size, _T.stride),
    *(_T.is_floating_point, torch.is_floating_point, _T.is_complex, torch.is_complex, torch.numel, _T.get_device),
    *(_T.is_contiguous, _T.is_pinned),
}
"""What is known without the values."""
