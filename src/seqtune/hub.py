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
def settle() -> None:
    """Put the Hugging Face libraries in offline mode for this process if the hub (`HF_ENDPOINT`) takes no connections.

    Call it before asking the hub for anything: what was downloaded before then still loads, and the rest fails at once
    instead of after half a minute of retries. Behind a proxy the hub is taken to be there.
    """
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    if os.environ.get("HF_HUB_OFFLINE") or getproxies().get(endpoint.scheme):
        return
    try:
        socket.create_connection((endpoint.hostname or "", endpoint.port or 443), PATIENCE).close()
    except OSError:
        import datasets
        import huggingface_hub.constants

        huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
