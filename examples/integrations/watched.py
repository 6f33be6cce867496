"""python -m quickprefill.run, and at the end what the last prefill did."""

import tell  # noqa: F401

from quickprefill import run

run.main()
