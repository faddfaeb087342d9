"""Rows packed out of a stream: what they hold, and a token stream that neither a kill nor more processes change."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from stream_process import main, mixture, open_stream, token_hash

from seqtune.errors import SeqtuneError
from seqtune.training.feed import StreamSteps, take

if TYPE_CHECKING:
    from collections.abc import Iterable


@pytest.fixture
def sources(tmp_path: Path) -> list[dict[str, Any]]:
    """Three files of sentences of many lengths."""
    words = random.Random(0)
    found = []
    for name, count, weight in (("a", 300, 5.0), ("b", 120, 3.0), ("c", 40, 2.0)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(
            "".join(json.dumps({"text": name * words.randint(1, 60) + str(number)}) + "\n" for number in range(count))
        )
        found.append({"path": str(path), "weight": weight})
    return found


def flat(rows: Iterable[dict[str, Any]]) -> list[tuple[list[int], list[int], list[int]]]:
    return [(row["input_ids"].tolist(), row["loss_mask"].tolist(), list(row["seq_lengths"])) for row in rows]


def test_rows_hold_whole_documents_and_no_first_token_is_trained(sources: list[dict[str, Any]]) -> None:
    stream = open_stream(sources, capacity=80)
    for row in take(stream, 40):
        assert len(row["input_ids"]) == len(row["loss_mask"]) == sum(row["seq_lengths"]) <= 80
        starts = np.cumsum(row["seq_lengths"]) - row["seq_lengths"]
        assert not row["loss_mask"][starts].any()
        assert np.delete(row["loss_mask"], starts).all()
        assert (row["input_ids"][np.cumsum(row["seq_lengths"]) - 1] == 0).all(), "documents end with their end token"


def test_every_token_is_served_once_when_the_mixture_ends(sources: list[dict[str, Any]]) -> None:
    said = {"stop": "first_exhausted", "unit": "documents"}
    documents = [document.ids.tolist() for document in mixture(sources, **said)]
    rows = take(open_stream(sources, capacity=80, **said), 10_000)
    parts = [part.tolist() for row in rows for part in np.split(row["input_ids"], np.cumsum(row["seq_lengths"])[:-1])]
    assert sorted(parts) == sorted(documents)


def test_causal_rows_are_one_sequence(sources: list[dict[str, Any]]) -> None:
    row = take(open_stream(sources, capacity=80, attention="causal"), 1)[0]
    assert row["seq_lengths"] == [len(row["input_ids"])]


@pytest.mark.parametrize("policy", ["error", "truncate", "split", "drop"])
def test_documents_longer_than_a_row(sources: list[dict[str, Any]], policy: str) -> None:
    stream = open_stream(sources, capacity=32, on_overflow=policy, stop="first_exhausted")
    if policy == "error":
        with pytest.raises(SeqtuneError, match=r"more than a row of 32"):
            take(stream, 10_000)
        return
    rows = take(stream, 10_000)
    longest = max(max(row["seq_lengths"]) for row in rows)
    assert longest == 32 if policy != "drop" else longest <= 32
    counted = {"truncate": "truncated", "split": "split", "drop": "dropped: too long"}[policy]
    assert stream.counts[counted] > 10


@pytest.mark.parametrize("capacity", [48, 200])
def test_the_state_after_every_row_goes_on_with_the_same_tokens(sources: list[dict[str, Any]], capacity: int) -> None:
    said: dict[str, Any] = {"capacity": capacity, "on_overflow": "split", "shuffle": 32}
    whole = open_stream(sources, **said)
    states, rows = [], []
    for _ in range(60):
        states.append(json.loads(json.dumps(whole.state())))
        rows.append(next(whole))
    for at in range(0, 60, 7):
        resumed = open_stream(sources, **said)
        resumed.restore(states[at])
        assert flat(take(resumed, 60 - at)) == flat(rows[at:])
        assert resumed.state() == whole.state()


def test_a_state_holds_no_tokens(sources: list[dict[str, Any]]) -> None:
    stream = open_stream(sources, capacity=200)
    take(stream, 20)
    assert len(json.dumps(stream.state())) < 8000
    with pytest.raises(SeqtuneError, match="another version"):
        open_stream(sources).restore({**stream.state(), "version": 0})


def steps(sources: list[dict[str, Any]], rank: int, processes: int, rows: int, state: Any = None) -> StreamSteps:
    return StreamSteps(lambda: open_stream(sources), rows=rows, count=50, rank=rank, processes=processes, state=state)


def test_two_processes_become_four(sources: list[dict[str, Any]]) -> None:
    """Ten steps of 2 processes x 4 rows, then ten of 4 x 2: the rows of one process x 8, in the same order."""
    alone = steps(sources, 0, 1, 8)
    expected = [flat(alone[step]) for step in range(20)]
    pair = [steps(sources, rank, 2, 4) for rank in range(2)]
    found = [[row for one in pair for row in flat(one[step])] for step in range(10)]
    states = [json.dumps(one.state()) for one in pair]
    assert states[0] == states[1], "the state belongs to no process"
    four = [steps(sources, rank, 4, 2, json.loads(states[0])) for rank in range(4)]
    found += [[row for one in four for row in flat(one[step])] for step in range(10, 20)]
    assert found == expected


def test_steps_are_asked_for_in_order(sources: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="stands at step 0"):
        steps(sources, 0, 1, 2)[3]


def test_data_that_ends_too_soon_says_after_how_many_steps(sources: list[dict[str, Any]]) -> None:
    short = StreamSteps(lambda: open_stream(sources, stop="first_exhausted"), rows=8, count=10_000, rank=0, processes=1)
    with pytest.raises(SeqtuneError, match=r"the data ends after \d+ steps; 10000 were asked for"):
        list(map(short.__getitem__, range(10_000)))


def test_killed_at_random_moments_the_token_stream_is_the_same(
    sources: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that appends rows and saves its state now and then is killed 20 times; its file is that of one run."""
    (tmp_path / "sources.json").write_text(json.dumps(sources))
    moments = random.Random(1)
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    processes = multiprocessing.get_context("forkserver")  # the imports are done once
    processes.set_forkserver_preload(["stream_process"])

    def start(rows: int) -> Any:
        (tmp_path / "started").unlink(missing_ok=True)
        process = processes.Process(target=main, args=(tmp_path, rows))
        process.start()
        return process

    for _ in range(20):
        process = start(10**9)
        while not (tmp_path / "started").exists():
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    rows = json.loads((tmp_path / "state.json").read_text())["rows"] + 100
    process = start(rows)
    process.join()
    assert process.exitcode == 0
    found = hashlib.sha256((tmp_path / "tokens.bin").read_bytes()).hexdigest()
    assert found == token_hash(open_stream(sources), rows)
    print(f"{rows} rows after 20 kills, sha256 {found}")
