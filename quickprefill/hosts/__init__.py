"""The host models, one file each. A new one costs a file and a line in FAMILIES."""

from quickprefill.hosts.base import Family
from quickprefill.hosts.qwen2_5_vl import Qwen2_5_VL

__all__ = ["FAMILIES", "Family"]

FAMILIES: dict[str, Family] = {
    "qwen2_5_vl": Qwen2_5_VL(),
}
"""Every supported host by its `config.model_type`."""
