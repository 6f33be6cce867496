"""PeakLiveBytes: the most bytes that tensors made in a with block hold at once; kernels' scratch space is not seen."""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakLiveBytes(TorchDispatchMode):
    """Looks at every operator's results and drops what has been freed since; deterministic, and slow."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._known: dict[int, StorageWeakRef] = {}
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in self._live:
                storage = leaf.untyped_storage()
                self._known[storage._cdata] = StorageWeakRef(storage)
        result = func(*args, **(kwargs or {}))
        # An address is used again once its storage is freed.
        self._live = {key: held for key, held in self._live.items() if not held[0].expired()}
        self._known = {key: storage for key, storage in self._known.items() if not storage.expired()}
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self._known:
                    self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.bytes = max(self.bytes, sum(size for _, size in self._live.values()))
        return result
