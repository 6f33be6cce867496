"""python -m quickprefill.run [options] -m MODULE ... | SCRIPT ...: run a program with its video models patched.

The program runs in this process, as with `python -m MODULE` or `python SCRIPT`; its arguments, output, traceback and
exit code are its own. Children that it starts are patched too where `python -m quickprefill.hook on` was called.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import runpy
import sys
from typing import TYPE_CHECKING, Any

from quickprefill.activation import activate, is_waiting, say
from quickprefill.settings import FIELDS, Settings

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["main"]

_SWITCHES = ("progress", "see_past", "prune_text", "trace")
_OURS = (__file__, runpy.run_path.__code__.co_filename)


def main(arguments: list[str] | None = None) -> None:
    """Run the program that the command line names. Ends as that program ends; with 2 for options that do not exist."""
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    module, script = given.pop("module"), given.pop("script")
    if not (module or script):
        parser.error("name a program: -m MODULE ... or SCRIPT ...")
    prefill, decode, stream, resize = (given.pop(name) for name in ("prefill", "decode", "stream", "resize"))
    fields = {name: value for name, value in given.items() if value is not None}
    settings = Settings(fields, prefill=prefill, decode=decode, stream=stream, resize=resize)
    settings.into_environment()
    activate(settings)
    atexit.register(_say_if_nothing_was_patched)
    _run(module, script)


def _parser() -> argparse.ArgumentParser:
    usage = "python -m quickprefill.run [options] (-m MODULE | SCRIPT) [arguments of the program]"
    parser = argparse.ArgumentParser("quickprefill.run", usage=usage, description=main.__doc__, allow_abbrev=False)
    config = parser.add_argument_group("how videos are prefilled (fields of QuickPrefillConfig)")
    for name, meaning in FIELDS.items():
        option = f"--{name.replace('_', '-')}"
        kind: dict[str, Any] = {"type": _value, "metavar": "X"}
        if name in _SWITCHES:
            kind = {"action": argparse.BooleanOptionalAction}
        config.add_argument(option, help=meaning, default=None, **kind)
    config.add_argument("--no-prefill", dest="prefill", action="store_false", help="patch no model")
    reader = parser.add_argument_group("how videos are read")
    reader.add_argument("--stream", action="store_true", help="decode while the model already prefills")
    reader.add_argument("--resize", metavar="HOW", help='"antialiased" (the default), "exact" or "fast"')
    reader.add_argument("--no-decode", dest="decode", action="store_false", help="leave reading as it is")
    program = parser.add_argument_group("the program")
    program.add_argument("-m", dest="module", nargs=argparse.REMAINDER, help="a module, and its arguments")
    program.add_argument("script", nargs=argparse.REMAINDER, help="a file, and its arguments")
    return parser


def _value(text: str) -> Any:
    """JSON where it is some, else the text itself: 0.25, 16, auto, key_norm, {"name": ...}."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _run(module: list[str] | None, script: list[str]) -> None:
    sys.excepthook = _without_our_frames(sys.excepthook, kept=2 if module else 0)
    if module:
        sys.argv = module
        runpy.run_module(module[0], run_name="__main__", alter_sys=True)
        return
    sys.argv = script
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.path.dirname(os.path.abspath(script[0]))
    runpy.run_path(script[0], run_name="__main__")


def _without_our_frames(hook: Any, kept: int) -> Any:
    """A sys.excepthook that shows what the program would have shown without us.

    Args:
        kept: leading frames that are there anyhow: `python -m` has two.
    """

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        last, frames = None, trace
        for _ in range(kept):
            last, frames = frames, frames and frames.tb_next
        while frames is not None and frames.tb_frame.f_code.co_filename in _OURS:
            frames = frames.tb_next
        if last is not None:
            last.tb_next, frames = frames, trace
        hook(kind, error.with_traceback(frames), frames)

    return show


def _say_if_nothing_was_patched() -> None:
    if is_waiting():
        say(
            "the program imported neither transformers nor qwen_vl_utils; nothing was patched. Did it start others? "
            "`python -m quickprefill.hook on` reaches those."
        )


if __name__ == "__main__":
    main()
