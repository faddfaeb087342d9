"""The layout against its slow statement, over random forests."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawn_forests import forests
from seqtune.forest import SegmentForest, flatten_documents, flatten_groups, flatten_sequences

SEQUENCES = st.lists(st.lists(st.integers(0, 2), max_size=8), max_size=8)


@given(forests())
def test_pieces_cover_exactly_the_mask(forest: SegmentForest) -> None:
    counts = np.zeros((forest.tokens, forest.tokens), dtype=int)
    for piece in forest.pieces:
        block = counts[piece.q_start : piece.q_end, piece.k_start : piece.k_end]
        block += np.tri(*block.shape, dtype=int) if piece.causal else 1
    np.testing.assert_array_equal(counts, forest.mask())
    assert forest.pairs == forest.mask().sum()
    assert len(forest.pieces) <= 2 * len(forest)


@given(forests())
def test_query_ranges_of_one_depth_are_disjoint(forest: SegmentForest) -> None:
    full = [piece for piece in forest.pieces if not piece.causal]
    assert sorted(full, key=repr) == sorted((p for level in forest.full_pieces_by_depth for p in level), key=repr)
    for level in forest.full_pieces_by_depth:
        for before, after in itertools.pairwise(level):
            assert before.q_end <= after.q_start


@given(forests())
def test_positions_and_predictors_follow_every_path(forest: SegmentForest) -> None:
    for segment in range(len(forest)):
        tokens = forest.path_tokens(segment)
        np.testing.assert_array_equal(forest.position_ids[tokens], np.arange(len(tokens)))
        np.testing.assert_array_equal(forest.predictor[tokens], np.concatenate([[-1], tokens])[: len(tokens)])


def test_worked_tree() -> None:
    """Prompt of 3, completions of 2 and 1, then a document of 2: positions 0 1 2 | 3 4 | 3 | 0 1."""
    forest = SegmentForest([3, 2, 1, 2], [-1, 0, 0, -1])
    assert forest.position_ids.tolist() == [0, 1, 2, 3, 4, 3, 0, 1]
    assert forest.predictor.tolist() == [-1, 0, 1, 2, 3, 2, -1, 6]
    assert forest.cu_seqlens.tolist() == [0, 3, 5, 6, 8]
    assert forest.pairs == 6 + 9 + 3 + 1 + 3


@given(SEQUENCES)
def test_sequences_come_back_and_share_every_common_prefix(sequences: list[list[int]]) -> None:
    flat = flatten_sequences(sequences)
    assert [flat.input_ids[row].tolist() for row in flat.rows] == sequences
    prefixes = {tuple(s[: i + 1]) for s in sequences for i in range(len(s))}
    assert flat.forest.tokens == len(prefixes)
    for row in flat.rows:
        np.testing.assert_array_equal(flat.forest.position_ids[row], np.arange(len(row)))
        np.testing.assert_array_equal(flat.forest.predictor[row], np.concatenate([[-1], row])[: len(row)])


@given(SEQUENCES, st.booleans())
def test_padded_index_round_trip(sequences: list[list[int]], left: bool) -> None:
    flat = flatten_documents(sequences)
    index = flat.index(left=left)
    for row, sequence in zip(index, sequences, strict=True):
        held = row[row >= 0]
        assert flat.input_ids[held].tolist() == sequence
        assert (row[len(row) - len(held) :] >= 0).all() if left else (row[: len(held)] >= 0).all()


def test_groups_share_their_prompt() -> None:
    flat = flatten_groups([[1, 2, 3], [4]], [[[5], [6, 7]], [[8]]])
    assert flat.input_ids.tolist() == [1, 2, 3, 5, 6, 7, 4, 8]
    assert [flat.input_ids[r].tolist() for r in flat.rows] == [[1, 2, 3, 5], [1, 2, 3, 6, 7], [4, 8]]
    assert flat.repeated_tokens == 11


@pytest.mark.parametrize(
    ("lengths", "parents", "message"),
    [
        ([1], [-1, 0], "equally many"),
        ([-1], [-1], "negative"),
        ([1, 1, 1, 1], [-1, 0, -1, 0], "segment 3 does not follow its parent 0"),
        ([1, 1], [1, -1], "segment 0 does not follow its parent 1"),
    ],
)
def test_bad_layouts_are_refused(lengths: list[int], parents: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentForest(lengths, parents)
