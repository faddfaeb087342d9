"""An unreachable hub is noticed once, before the libraries start to retry."""

from __future__ import annotations

import socket

import datasets
import huggingface_hub.constants as constants
import pytest

from seqtune import hub


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries as a machine without `HF_HUB_OFFLINE` and without a proxy has them."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)


def offline() -> list[bool]:
    hub.settle.__wrapped__()
    return [constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE]


def test_a_hub_that_takes_no_connection_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:  # bound, not listening: connections to it are refused
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert offline() == [True, True]


def test_a_hub_that_answers_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert offline() == [False, False]


def test_a_proxy_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://nowhere.invalid")
    monkeypatch.setattr(hub, "getproxies", lambda: {"http": "http://127.0.0.1:1"})
    assert offline() == [False, False]
