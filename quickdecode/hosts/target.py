"""To what size a video processor of transformers will resize frames: it is asked, with tensors that have no values.

No family is known by name. A processor that resizes frames more than once, not by torchvision's antialiased resize of
uint8 pictures, or that would do something else with frames already resized, keeps its frames at full size.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
"""PIL's numbers, as in a processor's `resample`, of those that torchvision can do antialiased."""

call: ContextVar[tuple[Any, Callable[..., Any], dict[str, Any]] | None] = ContextVar("quickdecode_call", default=None)
"""The processor whose preprocess() is running, that method as the library has it, and its keyword arguments."""


def interpolation() -> str | None:
    """How the running processor resizes; None if not in a way that can be done for it."""
    running = call.get()
    if running is None:
        return None
    processor, _, given = running
    resample = given.get("resample", getattr(processor, "resample", None))
    value: Any = getattr(resample, "value", resample)  # PIL's enumeration, or torchvision's with names
    return value if value in INTERPOLATIONS.values() else INTERPOLATIONS.get(value)


def target_size(num_frames: int, height: int, width: int, how: str) -> tuple[int, int] | None:
    """Height and width to which the running processor will resize so many frames; None: leave that to it.

    Args:
        how: what interpolation() said.
    """
    running = call.get()
    assert running is not None
    processor, preprocess, given = running
    given = {**given, "do_sample_frames": False, "video_metadata": None, "device": None, "return_tensors": None}

    def asked(height: int, width: int) -> tuple[list[tuple[int, ...]], Any]:
        with _Resizes(how) as resizes:
            frames = torch.empty((num_frames, 3, height, width), dtype=torch.uint8, device="meta")
            return resizes.sizes, preprocess(processor, frames, **given)

    try:
        sizes, answer = asked(height, width)
        if len(sizes) != 1 or sizes[0][:2] != (height, width):
            return None
        size = sizes[0][2:]
        again, same = asked(*size)
    except Exception:  # it needs values, or it refuses such a video; the real call will say so
        return None
    return (size[0], size[1]) if not again and _alike(answer, same) else None


def resizes_elsewhere() -> bool:
    """Whether the running processor, if any, moves frames to another device before it resizes them."""
    running = call.get()
    if running is None:
        return False
    processor, _, given = running
    device = given.get("device", getattr(processor, "device", None))
    return device is not None and torch.device(device).type != "cpu"


class _Resizes(TorchFunctionMode):
    """Notes the resizes that happen meanwhile."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.sizes: list[tuple[int, ...]] = []
        """(from height, from width, to height, to width) of each; shorter if it is not what `how` says."""
        self._how = how
        self._open = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        answer = func(*args, **kwargs)
        if func is torch.nn.functional.interpolate:
            usual = kwargs.get("mode") == self._how and kwargs.get("antialias") is True
            self.sizes.append((*args[0].shape[-2:], *answer.shape[-2:]) if usual else ())
            self._open = True
        elif func is torch.Tensor.to and self._open:
            self._open = False
            if answer.dtype != torch.uint8:  # the frames were not uint8 when they were resized
                self.sizes[-1] = ()
        return answer


def _alike(one: Any, other: Any) -> bool:
    """Whether two answers are equal, as far as they have values."""
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and (one.shape, one.dtype) == (other.shape, other.dtype)
        return same and (one.device.type == "meta" or torch.equal(one, other))
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(_alike(a, b) for a, b in zip(one, other, strict=True))
    if hasattr(one, "keys"):
        return bool(one.keys() == other.keys()) and all(_alike(one[key], other[key]) for key in one)
    return bool(one == other)
