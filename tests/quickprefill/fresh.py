"""Code in a Python process of its own, where nothing has been imported, patched or registered yet."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(code):
    """Run `code` from the repository's root; its assertions are the caller's."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    last = (done.stderr.strip().splitlines() or [""])[-1]
    assert done.returncode == 0, f"{last}\n{done.stderr[-4000:]}"
