"""Imported, it prints what the last prefill of a patched class did when the program ends."""

import atexit

import quickprefill


def tell():
    """PREFILLED and the report, or NOT PREFILLED and why."""
    try:
        print("PREFILLED", quickprefill.report(), flush=True)
    except quickprefill.InputError as error:
        print("NOT PREFILLED", error, flush=True)


atexit.register(tell)
