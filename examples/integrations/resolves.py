"""Whether an installer can put us beside each client, and what versions it then chooses. Reads metadata only.

python -m build --wheel && python -m examples.integrations.resolves dist/quickvideo-*.whl   # needs uv
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

CLIENTS = [
    *("lmms-eval==0.7.3", "ms-swift==4.6.0", "llamafactory==0.9.5", "trl==1.16.0", "kvpress==0.5.5", "axolotl==0.19.0"),
    *("unsloth==2026.10.9", "vllm==0.33.0", "sglang==0.5.23"),
]
RESULT = Path(__file__).resolve().parents[1] / "benchmarks/results/clients_resolve.md"
SHOWN = ("transformers", "av", "torch")


def resolve(client: str, wheel: Path) -> str:
    """A row: the versions chosen, or why there are none."""
    asked = f"{client}\nquickvideo @ {wheel.resolve().as_uri()}\n"
    command = ["uv", "pip", "compile", "-", "--python-version", "3.11", "--no-header", "--no-annotate", "--quiet"]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=600)
    if done.returncode:
        return f"| {client} | no | {' '.join(done.stderr.split())} |"
    chosen = dict(re.findall(r"^([\w.-]+)==(\S+)", done.stdout, re.MULTILINE))
    return f"| {client} | yes | {', '.join(f'{name} {chosen.get(name)}' for name in SHOWN)} |"


def main(wheel: str) -> None:
    """The table, printed and written."""
    rows = [resolve(client, Path(wheel)) for client in CLIENTS]
    head = ["| client | with us | versions |", "|---|---|---|"]
    RESULT.write_text("\n".join([*head, *rows]) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    main(*sys.argv[1:])
