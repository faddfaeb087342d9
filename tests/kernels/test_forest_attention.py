"""Forest attention against the dense reference: values and every gradient, windows, soft-caps, sinks, clipped rows."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from drawn_forests import forests
from seqtune.forest import SegmentForest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from seqtune_kernels.forest_attention.layout import Block
from seqtune_kernels.forest_attention import (
    Layout,
    attend,
    cpu,
    dense,
    forest_attention,
    forest_attention_reference,
    layout,
    merge,
)

FORESTS = {
    "documents": SegmentForest([5, 1, 9], [-1, -1, -1]),
    "pairs": SegmentForest([7, 3, 4, 2, 1, 6], [-1, 0, 0, -1, 3, 3]),
    "group": SegmentForest([17, 3, 1, 5, 4], [-1, 0, 0, 0, 0]),
    "tree": SegmentForest([3, 2, 4, 1, 0, 5, 2, 1, 3], [-1, 0, 1, 2, 2, 4, 0, -1, 7]),
    "long": SegmentForest([300, 9, 150, 70], [-1, 0, 0, 2]),  # several tiles, and several chunks of the dense fallback
}
"""By what they stand for. `tree` has an empty segment that has a child."""

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"window": 4},
    "window of one": {"window": 1},
    "wide window": {"window": 170},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": True},
    "all": {"window": 6, "softcap": 2.0, "sinks": True},
}


def run(forest: SegmentForest, dtype: torch.dtype, backend: str, kv_heads: int, **options: Any) -> dict[str, Tensor]:
    """Output and gradients of fixed random inputs, rounded to the dtype."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, upstream = (
        torch.randn(forest.tokens, heads, 8, generator=generator, dtype=torch.float64)
        for heads in (4, kv_heads, kv_heads, 4)
    )
    leaves = {"q": q, "k": k, "v": v}
    if options.get("sinks"):
        leaves["sinks"] = torch.randn(4, generator=generator, dtype=torch.float64)
    leaves = {name: x.to(dtype).requires_grad_() for name, x in leaves.items()}
    row = Layout(forest.pieces, forest.position_ids)
    limits = {"window": options.get("window"), "softcap": options.get("softcap")}
    out = forest_attention(**leaves, layout=row, scale=8**-0.5, backend=backend, **limits)
    out.backward(upstream.to(dtype))
    found = {"out": out.detach()}
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        assert leaf.grad.dtype == dtype
        found[name] = leaf.grad
    return found


def check(forest: SegmentForest, dtype: torch.dtype, kv_heads: int, **options: Any) -> None:
    """Tolerance: twice the error the reference itself makes in this dtype, and what fp32 (or fp64) sums may round.

    Root mean square over the elements: one wrong element of size 1 would be thousands of times it.
    """
    exact = run(forest, torch.float64, "eager", kv_heads, **options)
    same = run(forest, dtype, "eager", kv_heads, **options)
    fast = run(forest, dtype, "sdpa", kv_heads, **options)
    rounding = 10 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    for key, value in exact.items():
        error = (fast[key].double() - value).norm()
        assert error <= 2 * (same[key].double() - value).norm() + rounding * (value.numel() ** 0.5 + value.norm()), key


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FORESTS)
def test_equal_to_the_reference(name: str, dtype: torch.dtype, kv_heads: int) -> None:
    check(FORESTS[name], dtype, kv_heads)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", FORESTS)
def test_windows_softcaps_and_sinks(name: str, options: str, dtype: torch.dtype) -> None:
    check(FORESTS[name], dtype, 2, **OPTIONS[options])


@settings(max_examples=40)
@given(forest=forests(), window=st.integers(1, 12) | st.none(), capped=st.booleans())
def test_any_forest(forest: SegmentForest, window: int | None, capped: bool) -> None:
    if forest.tokens:
        check(forest, torch.float64, 2, window=window, softcap=2.0 if capped else None)


def shown(blocks: Iterable[Block], tokens: int) -> NDArray[np.int64]:
    """[tokens, tokens] how often blocks show each key to each query."""
    seen = np.zeros((tokens, tokens), dtype=np.int64)
    for b in blocks:
        i, j = np.indices((b.q_end - b.q_start, b.k_end - b.k_start))
        seen[b.rows, b.columns] += (~np.array(b.causal) | (j <= i)) & (b.reach is None or (j > i - b.reach))
    return seen


@settings(max_examples=60)
@given(forest=forests(), window=st.integers(1, 12))
def test_a_window_cuts_pieces_without_loss(forest: SegmentForest, window: int) -> None:
    """The blocks of a window show exactly the pairs the pieces show and the window does, each once."""
    row = Layout(forest.pieces, forest.position_ids)
    near = forest.position_ids[:, None] - forest.position_ids[None, :] < window
    np.testing.assert_array_equal(shown(row.blocks(window), forest.tokens), forest.mask() & near)


def test_pieces_outside_the_window_are_not_computed() -> None:
    """Prompt of 8, leaf of 3, window 2: of the prompt the leaf sees its last token alone, and its first token only."""
    forest = SegmentForest([8, 3], [-1, 0])
    blocks = Layout(forest.pieces, forest.position_ids).blocks(2)
    assert [tuple(b) for b in blocks] == [(0, 8, 0, 8, True, 2), (8, 9, 7, 8, False, None), (8, 11, 8, 11, True, 2)]


def test_pieces_inside_the_window_take_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "forward", None)
    forest = FORESTS["group"]
    run(forest, torch.float32, "sdpa", 2, window=22)
    with pytest.raises(TypeError, match="NoneType"):
        run(forest, torch.float32, "sdpa", 2, window=21)


@settings(max_examples=60)
@given(forest=forests(), window=st.integers(1, 12) | st.none(), tile=st.integers(1, 4))
def test_tiles_lose_nothing_and_mask_little(forest: SegmentForest, window: int | None, tile: int) -> None:
    with mock.patch.object(layout, "TILE", tile):
        tiles = Layout(forest.pieces, forest.position_ids).tiles(window)
        if forest.tokens:
            check(forest, torch.float64, 2, window=window)
    distance = forest.position_ids[:, None] - forest.position_ids[None, :]
    near = forest.mask() if window is None else forest.mask() & (distance < window)
    np.testing.assert_array_equal(shown(tiles, forest.tokens), near)
    for b in tiles:
        if b.causal and (b.reach is None or b.reach >= tile):
            assert b.q_end - b.q_start <= tile
    assert [b.causal for b in tiles] == sorted((b.causal for b in tiles), reverse=True)


@settings(max_examples=25)
@given(forest=forests(), cuts=st.tuples(st.integers(1, 30), st.integers(1, 30)), window=st.integers(1, 12) | st.none())
def test_clipped_pieces_merge_to_the_whole(forest: SegmentForest, cuts: tuple[int, int], window: int | None) -> None:
    """Queries of one half of the row, keys in two halves that arrive one after the other: the merged result and the
    summed gradients are those of the whole row."""
    q_halves, k_halves = ([(0, min(cut, forest.tokens)), (min(cut, forest.tokens), forest.tokens)] for cut in cuts)
    options: dict[str, Any] = {"scale": 0.5, "window": window, "softcap": None}
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(forest.tokens, 2, 8, generator=generator, dtype=torch.float64) for _ in range(4))
    row = Layout(forest.pieces, forest.position_ids)
    out, lse = cpu.forward(q, k, v, row, **options)
    expected = (out, *cpu.backward(grad, q, k, v, out, lse, row, **options))
    found = [torch.zeros_like(x) for x in (q, q, k, v)]
    for queries in q_halves:
        mine = slice(*queries)
        parts = {keys: Layout(forest.pieces, forest.position_ids, queries=queries, keys=keys) for keys in k_halves}
        merged, sums = torch.zeros_like(q[mine]), q.new_full((2, len(q[mine])), float("-inf"))
        for keys in k_halves:
            part, part_lse = cpu.forward(q[mine], k[slice(*keys)], v[slice(*keys)], parts[keys], **options)
            merged, turned = merge(merged, sums.T, part, part_lse.T)
            sums = turned.T.contiguous()
        found[0][mine] = merged
        for keys in k_halves:
            theirs = slice(*keys)
            of_q, of_k, of_v = cpu.backward(
                grad[mine], q[mine], k[theirs], v[theirs], merged, sums, parts[keys], **options
            )
            found[1][mine] += of_q
            found[2][theirs] += of_k
            found[3][theirs] += of_v
    for ours, theirs_ in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs_, atol=1e-12, rtol=1e-10)


def test_further_parts_are_further_keys() -> None:
    """A row whose first segment every other segment sees, against the same row without it and its keys as a part."""
    forest = SegmentForest([4, 5, 2, 6], [-1, 0, 1, 0])
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(17, 2, 8, generator=generator, dtype=torch.float64) for _ in range(4))
    for x in (q, k, v):
        x.requires_grad_()
    visible = torch.from_numpy(forest.mask())
    forest_attention_reference(q, k, v, visible, scale=0.5)[4:].backward(grad[4:])
    expected = [x.grad for x in (q, k, v)]
    for x in (q, k, v):
        x.grad = None
    scores = torch.einsum("qhd,khd->qhk", q[4:], k[:4]) * 0.5
    part = torch.einsum("qhk,khd->qhd", scores.softmax(-1), v[:4]), scores.logsumexp(-1)
    rest = SegmentForest([5, 2, 6], [-1, 0, -1])
    out = attend(cpu, q[4:], k[4:], v[4:], Layout(rest.pieces, rest.position_ids + 4), scale=0.5, parts=[part])
    torch.testing.assert_close(out, forest_attention_reference(q, k, v, visible, scale=0.5)[4:])
    out.backward(grad[4:])
    for x, before in zip((q, k, v), expected, strict=True):
        torch.testing.assert_close(x.grad, before)


def test_merge_worked_numbers() -> None:
    """Two parts of one softmax, o = Σ o_i e^{lse_i} / Σ e^{lse_i}: lse 1.266321 and 1.108381 merge to 1.883613."""
    q = torch.tensor([0.5, -1.0, 0.25], dtype=torch.float64)
    k = torch.tensor([[0.1, 0.2, -0.3], [1, -0.5, 0.4], [-0.7, 0.3, 0.9], [0.2, 0.2, 0.2], [0, -1.1, 0.6]]).double()
    v = torch.tensor([[1, 0], [0.5, 0.5], [0, 2], [-1, 1], [0.3, -0.2]]).double()
    scores = k @ q / 3**0.5

    def part(rows: slice) -> tuple[Tensor, Tensor]:
        return scores[rows].softmax(0) @ v[rows], scores[rows].logsumexp(0)

    out, lse = merge(*part(slice(0, 3)), *part(slice(3, 5)))
    torch.testing.assert_close(out, torch.tensor([0.223133, 0.466516]).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(lse, torch.tensor(1.883613).double(), atol=1e-6, rtol=0)


def test_merge_is_associative_and_commutative() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 6, 4, generator=generator, dtype=torch.float64)
    parts = [(one[:, :3], one[:, 3]) for one in values]
    expected = merge(*merge(*parts[0], *parts[1]), *parts[2])
    for a, b, c in itertools.permutations(parts):
        for found in (merge(*merge(*a, *b), *c), merge(*a, *merge(*b, *c))):
            torch.testing.assert_close(found, expected)


def test_merge_with_nothing() -> None:
    empty, minus = torch.zeros(2), torch.tensor(float("-inf"))
    out, lse = merge(torch.tensor([1.0, 2.0]), torch.tensor(0.5), empty, minus)
    assert out.tolist() == [1.0, 2.0]
    assert lse.item() == 0.5
    out, lse = merge(empty, minus, empty, minus)
    assert out.tolist() == [0.0, 0.0]
    assert lse.isneginf()
