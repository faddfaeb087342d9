"""From files to a pack: the same bytes however it was made, and bad input told or counted."""

from __future__ import annotations

import hashlib
import json
import random
import resource
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from seqtune.config.axes import DataSpec, TinyModelSpec
from seqtune.data import sources
from seqtune.data.rows import WHERE
from seqtune.data.tokenize import tokenize
from seqtune.errors import SeqtuneError
from seqtune.models.load import load_tokenizer
from seqtune.packing import pack as rows_of
from seqtune.packing import tokens
from seqtune.packing.artefact import Rows, manifest
from seqtune.packing.specs import BestFit
from seqtune.training import pack
from seqtune.training.pack import Progress, dry_run, examples_for, merge, pack_stage, packed_for, verify
from seqtune_cli.words import plan_of

if TYPE_CHECKING:
    from seqtune.config.plan import Stage

PROCESS = Path(__file__).with_name("pack_process.py")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """400 sums, some of them twice."""
    path = tmp_path / "sums.jsonl"
    numbers = random.Random(0)
    found = [(numbers.randrange(10), numbers.randrange(10 ** numbers.randrange(1, 30))) for _ in range(400)]
    path.write_text("".join(json.dumps({"prompt": f"{a} + {b} = ", "completion": str(a + b)}) + "\n" for a, b in found))
    return path


def stage(path: Path | str, *, capacity: int = 256, **said: Any) -> Stage:
    _, plan = plan_of([], "sft_tiny")
    return plan.stages[0].model_copy(
        update={
            "model": TinyModelSpec(name="tiny"),
            "data": DataSpec(**{"path": str(path), "format": "prompt_completion", **said}),
            "packing": BestFit(capacity=capacity),
        }
    )


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and token shards so small that there are many."""
    monkeypatch.setattr(pack, "_BLOCK_ROWS", 16)
    monkeypatch.setattr(tokens, "SHARD_TOKENS", 2000)


@pytest.mark.parametrize("held", [0, 60, 0.1])
def test_rows_are_those_of_examples_in_memory(data: Path, tmp_path: Path, small: None, held: float) -> None:
    one = stage(data, eval_size=held)
    summary = pack_stage(one, tmp_path / "pack")
    tokenizer = load_tokenizer(one.model)
    examples = sources.load(one.data)
    expected = rows_of.pack(tokenize(examples.train, tokenizer), one.packing)
    reading = one.model_copy(update={"packing": one.packing.model_copy(update={"path": str(tmp_path / "pack")})})
    found = packed_for(reading, examples.train, tokenizer)
    assert list(found.dataset) == list(expected.dataset)
    assert found.counts == expected.counts
    assert {key: summary[key] for key in expected.counts} == expected.counts
    places = [int(place.rpartition(":")[2]) - 1 for place in examples.train[WHERE]]
    rows = Rows(tmp_path / "pack")
    assert sorted(int(number) for row in range(len(rows)) for number in rows[row].doc_ids) == places


def test_the_same_bytes_whatever_the_number_of_workers(data: Path, tmp_path: Path, small: None) -> None:
    one = stage(data, eval_size=20)
    for workers in (1, 2, 3):
        pack_stage(one, tmp_path / f"of {workers}", workers=workers)
    first = hashes(tmp_path / "of 1")
    assert first == hashes(tmp_path / "of 2") == hashes(tmp_path / "of 3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["of 1", "of 2", "of 3", "sums.jsonl"]


def test_parts_of_several_machines_give_the_pack_of_one(data: Path, tmp_path: Path, small: None) -> None:
    one = stage(data, eval_size=20)
    pack_stage(one, tmp_path / "whole")
    parts = [tmp_path / f"part {number}" for number in (3, 1, 2)]
    told = [pack_stage(one, part, share=(int(part.name[-1]), 3)) for part in parts]
    assert sum(part["documents"] for part in told) == 400
    merge(parts, tmp_path / "merged")
    assert hashes(tmp_path / "merged") == hashes(tmp_path / "whole")
    with pytest.raises(SeqtuneError, match="of the 3 parts these are not given once: 2"):
        merge(parts[:2], tmp_path / "other")
    with pytest.raises(SeqtuneError, match="not given once: 1"):
        merge([*parts, parts[1]], tmp_path / "other")
    with pytest.raises(SeqtuneError, match="is no part of a pack"):
        merge([tmp_path / "whole"], tmp_path / "other")
    flip(next(parts[0].glob("*.arrow")))
    with pytest.raises(SeqtuneError, match=r"shard 'tokens-.*' is missing or was altered"):
        merge(parts, tmp_path / "other")
    pack_stage(stage(data), parts[0], share=(3, 3))
    with pytest.raises(SeqtuneError, match="the parts are of different packs"):
        merge(parts, tmp_path / "other")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_pack_that_is_there_is_not_made_again(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = stage(data)
    first = pack_stage(one, tmp_path / "pack")
    with monkeypatch.context() as patch:
        patch.setattr(pack, "_tokenised", lambda *_: pytest.fail("it was made again"))
        assert pack_stage(one, tmp_path / "pack") == first
    flip(tmp_path / "pack" / "shard-00000.arrow")
    assert pack_stage(one, tmp_path / "pack") == first
    assert verify(tmp_path / "pack")["decoded"] > 0


def killed(data: Path, out: Path, after: float) -> bool:
    """Start packing and kill it; whether it was still at it."""
    with subprocess.Popen([sys.executable, str(PROCESS), str(data), str(out)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
    return process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_pack_goes_on_where_it_was(data: Path, tmp_path: Path) -> None:
    data.write_text(data.read_text() * 40)
    pack_stage(stage(data), tmp_path / "whole")
    moments = random.Random(0)
    assert any([killed(data, tmp_path / "pack", moments.uniform(0.1, 0.6)) for _ in range(3)])
    assert not (tmp_path / "pack").exists() or hashes(tmp_path / "pack") == hashes(tmp_path / "whole")
    pack_stage(stage(data), tmp_path / "pack")
    assert hashes(tmp_path / "pack") == hashes(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pack", "sums.jsonl", "whole"]


def test_an_interrupted_pack_keeps_its_token_shards(data: Path, tmp_path: Path, small: None) -> None:
    one = stage(data)
    pack_stage(one, tmp_path / "whole")
    seen: list[Progress] = []

    def stop(now: Progress) -> None:
        seen.append(now)
        if now.documents >= 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_stage(one, tmp_path / "pack", progress=stop)
    kept = list((tmp_path / ".pack.partial" / "tokens").glob("*.arrow"))
    assert kept
    before = {path: path.stat().st_mtime_ns for path in kept}
    again: list[Progress] = []
    pack_stage(one, tmp_path / "pack", progress=lambda now: again.append(now))
    assert hashes(tmp_path / "pack") == hashes(tmp_path / "whole")
    assert again[0].documents > 16, "what was finished is not tokenised again"
    assert before
    assert [now.phase for now in (again[0], again[-1])] == ["tokenising", "writing"]
    assert again[-1].done == pytest.approx(1.0)
    assert all(first.done <= then.done for first, then in pairwise(again))


def test_training_from_a_pack_does_not_read_the_source(data: Path, tmp_path: Path) -> None:
    one = stage(data)
    pack_stage(one, tmp_path / "pack")
    reading = one.model_copy(update={"packing": one.packing.model_copy(update={"path": str(tmp_path / "pack")})})
    tokenizer = load_tokenizer(one.model)
    data.unlink()
    examples = examples_for(reading)
    assert len(examples.train) == len(examples.heldout) == 0
    assert len(packed_for(reading, examples.train, tokenizer).dataset)
    data.write_text("{}\n")
    with pytest.raises(SeqtuneError, match="made from other data, or its files have changed"):
        packed_for(reading, examples.train, tokenizer)


def test_held_out_examples_are_read_beside_a_pack(data: Path, tmp_path: Path) -> None:
    one = stage(data, eval_size=20)
    pack_stage(one, tmp_path / "pack")
    reading = one.model_copy(update={"packing": one.packing.model_copy(update={"path": str(tmp_path / "pack")})})
    examples = examples_for(reading)
    assert len(examples.train) == 0
    assert list(examples.heldout) == list(sources.load(one.data).heldout)
    apart = stage(data, eval_path=str(data.with_name("apart.jsonl")))
    Path(apart.data.eval_path).write_text('{"prompt": "a", "completion": "b"}\n')
    apart = apart.model_copy(update={"packing": reading.packing})
    assert examples_for(apart).heldout["prompt"][:] == ["a"]
    changed = data.read_text().replace("1", "2", 1)
    data.write_text(changed)
    with pytest.raises(SeqtuneError, match="its files have changed"):
        packed_for(reading, examples.train, load_tokenizer(one.model))


def test_bad_rows_stop_or_are_counted(data: Path, tmp_path: Path, small: None) -> None:
    bad = '{"prompt": "a"\n{"prompt": "", "completion": "b"}\n{"prompt": "a", "completion": ""}\n'
    data.write_text(data.read_text() + bad)
    with pytest.raises(SeqtuneError) as caught:
        pack_stage(stage(data), tmp_path / "pack")
    assert [problem.where for problem in caught.value.problems] == [
        f"{data}:401",
        f"{data}:402",
        f"{data}:403",
        "data.path",
    ]
    assert not (tmp_path / "pack").exists()
    summary = pack_stage(stage(data, on_error="skip"), tmp_path / "pack")
    assert summary["skipped"] == {"broken JSON": 1, "empty text": 2}
    assert summary["documents"] == 400


def test_conversations_that_the_template_refuses(tmp_path: Path) -> None:
    """One that cannot be written is an error, or counted; where it is held out it counts nowhere."""
    talks = [[{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}] for n in range(6)]
    talks.append([{"role": "assistant", "content": "a"}])
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    one = stage(path, format="messages")
    tokenizer = load_tokenizer(one.model)
    account = sources.rows.BadRows("skip")
    expected = tokenize(sources.load(one.data).train, tokenizer, account)
    counts = account.close()
    summary = pack_stage(stage(path, format="messages", on_error="skip"), tmp_path / "pack")
    assert summary["skipped"] == counts
    assert summary["documents"] == len(expected)


def test_documents_longer_than_a_row_are_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SeqtuneError, match=r"longer than a row of 12 tokens.*\n  where: .*sums\.jsonl:1"):
        pack_stage(stage(data, capacity=12), tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        (b"", "is empty"),
        ('{"prompt": "ä"}'.encode("latin-1"), "is not UTF-8"),
        ('{"prompt": "a"}'.encode("utf-16"), "is UTF-16"),
        (b"\n\n", "no usable example"),
    ],
)
def test_sources_that_cannot_be_read(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "a.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SeqtuneError, match=message):
        pack_stage(stage(path), tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


def test_a_source_that_goes_or_changes_meanwhile(data: Path, tmp_path: Path, small: None) -> None:
    second = data.with_name("then.jsonl")
    second.write_text(data.read_text())
    with pytest.raises(SeqtuneError, match=r"then\.jsonl' cannot be read: No such file"):
        pack_stage(
            stage(f"{data.parent}/*.jsonl"),
            tmp_path / "pack",
            progress=lambda now: second.unlink(missing_ok=True),
        )

    def grow(now: Progress) -> None:
        if now.done > 0.8:
            with data.open("a") as file:
                file.write("\n")

    with pytest.raises(SeqtuneError, match="the data changed while it was read"):
        pack_stage(stage(data), tmp_path / "pack", progress=grow)
    assert not (tmp_path / "pack").exists()


def test_a_full_disk(data: Path, tmp_path: Path) -> None:
    """No file may grow beyond 20 kB: neither shards of tokens nor of rows fit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(SeqtuneError, match="the pack cannot be written: File too large") as caught:
            pack_stage(stage(data), tmp_path / "pack")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "the same command goes on from there" in caught.value.problems[0].hint
    assert not (tmp_path / "pack").exists()
    pack_stage(stage(data), tmp_path / "pack")
    assert verify(tmp_path / "pack")["rows"] == manifest(tmp_path / "pack")["counts"]["rows"]


def test_a_worker_that_dies_is_told(data: Path, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "_in_worker", _die)
    with pytest.raises(SeqtuneError, match="a process that tokenises ended without a word"):
        pack_stage(stage(data), tmp_path / "pack", workers=2)


def _die(raw: Any) -> None:
    signal.raise_signal(signal.SIGKILL)


def test_a_dry_run_compares_packings_and_keeps_nothing(data: Path, tmp_path: Path) -> None:
    found = dry_run(stage(data))["packings"]
    assert list(found) == ["best_fit", "wrapped", "next_fit", "none"]
    lengths = np.array([len(ids) for ids in tokenize(sources.load(stage(data).data).train, tiny())["input_ids"]])
    assert found["best_fit"]["attention"] == found["next_fit"]["attention"] == int(np.square(lengths).sum())
    assert found["none"]["attention"] == 400 * 256**2
    assert found["wrapped"]["rows"] == -(-int(lengths.sum()) // 256) <= found["best_fit"]["rows"]
    assert found["best_fit"]["rows"] <= found["next_fit"]["rows"] < found["none"]["rows"] == 400
    assert [path.name for path in tmp_path.iterdir()] == ["sums.jsonl"]


def tiny() -> Any:
    return load_tokenizer(TinyModelSpec(name="tiny"))


def test_a_mixture_is_not_packed(tmp_path: Path) -> None:
    source = str(tmp_path / "a.jsonl")
    _, plan = plan_of([f"data.sources=[{{path: {source}}}]"], "mixture_tiny")
    with pytest.raises(SeqtuneError, match="a mixture is a stream"):
        pack_stage(plan.stages[0], tmp_path / "pack")
