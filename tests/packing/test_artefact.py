"""The pack folder: what is written is what is read; damage and every difference from the recipe are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import datasets
import pytest

from seqtune.errors import SeqtuneError
from seqtune.packing import artefact
from seqtune.packing.artefact import Origin, read, write
from seqtune.packing.pack import Packed, pack
from seqtune.packing.specs import BestFit

if TYPE_CHECKING:
    from pathlib import Path

SPEC = BestFit(capacity=8)
ORIGIN = Origin(
    tokenizer="t" * 64,
    template="",
    data={"format": "text", "path": "a.jsonl", "seed": 0},
    sources=[{"path": "a.jsonl", "sha256": "5" * 64}],
)


@pytest.fixture
def packed() -> Packed:
    rows = [list(range(at, at + 2 + at % 5)) for at in range(20)]
    return pack(datasets.Dataset.from_dict({"input_ids": rows, "loss_mask": [[True] * len(row) for row in rows]}), SPEC)


@pytest.fixture
def folder(packed: Packed, tmp_path: Path) -> Path:
    write(tmp_path / "pack", packed, SPEC, ORIGIN)
    return tmp_path / "pack"


def test_round_trip(packed: Packed, folder: Path) -> None:
    found = read(folder, SPEC, ORIGIN)
    assert list(found.dataset) == list(packed.dataset)
    assert found.dataset.features == packed.dataset.features
    assert found.counts == packed.counts
    assert sorted(path.name for path in folder.iterdir()) == ["pack.json", "shard-00000.arrow"]
    assert [path.name for path in folder.parent.iterdir()] == ["pack"]


def test_opens_in_datasets(packed: Packed, folder: Path) -> None:
    assert list(datasets.Dataset.from_file(str(folder / "shard-00000.arrow"))) == list(packed.dataset)


def test_writing_twice_gives_the_same_bytes(packed: Packed, folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write(folder, packed, SPEC, ORIGIN)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["pack"]


def test_shards_keep_the_order_of_rows(packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artefact, "_SHARD_ROWS", 3)
    write(tmp_path / "pack", packed, SPEC, ORIGIN)
    shards = json.loads((tmp_path / "pack" / "pack.json").read_text())["shards"]
    assert len(shards) > 2
    assert sum(shard["rows"] for shard in shards) == len(packed.dataset)
    assert list(read(tmp_path / "pack", SPEC, ORIGIN).dataset) == list(packed.dataset)


def test_a_flipped_byte_is_found(folder: Path) -> None:
    shard = folder / "shard-00000.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(SeqtuneError, match=r"shard 'shard-00000\.arrow' was altered"):
        read(folder, SPEC, ORIGIN)


def test_a_truncated_shard_is_found(folder: Path) -> None:
    shard = folder / "shard-00000.arrow"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(SeqtuneError) as caught:
        read(folder, SPEC, ORIGIN)
    assert str(caught.value) == (
        f"the pack is damaged: shard 'shard-00000.arrow' has {size - 8} bytes instead of {size}\n"
        f"  where: {folder}\n"
        f"  hint: write it again: seqtune pack … out={folder}"
    )


def test_a_missing_shard_is_found(folder: Path) -> None:
    (folder / "shard-00000.arrow").unlink()
    with pytest.raises(SeqtuneError, match="is missing"):
        read(folder, SPEC, ORIGIN)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "pack.json cannot be read"),
        ("[]", "is not of schema 1"),
        ('{"schema": 9}', "is not of schema 1"),
        ('{"schema": 1, "packing": {}, "counts": {}}', "lacks origin, shards"),
        ('{"schema": 1, "packing": [], "counts": {}, "origin": {}, "shards": []}', "is not as it was written"),
    ],
)
def test_a_broken_manifest_is_found(folder: Path, content: str, message: str) -> None:
    (folder / "pack.json").write_text(content)
    with pytest.raises(SeqtuneError, match=message):
        read(folder, SPEC, ORIGIN)


def test_no_pack_there(tmp_path: Path) -> None:
    with pytest.raises(SeqtuneError, match=r"is no pack: it has no pack\.json\n.*packing\.path"):
        read(tmp_path / "absent", SPEC, ORIGIN)


@pytest.mark.parametrize(
    ("spec", "origin", "messages"),
    [
        (SPEC, replace(ORIGIN, tokenizer="u"), ["the pack was made with another tokenizer"]),
        (SPEC, replace(ORIGIN, template="u"), ["the pack was made with another chat template"]),
        (SPEC, replace(ORIGIN, sources=[{"path": "a.jsonl", "sha256": "6" * 64}]), ["files have changed"]),
        (SPEC, replace(ORIGIN, data={**ORIGIN.data, "seed": 1}), ["made with data.seed=0, the recipe says 1"]),
        (
            BestFit(capacity=16, attention="causal"),
            ORIGIN,
            ["made with packing.capacity=8, the recipe says 16", "made with packing.attention=document"],
        ),
    ],
)
def test_a_pack_made_otherwise_is_refused(folder: Path, spec: BestFit, origin: Origin, messages: list[str]) -> None:
    with pytest.raises(SeqtuneError) as caught:
        read(folder, spec, origin)
    assert len(caught.value.problems) == len(messages)
    for message in messages:
        assert message in str(caught.value)


def test_data_may_move(folder: Path) -> None:
    moved = replace(
        ORIGIN, data={**ORIGIN.data, "path": "b/a.jsonl"}, sources=[{"path": "b/a.jsonl", "sha256": "5" * 64}]
    )
    assert len(read(folder, SPEC.model_copy(update={"path": str(folder)}), moved).dataset)


def test_another_folder_is_not_replaced(packed: Packed, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SeqtuneError, match="holds something that is no pack"):
        write(tmp_path, packed, SPEC, ORIGIN)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_interrupted_write_leaves_the_old_pack(
    packed: Packed, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artefact, "_write_shard", full)
    with pytest.raises(SeqtuneError, match="cannot be written: No space left on device"):
        write(folder, packed, SPEC, ORIGIN)
    assert len(read(folder, SPEC, ORIGIN).dataset) == len(packed.dataset)
    assert [path.name for path in folder.parent.iterdir()] == ["pack"]


def test_a_failed_exchange_keeps_the_old_pack(packed: Packed, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old pack steps aside before the new one takes its place; when that fails it comes back."""
    rename = type(folder).replace

    def refuse(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(1, "Operation not permitted")
        return rename(self, target)

    monkeypatch.setattr(type(folder), "replace", refuse)
    with pytest.raises(SeqtuneError, match="Operation not permitted"):
        write(folder, packed, SPEC, ORIGIN)
    assert len(read(folder, SPEC, ORIGIN).dataset) == len(packed.dataset)
    assert [path.name for path in folder.parent.iterdir()] == ["pack"]
