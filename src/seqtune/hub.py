"""Whether the Hugging Face hub can be reached, so that a machine without it is told at once and not after retries."""

from __future__ import annotations

import os
import socket
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies

PATIENCE = 3.0
"""Seconds a connection may take."""


@cache
def reachable() -> bool:
    """Whether the hub (`HF_ENDPOINT`) takes connections; False under `HF_HUB_OFFLINE`, True behind a proxy.

    Asked once a process. Where it is False, only files that were downloaded before can be used.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    if getproxies().get(endpoint.scheme):
        return True
    try:
        with socket.create_connection((endpoint.hostname or "", endpoint.port or 443), PATIENCE):
            return True
    except OSError:
        return False
