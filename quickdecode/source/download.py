"""A file from the web, in memory: nothing but http and https, and no more of it than the limits allow."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request

from ..errors import SourceError
from .limits import Limits

DOWNLOAD_SECONDS = 60.0
DOWNLOAD_PART = 1 << 20
WEB_HANDLERS = (
    urllib.request.ProxyHandler,
    urllib.request.UnknownHandler,
    urllib.request.HTTPHandler,
    urllib.request.HTTPSHandler,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.HTTPRedirectHandler,
    urllib.request.HTTPErrorProcessor,
)


def download(url: str, timeout_seconds: float, limits: Limits) -> bytes:
    """The whole file. Redirects are followed to http and https only. Raises SourceError, or LimitError."""
    opener = urllib.request.OpenerDirector()
    for handler in WEB_HANDLERS:
        opener.add_handler(handler())
    parts: list[bytes] = []
    size = 0
    try:
        with opener.open(url, timeout=timeout_seconds) as response:
            while part := response.read(DOWNLOAD_PART):
                parts.append(part)
                size += len(part)
                limits.check_download(url, size)
    except (http.client.HTTPException, OSError, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        raise SourceError(f"{url}: the download failed ({error}); check the address, or pass a local file.") from error
    return b"".join(parts)
