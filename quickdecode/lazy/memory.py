"""What reads a tensor's memory without asking it, as torch.utils.dlpack.to_dlpack does."""

from __future__ import annotations

import torch

NO_MEMORY = (
    "A LazyTensor has no memory of its own, since its rows are still being made. Pass the tensor itself to from_dlpack "
    "or its .data, which waits for all of them."
)


def refuse_memory(tensor: torch.Tensor) -> None:
    """Let that raise, where it would have been given an address at which there is nothing."""
    torch._C._set_throw_on_mutable_data_ptr(tensor)
    explain = getattr(torch._C, "_set_storage_data_ptr_access_error_msg", None)
    if explain is not None:  # builds for a GPU
        with torch._C.DisableTorchFunctionSubclass():
            explain(tensor.untyped_storage()._cdata, NO_MEMORY)
