"""A program patched, then everything taken out again, then the same program once more in the same process.

    python examples/integrations/removed.py WORK -m MODULE ... | SCRIPT ...

Between them stands a line REMOVED, with what is left of ours in other people's modules, and WORK is emptied: what comes
after it is the stock program's.
"""

import shutil
import sys
from pathlib import Path

from tell import tell
from traces import traces

import quickdecode
import quickprefill
from quickprefill import run

work, *program = sys.argv[1:]


def once(*options):
    """Run it; a program may end with sys.exit(0)."""
    try:
        run.main([*options, *program])
    except SystemExit as end:
        if end.code:
            raise


once("--keep", "1", "--group-frames", "8")
tell()
quickprefill.remove()
quickdecode.unregister()
shutil.rmtree(work)
Path(work).mkdir()
print("REMOVED", traces(), flush=True)
once("--no-prefill", "--no-decode")
