"""Sequences into rows: labels, overflow policies with their counts; packed loss equals that of each document alone."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtune.config.axes import TinyModelSpec
from seqtune.errors import SeqtuneError
from seqtune.packing.pack import pack
from seqtune.packing.specs import BestFit, Unpacked

IGNORED = -100
"""Stands for a token that is not trained."""

DOCUMENTS = st.lists(
    st.lists(st.tuples(st.integers(0, 250), st.booleans()), max_size=24).map(
        lambda pairs: ([token for token, _ in pairs], [trained for _, trained in pairs])
    ),
    min_size=1,
    max_size=20,
)


def sequences(documents: list[tuple[list[int], list[bool]]]) -> datasets.Dataset:
    features = datasets.Features(
        {"input_ids": datasets.List(datasets.Value("int32")), "loss_mask": datasets.List(datasets.Value("bool"))}
    )
    return datasets.Dataset.from_dict(
        {"input_ids": [ids for ids, _ in documents], "loss_mask": [mask for _, mask in documents]}, features
    )


def trained_from(count: int, first: int = 0, prompt: int = 0) -> tuple[list[int], list[bool]]:
    """A document of tokens first, first + 1, …, trained after its prompt."""
    return list(range(first, first + count)), [at >= prompt for at in range(count)]


def labels_of(row: dict[str, Any]) -> list[int]:
    """The ids of a row where they are trained."""
    pairs = zip(row["input_ids"], row["loss_mask"], strict=True)
    return [token if trained else IGNORED for token, trained in pairs]


def pieces(dataset: datasets.Dataset) -> list[tuple[list[int], list[int]]]:
    """`(input_ids, labels)` of every sequence of every row."""
    found = []
    for row in dataset:
        assert sum(row["seq_lengths"]) == len(row["input_ids"]) == len(row["loss_mask"])
        start = 0
        for length in row["seq_lengths"]:
            found.append((row["input_ids"][start : start + length], labels_of(row)[start : start + length]))
            start += length
    return sorted(found)


def test_worked_rows() -> None:
    """Capacity 6, documents of 4, 2 and 3 tokens: 4 and 2 share a row. Labels: not the first token, not the prompt."""
    documents = [trained_from(4, 10, prompt=2), trained_from(2, 20), trained_from(3, 30)]
    packed = pack(sequences(documents), BestFit(capacity=6))
    rows = sorted((row["input_ids"], labels_of(row), row["seq_lengths"]) for row in packed.dataset)
    assert rows == [
        ([10, 11, 12, 13, 20, 21], [IGNORED, IGNORED, 12, 13, IGNORED, 21], [4, 2]),
        ([30, 31, 32], [IGNORED, 31, 32], [3]),
    ]
    assert packed.counts == {
        "documents": 3,
        "tokens": 9,
        "trained": 5,
        "rows": 2,
        "fill": 9 / 12,
        "bounds": {"l1": 2, "l2": 2},
    }


def test_causal_attention_makes_a_row_one_sequence() -> None:
    documents = [trained_from(4, 10), trained_from(2, 20), trained_from(3, 30)]
    packed = pack(sequences(documents), BestFit(capacity=6, attention="causal"))
    assert sorted(packed.dataset["seq_lengths"]) == [[3], [6]]
    row = max(packed.dataset, key=lambda row: len(row["input_ids"]))
    assert labels_of(row) == [IGNORED, 11, 12, 13, IGNORED, 21]


def test_unpacked_gives_every_document_its_row() -> None:
    packed = pack(sequences([trained_from(2, 10 * at) for at in range(5)]), Unpacked(capacity=8))
    assert packed.counts["rows"] == 5
    assert set(map(tuple, packed.dataset["seq_lengths"])) == {(2,)}


def test_seed_orders_rows() -> None:
    documents = sequences([trained_from(3, 10 * at) for at in range(20)])
    orders = [pack(documents, BestFit(capacity=4, seed=seed)).dataset["input_ids"] for seed in (0, 0, 1)]
    assert list(orders[0]) == list(orders[1])
    assert list(orders[0]) != list(orders[2])


def test_too_long_is_an_error_that_names_documents() -> None:
    data = sequences([trained_from(9), trained_from(2), trained_from(7)])
    with pytest.raises(SeqtuneError) as caught:
        pack(data, BestFit(capacity=6))
    assert str(caught.value) == (
        "2 documents are longer than a row of 6 tokens; the longest has 9\n"
        "  where: document 1, document 3\n"
        "  hint: packing.capacity=9, or packing.on_overflow=truncate, split or drop"
    )
    with pytest.raises(SeqtuneError, match=r"where: a\.jsonl:1, a\.jsonl:3"):
        pack(data.add_column("_where", ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"]), BestFit(capacity=6))


def test_truncate() -> None:
    packed = pack(sequences([trained_from(9), trained_from(2, 50)]), BestFit(capacity=6, on_overflow="truncate"))
    assert [ids for ids, _ in pieces(packed.dataset)] == [[0, 1, 2, 3, 4, 5], [50, 51]]
    assert packed.counts["truncated"] == {"documents": 1, "tokens": 3}


def test_split() -> None:
    """13 tokens in rows of 6: 6, 6 and 1; the last has only a first token, which is no label, so it is dropped."""
    packed = pack(sequences([trained_from(13), trained_from(2, 50)]), BestFit(capacity=6, on_overflow="split"))
    assert pieces(packed.dataset) == [
        ([0, 1, 2, 3, 4, 5], [IGNORED, 1, 2, 3, 4, 5]),
        ([6, 7, 8, 9, 10, 11], [IGNORED, 7, 8, 9, 10, 11]),
        ([50, 51], [IGNORED, 51]),
    ]
    assert packed.counts["split"] == {"documents": 1, "pieces": 3}
    assert packed.counts["dropped"] == {"no trainable token": 1}


def test_drop() -> None:
    packed = pack(sequences([trained_from(9), trained_from(2, 50)]), BestFit(capacity=6, on_overflow="drop"))
    assert packed.counts["dropped"] == {"too long": 1}
    assert packed.counts["rows"] == 1


def test_documents_that_train_nothing_are_dropped_and_counted() -> None:
    """No token; a masked one; one whose only trained token is its first; one trained only beyond the cut."""
    documents = [
        ([], []),
        ([1, 2], [False, False]),
        ([3, 4], [True, False]),
        trained_from(9, prompt=7),
        trained_from(3, 50),
    ]
    packed = pack(sequences(documents), BestFit(capacity=6, on_overflow="truncate"))
    assert packed.counts["dropped"] == {"no token": 1, "no trainable token": 3}
    assert [ids for ids, _ in pieces(packed.dataset)] == [[50, 51, 52]]


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(SeqtuneError, match="no document is left to pack: no token 1, no trainable token 1"):
        pack(sequences([([], []), ([1, 2], [False, False])]), BestFit(capacity=6))


def test_selected_documents_are_packed_not_those_behind_them() -> None:
    documents = sequences([trained_from(2, 10 * at) for at in range(5)])
    packed = pack(documents.select([4, 1]), Unpacked(capacity=8))
    assert [ids for ids, _ in pieces(packed.dataset)] == [[10, 11], [40, 41]]


@given(DOCUMENTS, st.integers(2, 30), st.sampled_from(["truncate", "split", "drop"]))
@settings(max_examples=150)
def test_every_token_once(documents: list[tuple[list[int], list[bool]]], capacity: int, overflow: Any) -> None:
    """What is packed is what the policy leaves of each document, labels included, whatever shares its row."""
    expected = []
    for ids, mask in documents:
        cuts = range(0, len(ids), capacity) if overflow == "split" else range(min(1, len(ids)))
        if overflow == "drop" and len(ids) > capacity:
            continue
        for start in cuts:
            part, trained = ids[start : start + capacity], mask[start : start + capacity]
            labels = [
                token if at and keep else IGNORED for at, (token, keep) in enumerate(zip(part, trained, strict=True))
            ]
            if any(label != IGNORED for label in labels):
                expected.append((part, labels))
    spec = BestFit(capacity=capacity, on_overflow=overflow)
    if not expected:
        with pytest.raises(SeqtuneError, match="no document is left"):
            pack(sequences(documents), spec)
        return
    packed = pack(sequences(documents), spec)
    assert pieces(packed.dataset) == sorted(expected)
    assert max(map(len, packed.dataset["input_ids"])) <= capacity
    assert packed.counts["tokens"] == sum(len(ids) for ids, _ in expected)
    assert packed.counts["trained"] == sum(label != IGNORED for _, labels in expected for label in labels)
    assert packed.counts["rows"] == len(packed.dataset)


def test_large_tables_come_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow's offsets hold 2**31 tokens, so tables are built a portion of rows at a time; the seams change nothing."""
    documents = sequences([trained_from(1 + at % 7, at) for at in range(1, 100)])
    for attention in ("document", "causal"):
        spec = BestFit(capacity=8, attention=attention)
        whole = pack(documents, spec).dataset
        with monkeypatch.context() as patch:
            patch.setattr("seqtune.packing.pack._TABLE", 40)
            portioned = pack(documents, spec).dataset
        assert len(portioned.data.column("loss_mask").chunks) > 5
        assert list(whole) == list(portioned)


def test_packed_loss_equals_the_loss_of_each_document() -> None:
    """A tiny Qwen3 in float32: the summed loss of a row, positions restarting, is the sum over its documents."""
    from seqtune.models import tiny

    spec = TinyModelSpec(name="tiny", hidden_size=32, layers=2, heads=2, kv_heads=1, intermediate_size=64)
    model = tiny.model(spec, torch.float32, "sdpa")
    random = np.random.default_rng(0)
    documents = [
        (random.integers(0, 256, size).tolist(), (random.random(size) < 0.7).tolist()) for size in (9, 5, 17, 2, 12)
    ]
    documents = [(ids, [*mask[:-1], True]) for ids, mask in documents]
    packed = pack(sequences(documents), BestFit(capacity=64))
    assert packed.counts["rows"] == 1
    row = packed.dataset[0]

    def summed(ids: list[int], labels: list[int], positions: list[int]) -> torch.Tensor:
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([ids]), position_ids=torch.tensor([positions]), use_cache=False
            ).logits
        return torch.nn.functional.cross_entropy(
            logits[0, :-1], torch.tensor(labels[1:]), ignore_index=IGNORED, reduction="sum"
        )

    together = summed(row["input_ids"], labels_of(row), [at for length in row["seq_lengths"] for at in range(length)])
    alone = sum(
        summed(ids, [token if keep else IGNORED for token, keep in zip(ids, mask, strict=True)], list(range(len(ids))))
        for ids, mask in documents
    )
    assert float(together) == pytest.approx(float(alone), rel=1e-6)
    leaking = summed(row["input_ids"], labels_of(row), list(range(len(row["input_ids"]))))
    assert abs(float(leaking) - float(alone)) > 1e-3
