"""Imported, it prints what the last prefill of a patched class did when the program ends, and how many there were."""

import atexit

import quickprefill
from quickprefill import late

calls = []


def count(module):
    """Note each prefill."""
    prefill = module.prefill
    module.prefill = lambda *given: calls.append(1) or prefill(*given)


def tell():
    """PREFILLED and the report, or NOT PREFILLED and why."""
    try:
        print("PREFILLED", f"{quickprefill.report()}; prefills {len(calls)}", flush=True)
    except quickprefill.InputError as error:
        print("NOT PREFILLED", error, flush=True)


late.when_imported("quickprefill.loop.calls", count)
atexit.register(tell)
