"""How messages call a source: short, and without what is nobody's business."""

from __future__ import annotations

from urllib.parse import urlsplit

LONGEST = 200
START = 80


def short(text: str) -> str:
    """`text`, or its start if it is long: base64, say."""
    return text if len(text) <= LONGEST else f"{text[:START]}... ({len(text)} characters)"


def without_secrets(url: str) -> str:
    """`url` without user, password, query and fragment: addresses of storage are signed in the query."""
    try:
        parts = urlsplit(url)
    except ValueError:  # brackets that are none
        return short(url.partition("?")[0].rpartition("@")[2])
    place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    return short(place + "?..." if parts.query else place)
