"""Forest attention on CPU against the dense reference: values and every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seqtune.forest import SegmentForest
from seqtune_kernels.forest_attention import forest_attention_cpu, forest_attention_reference, merge

FORESTS = {
    "documents": SegmentForest([5, 1, 9], [-1, -1, -1]),
    "pairs": SegmentForest([7, 3, 4, 2, 1, 6], [-1, 0, 0, -1, 3, 3]),
    "group": SegmentForest([17, 3, 1, 5, 4], [-1, 0, 0, 0, 0]),
    "tree": SegmentForest([3, 2, 4, 1, 0, 5, 2, 1, 3], [-1, 0, 1, 2, 2, 4, 0, -1, 7]),
}


def run(forest: SegmentForest, dtype: torch.dtype, fast: bool, kv_heads: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v, upstream = (
        torch.randn(forest.tokens, heads, 8, generator=generator, dtype=torch.float64)
        for heads in (4, kv_heads, kv_heads, 4)
    )
    q, k, v = (x.to(dtype).requires_grad_() for x in (q, k, v))
    if fast:
        out = forest_attention_cpu(q, k, v, forest.pieces, scale=8**-0.5)
    else:
        out = forest_attention_reference(q, k, v, torch.from_numpy(forest.mask()), scale=8**-0.5)
    out.backward(upstream.to(dtype))
    assert q.grad is not None
    assert k.grad is not None
    assert v.grad is not None
    return {"out": out.detach(), "q": q.grad, "k": k.grad, "v": v.grad}


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FORESTS)
def test_equal_to_the_reference(name: str, dtype: torch.dtype, kv_heads: int) -> None:
    """Tolerance: twice the error the reference itself makes in this dtype (root mean square: one wrong element of
    size 1 would be a million times it), and fp64 rounding."""
    exact = run(FORESTS[name], torch.float64, fast=False, kv_heads=kv_heads)
    same = run(FORESTS[name], dtype, fast=False, kv_heads=kv_heads)
    fast = run(FORESTS[name], dtype, fast=True, kv_heads=kv_heads)
    for key, value in exact.items():
        error = (fast[key].double() - value).norm()
        assert error <= 2 * (same[key].double() - value).norm() + 1e-13, key


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


def test_merge_with_nothing() -> None:
    empty, minus = torch.zeros(2), torch.tensor(float("-inf"))
    out, lse = merge(torch.tensor([1.0, 2.0]), torch.tensor(0.5), empty, minus)
    assert out.tolist() == [1.0, 2.0]
    assert lse.item() == 0.5
    out, lse = merge(empty, minus, empty, minus)
    assert out.tolist() == [0.0, 0.0]
    assert lse.isneginf()
