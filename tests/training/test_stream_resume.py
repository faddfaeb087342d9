"""A run on a mixture that is killed again and again ends as the run nobody killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
from tiny_plans import comparable, create, main, stage, weights

from seqtune.config.mixture import MixtureSpec
from seqtune.packing.specs import OnlineBestFit

KILLS, STEPS = 20, 200


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = random.Random(0)
    sources = []
    for name, count in (("a", 400), ("b", 90)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": name * words.randint(5, 90)}) + "\n" for _ in range(count)))
        sources.append({"path": str(path), "weight": float(count)})
    one = stage(
        "sft",
        tmp_path,
        data=MixtureSpec(name="mixture", sources=sources, shuffle=32),
        packing=OnlineBestFit(capacity=64, open_rows=6, on_overflow="split"),
        train={"max_steps": STEPS, "save_every": 4, "keep_checkpoints": 1},
    )
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    processes = multiprocessing.get_context("forkserver")  # the imports are done once
    processes.set_forkserver_preload(
        ["tiny_plans", "seqtune.report.html", "seqtune.training.sft", "seqtune.training.run"]
    )

    def start(word: str, place: Path) -> multiprocessing.process.BaseProcess:
        process = processes.Process(target=main, args=(word, str(place)))
        process.start()
        return process

    whole, broken = create(tmp_path / "whole", one), create(tmp_path / "broken", one)
    alone = start("train", whole.path)
    alone.join()
    assert alone.exitcode == 0
    moments, kills, word = random.Random(1), 0, "train"
    while kills < KILLS:
        process = start(word, broken.path)
        before = _changed(broken.path)
        while _changed(broken.path) == before and process.is_alive():
            time.sleep(0.005)  # until it trains, or drops what the last one wrote after its checkpoint
        time.sleep(moments.uniform(0.0, 1.0))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run ended before it was killed often enough"
        kills, word = kills + 1, "resume"
    last = start("resume", broken.path)
    last.join()
    assert last.exitcode == 0
    assert comparable(broken) == comparable(whole)
    assert weights(broken, "sft") == weights(whole, "sft")
    print(f"{KILLS} kills, {STEPS} steps, weights {weights(broken, 'sft')}")


def _changed(place: Path) -> int:
    file = place / "metrics.jsonl"
    return file.stat().st_mtime_ns if file.exists() else 0
