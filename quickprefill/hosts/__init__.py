"""The host models, one file each. A new one costs a file and a line in FAMILIES."""

from quickprefill.hosts.base import Host
from quickprefill.hosts.qwen2_5_vl import Qwen2_5_VL

__all__ = ["FAMILIES", "Host"]

FAMILIES: dict[str, Host] = {
    "qwen2_5_vl": Qwen2_5_VL(),
}
"""Every supported host by its `config.model_type`."""
