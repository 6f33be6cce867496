"""PeakLiveBytes: the most bytes that tensors made in a with block hold at once; kernels' scratch space is not seen."""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakLiveBytes(TorchDispatchMode):
    """Looks at every operator's results, and drops what has been freed since where they may be a new most.

    Deterministic, and slow. A storage that is referred to weakly keeps its address to itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._at_most = 0
        """Bytes that are alive, and some that may have been freed."""
        self._known: dict[int, StorageWeakRef] = {}
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self._live and storage._cdata not in self._known:
                    self._known[storage._cdata] = StorageWeakRef(storage)
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self._known:
                    _, before = self._live.get(storage._cdata, (None, 0))
                    self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                    self._at_most += storage.nbytes() - before
        if self._at_most > self.bytes:
            self._live = {key: held for key, held in self._live.items() if not held[0].expired()}
            self._at_most = sum(size for _, size in self._live.values())
            self.bytes = max(self.bytes, self._at_most)
        return result
