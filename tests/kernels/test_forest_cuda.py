"""The CUDA paths of forest attention: on CPU with stand-ins for the kernels, and as they are on a GPU."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from drawn_forests import forests
from seqtune.forest import SegmentForest
from seqtune_kernels.capability import HALF, Unusable, choose_forest_attention
from seqtune_kernels.forest_attention import Layout, attend, dense, flex, forest_attention
from seqtune_kernels.forest_attention.cpu import by_kv_head
from seqtune_kernels.forest_attention.layout import Block
from seqtune_kernels.forest_attention.varlen import Sequences, TorchOps, Varlen

TREE = SegmentForest([3, 2, 4, 1, 0, 5, 2, 1, 3], [-1, 0, 1, 2, 2, 4, 0, -1, 7])
GROUPS = SegmentForest([6, 2, 3, 5, 4, 1], [-1, 0, 0, -1, 3, 3])

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


class Stand:
    """What a kernel for many sequences promises, sequence by sequence in plain matrix products; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def blocks(self, s: Sequences) -> list[tuple[slice, slice, Block]]:
        self.calls += 1
        q, k = s.q_starts.tolist(), s.k_starts.tolist()
        assert s.longest_q == max(b - a for a, b in pairwise(q))
        assert s.longest_k == max(b - a for a, b in pairwise(k))
        return [
            (slice(a, b), slice(c, d), Block(0, b - a, 0, d - c, s.causal, s.window))
            for (a, b), (c, d) in zip(pairwise(q), pairwise(k), strict=True)
        ]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, s: Sequences) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(q.dtype, torch.float32)
        out, lse = torch.empty_like(q), q.new_empty(q.shape[1], len(q), dtype=wide)
        for rows, columns, block in self.blocks(s):
            parts = by_kv_head(q[rows], k.shape[1]), k[columns].transpose(0, 1), v[columns].transpose(0, 1)
            part, sums = dense.forward(*parts, block, scale=s.scale, softcap=s.softcap)
            out[rows], lse[:, rows] = part.permute(2, 0, 1, 3).flatten(1, 2), sums.flatten(0, 1)
        return out, lse

    def backward(self, *tensors: Any) -> tuple[Tensor, Tensor, Tensor]:
        grad, q, k, v, out, lse, s = tensors
        of_q, of_k, of_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        heads = k.shape[1]
        for rows, columns, block in self.blocks(s):
            dq, dk, dv = dense.backward(
                by_kv_head(grad[rows], heads), by_kv_head(q[rows], heads), k[columns].transpose(0, 1),
                v[columns].transpose(0, 1), by_kv_head(out[rows], heads), lse[:, rows].unflatten(0, (heads, -1)), block,
                scale=s.scale, softcap=s.softcap,
            )  # fmt: skip
            of_q[rows] = dq.permute(2, 0, 1, 3).flatten(1, 2)
            of_k[columns], of_v[columns] = dk.transpose(0, 1), dv.transpose(0, 1)
        return of_q, of_k, of_v


def inputs(
    forest: SegmentForest, dtype: torch.dtype = torch.float64, device: str = "cpu", width: int = 8
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(forest.tokens, heads, width, generator=generator) for heads in (4, 2, 2, 4)]
    q, k, v, upstream = (x.to(device, dtype) for x in drawn)
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), upstream


def gradients(out: Tensor, q: Tensor, k: Tensor, v: Tensor, upstream: Tensor) -> tuple[Tensor, ...]:
    return (out.detach(), *torch.autograd.grad(out, (q, k, v), upstream))


@settings(max_examples=40)
@given(forest=forests(), window=st.integers(1, 12) | st.none(), capped=st.booleans())
def test_one_call_per_depth_equals_the_reference(forest: SegmentForest, window: int | None, capped: bool) -> None:
    if not forest.tokens:
        return
    limits = {"window": window, "softcap": 2.0 if capped else None}
    q, k, v, upstream = inputs(forest)
    row, stand = Layout(forest.pieces, forest.position_ids), Stand()
    ours = gradients(attend(Varlen(stand), q, k, v, row, scale=0.5, **limits), q, k, v, upstream)
    if window is None:
        assert stand.calls == 2 * (1 + len(forest.full_pieces_by_depth))
    true = gradients(forest_attention(q, k, v, row, scale=0.5, backend="eager", **limits), q, k, v, upstream)
    for one, other in zip(ours, true, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)


def test_sinks_are_a_part_of_half_precision_results_too() -> None:
    q, k, v, _ = inputs(GROUPS, torch.bfloat16)
    sinks = torch.tensor([0.5, -1.0, 0.0, 2.0])
    row = Layout(GROUPS.pieces, GROUPS.position_ids)
    part = q.new_zeros(1).expand_as(q), sinks.expand(len(q), -1)
    ours = attend(Varlen(Stand()), q, k, v, row, scale=0.5, parts=[part])
    true = forest_attention(q, k, v, row, scale=0.5, sinks=sinks, backend="eager")
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, true, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("window", [None, 4])
def test_pytorch_takes_the_calls_as_they_are_made(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes and arguments, checked by PyTorch's own rules for tensors without values."""
    heads, tokens, width = 4, 7, 64
    q = torch.empty(tokens, heads, width, dtype=torch.bfloat16, device="meta")
    k = torch.empty(tokens, 2, width, dtype=torch.bfloat16, device="meta")
    starts = torch.empty(3, dtype=torch.int32, device="meta")
    s = Sequences(starts, starts, 4, 4, True, window, 0.1, None)
    out, lse = TorchOps().forward(q, k, k, s)
    assert out.shape == q.shape
    assert lse.shape == (heads, tokens)
    shapes = [x.shape for x in TorchOps().backward(q, q, k, k, out, lse, s)]
    assert shapes == [q.shape, k.shape, k.shape]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("limits", [{}, {"window": 4}, {"softcap": 2.0}, {"sinks": True}], ids=str)
@pytest.mark.parametrize("forest", [TREE, GROUPS], ids=["tree", "groups"])
def test_flex_attention_sees_what_the_reference_sees(
    forest: SegmentForest, limits: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward only and not compiled: PyTorch has no backward pass for it on CPU."""
    monkeypatch.setattr(flex, "_compiled", lambda: flex.flex_attention)
    q, k, v, _ = (x.detach().float() for x in inputs(forest, width=16))
    if "sinks" in limits:
        limits = {"sinks": torch.tensor([0.5, -1.0, 0.0, 2.0])}
    row = Layout(forest.pieces, forest.position_ids)
    ours = forest_attention(q, k, v, row, scale=0.5, backend="flex_attention", **limits)
    true = forest_attention(q, k, v, row, scale=0.5, backend="eager", **limits)
    torch.testing.assert_close(ours, true, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("limits", [{}, {"window": 4}, {"softcap": 2.0}, {"sinks": True}], ids=str)
@pytest.mark.parametrize("backend", ["flash_attention_2", "sdpa", "flex_attention"])
def test_on_this_gpu(backend: str, limits: dict[str, Any]) -> None:
    """Error against fp64 at most twice that of the dense reference in the same dtype."""
    try:
        choose_forest_attention(backend, "cuda", HALF[1], softcap="softcap" in limits)
    except Unusable as error:
        pytest.skip(str(error))
    if "sinks" in limits:
        limits = {"sinks": torch.tensor([0.5, -1.0, 0.0, 2.0], device="cuda")}
    for forest in (TREE, GROUPS, SegmentForest([300, 40, 150, 70], [-1, 0, 0, 2])):
        row = Layout(forest.pieces, forest.position_ids)
        half, wide = inputs(forest, HALF[1], "cuda", width=64), inputs(forest, torch.float64, "cuda", width=64)
        for exact, rounded in zip(wide, half, strict=True):
            exact.data.copy_(rounded.data)
        ours = gradients(forest_attention(*half[:3], row, scale=0.125, backend=backend, **limits), *half)
        same = gradients(forest_attention(*half[:3], row, scale=0.125, backend="eager", **limits), *half)
        true = gradients(forest_attention(*wide[:3], row, scale=0.125, backend="eager", **limits), *wide)
        for one, reference, exact in zip(ours, same, true, strict=True):
            assert (one - exact).norm() <= 2 * (reference - exact).norm() + 1e-3 * exact.norm()
