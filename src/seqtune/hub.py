"""The Hugging Face libraries in this process: whether their hub can be reached, and what they say."""

from __future__ import annotations

import os
import socket
import warnings
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from seqtune.errors import SeqtuneError

PATIENCE = 3.0
"""Seconds a connection may take."""


def check_folder(name: str, where: str) -> None:
    """Refuse the name of a model or tokenizer that is a path, not a hub name, where there is no folder.

    Raises:
        SeqtuneError: There is none.
    """
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    if looks_local and not Path(name).expanduser().is_dir():
        raise SeqtuneError(
            f"there is no folder '{name}'",
            where=where,
            hint="give a folder saved by `save_pretrained`, a hub name (`Qwen/Qwen3-4B`), or model=tiny",
        )


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


def quiet() -> None:
    """No telemetry, no progress bars and no chatter from the libraries below: the run's own events say it all."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import datasets
    import huggingface_hub.constants
    import transformers

    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True  # read at import, which may be long past
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    # peft and TRL call transformers by names that transformers 5.20 deprecated.
    warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing(_enable|_disable)?` is deprecated", FutureWarning)
