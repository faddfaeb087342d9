"""`seqtune pack` in this process: what it prints, shows, checks and refuses."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from seqtune_cli.main import main
from seqtune_cli.packs import _line, progress

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("workdir")

WORDS = ["recipe=sft_tiny", "data=prompt_completion", "data.path=sums.jsonl", "data.eval_size=0", "packing.capacity=64"]


@pytest.fixture(autouse=True)
def data(workdir: Path) -> Path:
    path = workdir / "sums.jsonl"
    numbers = random.Random(0)
    found = [numbers.randrange(10 ** numbers.randrange(1, 12)) for _ in range(40)]
    path.write_text("".join(json.dumps({"prompt": f"{n} + 1 = ", "completion": str(n + 1)}) + "\n" for n in found))
    return path


def run(*words: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    assert stopped.value.code == 0


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    assert stopped.value.code == 2
    return capsys.readouterr().err


def told(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    run(*words, "--json")
    return json.loads(capsys.readouterr().out)


def test_pack_show_plot_verify_and_train(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("pack", *WORDS, "out=mine", "--inspect", "1", "--plot", "fill.png")
    text = capsys.readouterr().out
    assert "row 1 of " in text
    assert "── document " in text
    assert text.count("⟦") == text.count("⟧") == text.count("── document ")
    assert (workdir / "fill.png").read_bytes().startswith(b"\x89PNG")
    found = told(capsys, "pack", "verify", "mine")
    assert (
        found["decoded"] == found["rows"] == json.loads((workdir / "mine" / "pack.json").read_text())["counts"]["rows"]
    )
    run("pack", "verify", "mine")
    assert "mine is as it was written" in capsys.readouterr().out

    shard = workdir / "mine" / "shard-00000.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 4
    shard.write_bytes(content)
    assert "shard 'shard-00000.arrow' was altered" in refused(capsys, "pack", "verify", "mine")
    small = ["model.layers=2", "model.hidden_size=32", "model.heads=2", "model.kv_heads=1", "train.max_steps=1"]
    error = refused(capsys, "train", *WORDS, *small, "packing.path=mine", "out=run")
    assert "shard 'shard-00000.arrow' was altered" in error


def test_parts_and_merge(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("pack", *WORDS, "out=whole")
    for number in (1, 2):
        part = told(capsys, "pack", *WORDS, f"shard={number}/2") if number == 2 else run("pack", *WORDS, "shard=1/2")
        capsys.readouterr()
    assert part["folder"] == "packs/sft_tiny-2-of-2"
    told(capsys, "pack", "merge", "packs/sft_tiny-1-of-2", "packs/sft_tiny-2-of-2", "out=merged")
    names = ["pack.json", "shard-00000.arrow"]
    assert [(workdir / "merged" / name).read_bytes() for name in names] == [
        (workdir / "whole" / name).read_bytes() for name in names
    ]


def test_a_file_without_a_recipe(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workdir / "notes.txt").write_text("one paragraph\n\nanother\n\nand a third\n")
    found = told(capsys, "pack", "data.path=notes.txt", "data.eval_size=0")
    assert found["folder"] == "packs/notes"
    assert found["documents"] == 3


def test_a_dry_run(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "pack", *WORDS, "--dry-run")
    assert list(found["packings"]) == ["best_fit", "wrapped", "next_fit", "none"]
    run("pack", *WORDS, "--dry-run")
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.splitlines()[:5]] == [
        "packing",
        "best_fit",
        "wrapped",
        "next_fit",
        "padding",
    ]
    assert [path.name for path in workdir.iterdir()] == ["sums.jsonl"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*WORDS, "workers=none"], "workers=none is no number of processes"),
        ([*WORDS, "shard=3/2"], "shard=3/2 is no part of a whole"),
        ([*WORDS, "shard=1/2", "--inspect", "1"], "a part has no rows to show"),
        (["verify"], "verify takes one folder"),
        (["verify", "absent"], "'absent' is no pack"),
        (["merge", "absent"], "out= is missing"),
        (["merge", "absent", "out=x"], "'absent' is no part of a pack"),
        (["merge", "out=x"], "there is no part to merge"),
        (["workers=2"], "recipe= is missing"),
        ([*WORDS, "packing.path=x"], "packed already"),
        (["recipe=gspo_tiny"], "packs no rows"),
    ],
)
def test_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capsys, "pack", *words)


def test_progress_is_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from seqtune.training.pack import Progress

    monkeypatch.setattr("seqtune_cli.packs._EVERY", 0.0)
    now = Progress("tokenising", 0.25, 1200, 34567, 8901.2, 65.0)
    assert _line(now) == "tokenising 25%  1,200 documents  34,567 tokens  8,901 tokens/s  1:05 left"
    with progress(shown=True) as tell:
        tell(now)
    with progress(shown=False) as tell:
        tell(now)
    assert capsys.readouterr().err == _line(now) + "\n"
