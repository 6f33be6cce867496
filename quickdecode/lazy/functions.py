"""Which of torch's functions leave a LazyTensor lazy; any other makes the whole tensor.

A function of METHODS is called with a LazyTensor that has not been made as its first argument, one of JOINING with a
list that holds one; both may answer NotImplemented.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch

from .rows import Held, Piece

__all__ = ["FACTS", "JOINING", "METHODS"]


def _to(self: Any, *args: Any, copy: bool = False, **kwargs: Any) -> Any:
    device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    return _moved(self, device, dtype, copy) if _in_rows(memory_format) else NotImplemented


def _moved(self: Any, device: Any = None, dtype: Any = None, copy: bool = False) -> Any:
    device = self.device if device is None else torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    same = device == self.device and dtype in (None, self.dtype)
    return self if same and not copy else self.copied(device, dtype)


def _in_rows(memory_format: torch.memory_format | None) -> bool:
    """Whether a tensor of this format lies row after row, as these do."""
    return memory_format in (None, torch.preserve_format, torch.contiguous_format)


def _type(self: Any, dtype: Any = None, non_blocking: bool = False, memory_format: Any = None) -> Any:
    known = isinstance(dtype, torch.dtype) and _in_rows(memory_format)
    return _moved(self, dtype=dtype) if known else NotImplemented


def _cuda(self: Any, device: Any = None, non_blocking: bool = False, memory_format: Any = None) -> Any:
    if not _in_rows(memory_format):
        return NotImplemented
    return _moved(self, torch.device("cuda", device) if isinstance(device, int) else device or "cuda")


def _moving(device: str | None = None, dtype: torch.dtype | None = None) -> Callable[..., Any]:
    def method(self: Any, memory_format: Any = None) -> Any:
        return _moved(self, device, dtype) if _in_rows(memory_format) else NotImplemented

    return method


def _getitem(self: Any, index: Any) -> Any:
    if not self.ndim:
        return NotImplemented
    if isinstance(index, int) and not isinstance(index, bool) and -len(self) <= index < len(self):
        return self.item_at(index % len(self))
    if isinstance(index, slice) and all(
        part is None or isinstance(part, Integral) for part in (index.start, index.stop, index.step)
    ):
        start, stop, step = index.indices(len(self))
        if step == 1 and start < stop:
            return self.cut(start, stop)
    return NotImplemented


def _split(self: Any, sizes: Any, dim: int = 0) -> Any:
    if dim != 0:
        return NotImplemented
    length = len(self)
    if isinstance(sizes, int):
        sizes = [min(sizes, length - start) for start in range(0, length, sizes)] if sizes > 0 else []
    sizes = [int(size) for size in sizes]
    if sum(sizes) != length or min(sizes) < 0:
        return NotImplemented
    stops = [sum(sizes[: count + 1]) for count in range(len(sizes))]
    return tuple(self.cut(stop - size, stop) for size, stop in zip(sizes, stops, strict=True))


def _unbind(self: Any, dim: int = 0) -> Any:
    return tuple(map(self.item_at, range(len(self)))) if dim == 0 and self.depth > 1 else NotImplemented


def _unsqueeze(self: Any, dim: int) -> Any:
    return self.laid_out((1, *self.shape)) if dim == 0 and self.pieces is not None else NotImplemented


def _flatten(self: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    if (start_dim, end_dim) != (0, 1) or self.ndim < 2 or self.depth != self.shape[1]:
        return NotImplemented
    return self.laid_out((self.shape[0] * self.shape[1], *self.shape[2:]))


def _cat(tensors: Any, dim: int = 0, **options: Any) -> Any:
    parts = list(tensors)
    if dim != 0 or options or len({part.shape[1:] for part in parts}) != 1:
        return NotImplemented
    return _joined(parts, (sum(map(len, parts)), *parts[0].shape[1:]))


def _stack(tensors: Any, dim: int = 0, **options: Any) -> Any:
    parts = list(tensors)
    if dim != 0 or options or len({part.shape for part in parts}) != 1 or not all(_is_lazy(part) for part in parts):
        return NotImplemented
    return _joined(parts, (len(parts), *parts[0].shape))


def _joined(parts: list[Any], shape: tuple[int, ...]) -> Any:
    """The rows of all parts, those of real tensors too, if they are alike."""
    lazy = [part for part in parts if _is_lazy(part)]
    kinds = {(part.dtype, part.device) for part in parts}
    if not lazy or len(kinds) != 1 or len({(part.casts, part.depth) for part in lazy}) != 1:
        return NotImplemented
    first, pieces = lazy[0], []
    for part in parts:
        if _is_lazy(part):
            pieces += part.pieces
        elif first.casts or part.requires_grad:  # casts would go over its rows too
            return NotImplemented
        else:
            count = len(part) * first.depth
            pieces.append(Piece(Held(part.detach().clone().reshape(count, -1)), 0, count))
    return first.with_rows(tuple(pieces), shape)


def _is_lazy(part: Any) -> bool:
    return getattr(part, "pieces", None) is not None and part.known() is None


def _repeat(self: Any, *sizes: Any) -> Any:
    sizes = tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    lazily = self.pieces is not None and len(sizes) == self.ndim and sizes[0] > 0
    if not lazily or not set(sizes[1:]) <= {1}:
        return NotImplemented
    return self.with_rows(self.pieces * sizes[0], (len(self) * sizes[0], *self.shape[1:]))


def _repeat_interleave(self: Any, repeats: Any, dim: int | None = None, *, output_size: int | None = None) -> Any:
    if self.depth == 1 or not isinstance(repeats, int) or repeats < 1 or dim != 0:
        return NotImplemented  # repeating single rows would make each as often
    pieces = (self.item_at(place).pieces * repeats for place in range(len(self)))
    return self.with_rows(sum(pieces, ()), (len(self) * repeats, *self.shape[1:]))


def _own_memory(self: Any, *, memory_format: Any = None) -> Any:
    return self.copied() if _in_rows(memory_format) else NotImplemented


def _itself(self: Any, *args: Any, memory_format: Any = None) -> Any:
    return NotImplemented if args or not _in_rows(memory_format) else self


_T = torch.Tensor
METHODS: dict[Any, Callable[..., Any]] = {
    _T.to: _to,
    _T.type: _type,
    _T.cuda: _cuda,
    _T.cpu: _moving("cpu"),
    _T.float: _moving(dtype=torch.float32),
    _T.double: _moving(dtype=torch.float64),
    _T.half: _moving(dtype=torch.float16),
    _T.bfloat16: _moving(dtype=torch.bfloat16),
    _T.contiguous: _itself,
    _T.pin_memory: lambda self, *args, **options: self,
    _T.clone: _own_memory,
    _T.__deepcopy__: lambda self, memo: memo.setdefault(id(self), self.copied()),
    _T.__getitem__: _getitem,
    _T.split: _split,
    torch.split: _split,
    _T.repeat: _repeat,
    _T.repeat_interleave: _repeat_interleave,
    torch.repeat_interleave: _repeat_interleave,
    _T.unbind: _unbind,  # and so iterating
    torch.unbind: _unbind,
    _T.unsqueeze: _unsqueeze,
    torch.unsqueeze: _unsqueeze,
    _T.flatten: _flatten,
    torch.flatten: _flatten,
}

JOINING: dict[Any, Callable[..., Any]] = {
    torch.cat: _cat,
    torch.concat: _cat,
    torch.concatenate: _cat,
    torch.stack: _stack,
}
"""Functions of a list of tensors."""

FACTS = {
    *(getattr(_T, name).__get__ for name in ("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_leaf")),
    *(getattr(_T, name).__get__ for name in ("is_cuda", "is_cpu", "is_meta", "is_sparse", "is_nested", "is_quantized")),
    *(getattr(_T, name).__get__ for name in ("itemsize", "nbytes", "grad_fn", "grad")),
    *(_T.__len__, _T.size, _T.dim, _T.ndimension, _T.numel, _T.nelement, _T.element_size, _T.stride),
    *(_T.is_floating_point, torch.is_floating_point, _T.is_complex, torch.is_complex, torch.numel, _T.get_device),
    *(_T.is_contiguous, _T.is_pinned),
}
"""What is known without the values."""
