"""What of ours other people's modules and classes hold: nothing, unless something is patched."""

import sys
import types
from pathlib import Path

import quickdecode
import quickprefill

OURS = tuple(f"{Path(str(package.__file__)).parent}/" for package in (quickprefill, quickdecode))
LOOKED_AT = ("transformers", "qwen_vl_utils", "qwen_omni_utils", "llamafactory", "swift", "trl", "lmms_eval", "vlmeval")


def traces():
    """Sorted names, as `transformers.video_utils.VIDEO_DECODERS['torchcodec']`."""
    modules = {name: module for name, module in list(sys.modules.items()) if name.partition(".")[0] in LOOKED_AT}
    return sorted({found for name, module in modules.items() for found in _in(name, vars(module), name)})


def _in(place, namespace, module):
    for key, value in list(namespace.items()):
        if str(key).startswith("_quick") or _is_ours(value):
            yield f"{place}.{key}"
        elif isinstance(value, type) and value.__module__ == module:
            yield from _in(f"{place}.{key}", vars(value), None)
        elif type(value) is dict and not str(key).startswith("__"):  # a lazy mapping would import every model
            yield from (f"{place}.{key}[{at!r}]" for at, one in list(value.items()) if _is_ours(one))


def _is_ours(value):
    """A class or object of ours, or a function that was written there, whatever it says of itself."""
    if isinstance(value, types.MethodType | staticmethod | classmethod):
        value = value.__func__
    if isinstance(value, types.FunctionType):
        return value.__code__.co_filename.startswith(OURS)
    kind = value if isinstance(value, type) else type(value)
    return str(getattr(sys.modules.get(kind.__module__), "__file__", "")).startswith(OURS)
