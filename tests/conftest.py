"""What all tests share: no network, no telemetry, one thread, fixed seeds, and real data when it is there."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# Before torch and the Hugging Face libraries are imported: they read these once.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("SEQTUNE_DATA", ROOT.parent / "shared" / "data"))

settings.register_profile("seqtune", deadline=None, derandomize=True)
settings.load_profile("seqtune")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """The same random numbers whatever ran before; torch only where a test has imported it."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory that is the working directory of the test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """Path of a real data file by name; the test is skipped, visibly, where it is absent."""

    def find(name: str) -> Path:
        file = DATA / name
        if not file.is_file():
            pytest.skip(f"real data: {file} is not there (SEQTUNE_DATA=FOLDER says where it is)")
        return file

    return find
