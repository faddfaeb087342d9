"""The pack folder: what is written is what is read; damage and every difference from the recipe are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pytest

from seqtune.errors import SeqtuneError
from seqtune.packing import artefact, tokens
from seqtune.packing.arrange import arrange
from seqtune.packing.artefact import Origin, Rows, publish, read, verify, working, write
from seqtune.packing.pack import pack
from seqtune.packing.specs import BestFit
from seqtune.packing.tokens import Block, Store, Writer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from seqtune.config.spec import PackingSpec

SPEC = BestFit(capacity=8)
ORIGIN = Origin(
    tokenizer="t" * 64,
    template="",
    data={"format": "text", "path": "a.jsonl", "seed": 0},
    sources=[{"path": "a.jsonl", "bytes": 9, "sha256": "5" * 64}],
    model={"name": "tiny"},
)
DOCUMENTS = [list(range(at, at + 2 + at % 5)) for at in range(20)]


def block(documents: list[list[int]], first: int = 0) -> Block:
    """Documents of which everything is trained."""
    ids = np.array([token for document in documents for token in document], dtype=np.int32)
    return Block(
        np.arange(first, first + len(documents)),
        np.zeros(len(documents), dtype=np.int16),
        [f"a.jsonl:{first + at + 1}" for at in range(len(documents))],
        ids,
        np.ones(len(ids), dtype=np.uint8),
        np.array([len(document) for document in documents]),
        [("", "")] * len(documents),
    )


def make(folder: Path, spec: PackingSpec = SPEC, origin: Origin = ORIGIN) -> Path:
    """A pack of the documents."""
    writer = Writer(folder.with_name("tokens"))
    writer.add(block(DOCUMENTS))
    writer.close()
    store = Store([writer.folder / shard["name"] for shard in writer.shards], np.zeros(0, np.int64))
    arranged = arrange(store.sizes, store.targets, spec, store.where)
    write(folder, arranged, store, spec, origin, arranged.counts)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "pack")


def expected(spec: PackingSpec = SPEC) -> list[dict[str, Any]]:
    """Rows as packing in memory gives them."""
    masks = [[True] * len(document) for document in DOCUMENTS]
    return list(pack(datasets.Dataset.from_dict({"input_ids": DOCUMENTS, "loss_mask": masks}), spec).dataset)


@pytest.mark.parametrize("spec", [SPEC, BestFit(capacity=8, attention="causal")])
def test_rows_are_those_of_packing_in_memory(tmp_path: Path, spec: PackingSpec) -> None:
    found = read(make(tmp_path / "pack", spec), spec, ORIGIN)
    assert list(found.dataset) == expected(spec)
    assert found.dataset["seq_lengths"][:] == [row["seq_lengths"] for row in expected(spec)]
    assert found.counts["documents"] == len(DOCUMENTS)
    assert found.dataset[0]["loss_mask"][0] == 0


def test_what_a_pack_holds(folder: Path) -> None:
    found = json.loads((folder / "pack.json").read_text())
    assert sorted(path.name for path in folder.iterdir()) == ["pack.json", "shard-00000.arrow"]
    assert found["key"] == artefact.key(SPEC, ORIGIN)
    assert found["transforms"] == []
    assert found["origin"]["sources"][0]["tokens"] == found["counts"]["tokens"] == sum(map(len, DOCUMENTS))
    plain = datasets.Dataset.from_file(str(folder / "shard-00000.arrow"))
    assert plain.column_names == ["input_ids", "loss_mask", "seq_lengths", "doc_ids", "starts", "sources"]
    loaded = datasets.load_dataset(
        "arrow", data_files=str(folder / "*.arrow"), split="train", cache_dir=str(folder / "c")
    )
    assert list(loaded) == list(plain)
    for row in plain:
        chunks = np.split(np.array(row["input_ids"]), np.cumsum(row["seq_lengths"])[:-1])
        assert [chunk.tolist() for chunk in chunks] == [DOCUMENTS[number] for number in row["doc_ids"]]
        assert row["loss_mask"] == [int(at > 0) for chunk in chunks for at in range(len(chunk))]


def test_rows_are_read_at_random(folder: Path) -> None:
    rows = Rows(folder)
    plain = datasets.Dataset.from_file(str(folder / "shard-00000.arrow"))
    for number in (3, 0, len(rows) - 1):
        row = rows[number]
        assert row.input_ids.tolist() == plain[number]["input_ids"]
        assert row.doc_ids.tolist() == plain[number]["doc_ids"]
        assert not row.input_ids.flags.owndata
    with pytest.raises(IndexError):
        rows[len(rows)]


def test_shards_keep_the_order_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artefact, "SHARD_TOKENS", 20)
    monkeypatch.setattr(artefact, "_GATHER_TOKENS", 5)
    made = make(tmp_path / "pack")
    shards = json.loads((made / "pack.json").read_text())["shards"]
    assert len(shards) > 2
    assert list(read(made, SPEC, ORIGIN).dataset) == expected()
    assert [Rows(made)[row].input_ids.tolist() for row in range(len(expected()))] == [
        row["input_ids"] for row in expected()
    ]
    assert verify(made)["shards"] == len(shards)


@pytest.mark.parametrize("long", [0, 32])
def test_token_shards_in_any_order_give_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long: int
) -> None:
    """Shards of three documents each, handed over backwards, some documents left out; copied in both ways."""
    monkeypatch.setattr(tokens, "SHARD_TOKENS", 1)
    monkeypatch.setattr(tokens, "_LONG", long)
    writer = Writer(tmp_path)
    for first in range(0, 20, 3):
        writer.add(block(DOCUMENTS[first : first + 3], first))
    paths = [tmp_path / shard["name"] for shard in writer.shards]
    assert len(paths) == 7
    store = Store(paths[::-1], np.array([4, 19]))
    kept = [number for number in range(20) if number not in (4, 19)]
    assert store.numbers.tolist() == kept
    assert store.sizes.tolist() == [len(DOCUMENTS[number]) for number in kept]
    assert store.where(4) == "a.jsonl:6"
    arranged = arrange(store.sizes, store.targets, SPEC)
    ids, mask = store.gather(arranged.chunks)
    assert ids.tolist() == [token for at in arranged.chunks.documents for token in DOCUMENTS[kept[at]]]
    assert int(mask.sum()) == arranged.counts["trained"] == len(ids) - len(kept)


def test_finished_token_shards_are_kept_and_altered_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "SHARD_TOKENS", 1)
    writer = Writer(tmp_path)
    for first in range(0, 20, 5):
        writer.add(block(DOCUMENTS[first : first + 5], first))
    assert Writer(tmp_path).last == 19
    flip(tmp_path / "tokens-00002.arrow")
    again = Writer(tmp_path)
    assert again.last == 9
    assert again.tokens == sum(map(len, DOCUMENTS[:10]))
    (tmp_path / "tokens-00001.json").write_text("{")
    assert Writer(tmp_path).last == 4


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("check", [lambda folder: read(folder, SPEC, ORIGIN), verify])
def test_damage_is_found(folder: Path, check: Callable[[Path], Any]) -> None:
    shard = folder / "shard-00000.arrow"
    whole = shard.read_bytes()
    flip(shard)
    with pytest.raises(SeqtuneError, match=r"shard 'shard-00000\.arrow' was altered"):
        check(folder)
    shard.write_bytes(whole[:-8])
    with pytest.raises(SeqtuneError) as caught:
        check(folder)
    assert str(caught.value) == (
        f"the pack is damaged: shard 'shard-00000.arrow' has {len(whole) - 8} bytes instead of {len(whole)}\n"
        f"  where: {folder}\n"
        f"  hint: write it again: seqtune pack … out={folder}"
    )
    shard.unlink()
    with pytest.raises(SeqtuneError, match="is missing"):
        check(folder)


def test_counts_that_do_not_agree_are_found(folder: Path) -> None:
    place = folder / "pack.json"
    found = json.loads(place.read_text())
    found["counts"]["trained"] += 1
    place.write_text(json.dumps(found))
    with pytest.raises(SeqtuneError, match=r"there are \d+ trained, pack\.json says \d+"):
        verify(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "pack.json cannot be read"),
        ("[]", "is not of schema 2"),
        ('{"schema": 9}', "is not of schema 2"),
        ('{"schema": 2, "packing": {}, "counts": {}}', "lacks origin, shards"),
        ('{"schema": 2, "packing": [], "counts": {}, "origin": {}, "shards": []}', "is not as it was written"),
    ],
)
def test_a_broken_manifest_is_found(folder: Path, content: str, message: str) -> None:
    (folder / "pack.json").write_text(content)
    with pytest.raises(SeqtuneError, match=message):
        read(folder, SPEC, ORIGIN)


def test_no_pack_there(tmp_path: Path) -> None:
    with pytest.raises(SeqtuneError, match=r"is no pack: it has no pack\.json\n.*packing\.path"):
        read(tmp_path / "absent", SPEC, ORIGIN)


OTHER = {"path": "a.jsonl", "bytes": 9, "sha256": "6" * 64}


@pytest.mark.parametrize(
    ("spec", "origin", "messages"),
    [
        (SPEC, replace(ORIGIN, tokenizer="u"), ["the pack was made with another tokenizer"]),
        (SPEC, replace(ORIGIN, template="u"), ["the pack was made with another chat template"]),
        (SPEC, replace(ORIGIN, sources=[OTHER]), ["files have changed"]),
        (SPEC, replace(ORIGIN, sources=[{"path": "a.jsonl", "bytes": 8}]), ["files have changed"]),
        (SPEC, replace(ORIGIN, sources=[{"name": "template_math"}]), ["files have changed"]),
        (SPEC, replace(ORIGIN, sources=[]), ["files have changed"]),
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


@pytest.mark.parametrize("source", [{**OTHER, "sha256": "5" * 64}, {"bytes": 9}, {"absent": True}])
def test_data_may_move(folder: Path, source: dict[str, Any]) -> None:
    """Compared by content, by size where it is not read, and not at all where it is not there."""
    moved = replace(ORIGIN, data={**ORIGIN.data, "path": "b/a.jsonl"}, sources=[{**source, "path": "b/a.jsonl"}])
    assert len(read(folder, SPEC.model_copy(update={"path": str(folder)}), moved).dataset)


def test_the_key_follows_what_decides_the_rows() -> None:
    key = artefact.key(SPEC, ORIGIN)
    moved = replace(ORIGIN, data={**ORIGIN.data, "path": "b"}, sources=[{**ORIGIN.sources[0], "path": "b"}])
    assert artefact.key(SPEC.model_copy(update={"path": "x"}), moved) == key
    changed = [
        artefact.key(BestFit(capacity=9), ORIGIN),
        artefact.key(BestFit(capacity=8, seed=1), ORIGIN),
        *(artefact.key(SPEC, replace(ORIGIN, **{field: "u"})) for field in ("tokenizer", "template")),
        artefact.key(SPEC, replace(ORIGIN, sources=[OTHER])),
        artefact.key(SPEC, replace(ORIGIN, data={**ORIGIN.data, "seed": 1})),
    ]
    assert len({key, *changed}) == 7


def test_another_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(SeqtuneError, match="holds something that is no pack"), working(tmp_path / "mine", "k"):
        pytest.fail("it was taken")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with working(tmp_path / "pack", "k") as work:
        assert work.is_dir()
        with pytest.raises(SeqtuneError, match="another process is writing"), working(tmp_path / "pack", "k"):
            pytest.fail("it was let in")
    assert not work.exists()


def test_work_is_kept_for_the_same_pack_only(tmp_path: Path) -> None:
    for what, kept in (("k", False), ("k", True), ("other", False)):
        with pytest.raises(KeyboardInterrupt), working(tmp_path / "pack", what) as work:  # noqa: PT012 -- interrupted
            assert (work / "tokens").exists() == kept
            (work / "tokens").mkdir(exist_ok=True)
            raise KeyboardInterrupt
    with working(tmp_path / "pack", "other") as work:
        assert (work / "tokens").is_dir()


def test_a_full_disk_is_told_and_keeps_the_old_pack(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "x.partial")

    monkeypatch.setattr(artefact, "write_table", full)
    with pytest.raises(SeqtuneError, match="cannot be written: No space left on device"), working(folder, "k") as work:
        make(work / "rows")
    assert list(read(folder, SPEC, ORIGIN).dataset) == expected()


def test_a_failed_exchange_keeps_the_old_pack(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old pack steps aside before the new one takes its place; when that fails it comes back."""
    rename = type(folder).replace

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "rows":
            raise OSError(1, "Operation not permitted")
        return rename(self, target)

    with working(folder, "k") as work:
        make(work / "rows")
        monkeypatch.setattr(type(folder), "replace", refuse)
        with pytest.raises(OSError, match="Operation not permitted"):
            publish(work / "rows", folder)
        monkeypatch.undo()
        assert list(read(folder, SPEC, ORIGIN).dataset) == expected()
        publish(work / "rows", folder)
    assert list(read(folder, SPEC, ORIGIN).dataset) == expected()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["pack", "tokens"]
