"""Torchvision's antialiased resize, one picture at a time on a decoding thread.

It has two that differ by a grey level here and there: `transforms` (qwen-vl-utils) works in float32, `transforms.v2`
(transformers) on uint8. Each gives the same bits for one picture as for a batch, and for any number of threads.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from threading import Lock, Thread, local
from typing import Any

import torch

from ..errors import RequestError

MODULES = {"antialiased": "torchvision.transforms.v2.functional", "exact": "torchvision.transforms.functional"}
RESIZES = ("fast", *MODULES)
ANTIALIASED = ("bicubic", "bilinear")
"""What torchvision can do so."""

Resize = Callable[[torch.Tensor, list[int]], torch.Tensor]


def torchvision_resize(resize: str, interpolation: str) -> Resize:
    """(3, H, W) uint8 and [height, width] -> (3, height, width) uint8. `resize` is one of MODULES.

    Raises RequestError if torchvision cannot be imported.
    """
    try:
        function = importlib.import_module(MODULES[resize]).resize
        mode = importlib.import_module("torchvision.transforms").InterpolationMode(interpolation)
    except (ImportError, RuntimeError) as error:  # the latter where torch is of another build
        raise RequestError(
            f"resize={resize!r} needs torchvision, which cannot be imported ({error}); install the build that matches "
            'torch, or pass resize="fast".'
        ) from error

    def resized(picture: torch.Tensor, size: list[int]) -> torch.Tensor:
        _keep_to_this_thread()
        answer: torch.Tensor = function(picture, size, interpolation=mode, antialias=True)
        return answer

    return resized


_settled: Any = local()
_settling = Lock()


def _keep_to_this_thread() -> None:
    """Let torch not start threads of its own for what this thread calls: every core has a decoding thread already.

    torch.set_num_threads also sets what threads get that have not used torch yet. That is put back, from one of them.
    """
    if getattr(_settled, "done", False):
        return
    with _settling:
        before = torch.get_num_threads()
        if before > 1:
            torch.set_num_threads(1)
            restoring = Thread(target=torch.set_num_threads, args=(before,), name="quickdecode-settling")
            restoring.start()
            restoring.join()
    _settled.done = True
