"""Packed rows of curricula: growing rows, and documents cut into powers of two."""

from __future__ import annotations

import datasets
import numpy as np
import pytest

from seqtune.config.order import GrowLength
from seqtune.packing.pack import pack
from seqtune.packing.specs import BestFit, DatasetDecomposition, Wrapped

GROW = GrowLength(name="growlength", shortest=16)


def documents(sizes: list[int]) -> datasets.Dataset:
    """Documents whose tokens are all different."""
    ends = np.cumsum(sizes)
    rows = [list(range(end - size, end)) for end, size in zip(ends.tolist(), sizes, strict=True)]
    return datasets.Dataset.from_dict({"input_ids": rows, "loss_mask": [[True] * len(row) for row in rows]})


@pytest.fixture
def many() -> datasets.Dataset:
    return documents(np.random.default_rng(0).integers(2, 90, 300).tolist())


def lengths(rows: datasets.Dataset) -> np.ndarray:
    return np.array([len(row) for row in rows["input_ids"]])


@pytest.mark.parametrize(
    "spec", [BestFit(capacity=64, on_overflow="split", order=GROW), Wrapped(capacity=64, order=GROW)]
)
def test_growing_rows_hold_every_token_once(spec: BestFit | Wrapped, many: datasets.Dataset) -> None:
    packed = pack(many, spec)
    tokens = sorted(token for row in packed.dataset["input_ids"] for token in row)
    whole = sorted(token for row in many["input_ids"] for token in row)
    # A piece of one token has nothing to be predicted from, and is left out and counted.
    assert len(whole) - len(tokens) == packed.counts.get("dropped", {}).get("no trainable token", 0)
    assert set(tokens) <= set(whole)
    assert len(set(tokens)) == len(tokens)


def test_rows_grow_from_stage_to_stage_and_share_the_tokens(many: datasets.Dataset) -> None:
    packed = pack(many, Wrapped(capacity=64, order=GROW))
    sizes = lengths(packed.dataset)
    stage = np.searchsorted([16, 32], sizes)
    assert (np.diff(np.maximum.accumulate(sizes)) >= 0).all()
    assert sizes.max() == 64
    shares = np.bincount(stage, weights=sizes) / sizes.sum()
    assert shares == pytest.approx([1 / 3] * 3, abs=0.03)
    assert packed.counts["rows"] == len(sizes)
    assert packed.counts["fill"] > 0.98, "a row is as full as its own stage lets it be"


def test_stages_get_the_shares_that_are_asked_for(many: datasets.Dataset) -> None:
    order = GrowLength(name="growlength", lengths=(16, 64), fractions=(1.0, 3.0))
    sizes = lengths(pack(many, Wrapped(capacity=64, order=order)).dataset)
    assert sizes[sizes <= 16].sum() / sizes.sum() == pytest.approx(0.25, abs=0.03)


def test_a_document_is_cut_into_powers_of_two() -> None:
    """100 = 64 + 32 + 4 left, 70 = 64 + 6 left, 7 is too short for a piece of 16; 21 = 16 + 5 left."""
    packed = pack(documents([100, 70, 7, 21]), DatasetDecomposition(capacity=100, shortest=16))
    rows = sorted(packed.dataset["input_ids"])
    assert [(row[0], len(row)) for row in rows] == [(0, 64), (64, 32), (100, 64), (177, 16)]
    assert all(row == list(range(row[0], row[0] + len(row))) for row in rows)
    assert all(
        sizes == [len(row)]
        for sizes, row in zip(packed.dataset["seq_lengths"], packed.dataset["input_ids"], strict=True)
    )
    assert all(mask == [0] + [1] * (len(mask) - 1) for mask in packed.dataset["loss_mask"])
    assert packed.counts["cut"] == {"pieces": 4, "tokens lost": 22}
    assert packed.counts["dropped"] == {"too short for a piece": 1}
