"""python -m quickprefill.hook on | off | status: patch every Python process of this environment that asks for it.

`on` puts a `.pth` file beside the installed packages. From then on a process whose environment has QUICKPREFILL set
imports quickprefill.auto as it starts, also one that torchrun or accelerate started; others read one line and go on.
"""

from __future__ import annotations

import argparse
import os
import sysconfig
from pathlib import Path

__all__ = ["main"]

LINE = 'import os; "QUICKPREFILL" in os.environ and __import__("quickprefill.auto")\n'


def main(arguments: list[str] | None = None) -> None:
    """Turn the hook on or off, or say how it stands. Ends with 2 where the folder cannot be written to."""
    parser = argparse.ArgumentParser("quickprefill.hook", description=__doc__)
    parser.add_argument("what", choices=("on", "off", "status"))
    what = parser.parse_args(arguments).what
    file = Path(sysconfig.get_path("purelib")) / "quickprefill_hook.pth"
    try:
        if what == "on":
            file.write_text(LINE)
        elif what == "off":
            file.unlink(missing_ok=True)
    except OSError as error:
        parser.exit(2, f"quickprefill.hook: cannot write {file}: {error.strerror}; use a virtual environment\n")
    print(_status(file))  # noqa: T201


def _status(file: Path) -> str:
    if not file.exists():
        return f"off: no {file}"
    asked = os.environ.get("QUICKPREFILL")
    way = f"QUICKPREFILL={asked!r}" if asked is not None else "QUICKPREFILL is not set, so nothing is patched"
    return f"on: {file}; {way}"


if __name__ == "__main__":
    main()
