"""Chunked log-probs against all logits at once: values and every gradient, against fp64.

The tolerance of each comparison is twice the error that the reference itself makes in the same dtype.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtune_kernels.token_logprobs import chunked, token_logprobs, token_logprobs_reference

SIZES = [(1, 1, 3), (7, 13, 8), (33, 257, 24), (64, 100, 16)]


def drawn(
    tokens: int, vocabulary: int, width: int, *, bias: bool, dtype: torch.dtype = torch.float64
) -> dict[str, Any]:
    random = torch.Generator().manual_seed(tokens * vocabulary + width)
    given_ = {
        "hidden": torch.randn(tokens, width, generator=random, dtype=torch.float64),
        "weight": torch.randn(vocabulary, width, generator=random, dtype=torch.float64) / width**0.5,
        "bias": torch.randn(vocabulary, generator=random, dtype=torch.float64) if bias else None,
    }
    targets = torch.randint(0, vocabulary, (tokens,), generator=random)
    tensors = {name: value.to(dtype).requires_grad_() if value is not None else None for name, value in given_.items()}
    return {**tensors, "targets": targets}


def results(function: Any, tensors: dict[str, Any], upstream: torch.Tensor, **options: Any) -> dict[str, torch.Tensor]:
    """Log-probs, entropies and the gradient of each input, by name."""
    found = function(**tensors, entropy=True, **options)
    inputs = {name: x for name, x in tensors.items() if isinstance(x, torch.Tensor) and x.requires_grad}
    grads = torch.autograd.grad(found.logps, list(inputs.values()), upstream.to(found.logps.dtype))
    return {"logps": found.logps.detach(), "entropy": found.entropy, **dict(zip(inputs, grads, strict=True))}


def compared(tensors: dict[str, Any], upstream: torch.Tensor, dtype: torch.dtype, **options: Any) -> None:
    ours_only = {name: options.pop(name) for name in ("uniform", "implementation", "chunk") if name in options}
    narrow = {
        name: x.detach().to(dtype).requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for name, x in tensors.items()
    }
    exact = {
        name: x.detach().double().requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for name, x in narrow.items()
    }
    truth = results(token_logprobs_reference, exact, upstream, **options)
    reference = results(token_logprobs_reference, narrow, upstream, **options)
    ours = results(token_logprobs, narrow, upstream, **ours_only, **options)
    assert ours.keys() == truth.keys()
    for name, expected in truth.items():
        allowed = 2 * (reference[name].double() - expected).norm()
        floor = torch.finfo(dtype).eps * expected.norm()  # one rounding of the result itself
        assert ours[name].isfinite().all(), name
        assert (ours[name].double() - expected).norm() <= allowed + floor, name


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("uniform", [False, True])
def test_values_and_gradients(size: tuple[int, int, int], dtype: torch.dtype, uniform: bool) -> None:
    compared(drawn(*size, bias=True), torch.linspace(-1, 1, size[0], dtype=torch.float64), dtype, uniform=uniform)


@pytest.mark.parametrize(
    "options", [{"temperature": 0.7}, {"softcap": 1.5}, {"temperature": 2.0, "softcap": 0.8}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_temperature_and_softcap(options: dict[str, float], dtype: torch.dtype) -> None:
    upstream = torch.linspace(-1, 1, 33, dtype=torch.float64)
    compared(drawn(33, 257, 24, bias=False), upstream, dtype, **options)


@given(tokens=st.integers(0, 40), vocabulary=st.integers(1, 60), chunk=st.integers(1, 50), equal=st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_chunk_boundary_shows(tokens: int, vocabulary: int, chunk: int, equal: bool) -> None:
    """Chunks of any size, with a promise of equal gradients that is kept or broken: fp64 agrees to rounding."""
    tensors = drawn(tokens, vocabulary, 5, bias=True)
    upstream = torch.full((tokens,), 0.3) if equal else torch.arange(tokens) / 7.0
    expected = results(token_logprobs_reference, tensors, upstream)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "CHUNK_BYTES", chunk * vocabulary * 8)
        for uniform in (False, True):
            found = results(token_logprobs, tensors, upstream, uniform=uniform)
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12, msg=name)


def test_a_worked_number() -> None:
    """Logits (log 1, log 2, log 5): p = 1/8, 2/8, 5/8. Entropy is log 8 - (2 log 2 + 5 log 5) / 8 = 0.90026 nats."""
    hidden = torch.ones(2, 1)
    weight = torch.tensor([[1.0], [2.0], [5.0]]).log()
    found = token_logprobs(hidden, weight, torch.tensor([1, 2]), entropy=True)
    assert found.logps.exp().tolist() == pytest.approx([0.25, 0.625])
    assert found.entropy is not None
    assert found.entropy.tolist() == pytest.approx([0.900256, 0.900256], abs=1e-6)
    assert found.is_top1.tolist() == [False, True]


def test_a_prompt_that_predicts_many_first_tokens() -> None:
    """One hidden state chosen several times takes the sum of the gradients."""
    tensors = drawn(1, 11, 4, bias=False)
    hidden, weight = tensors["hidden"], tensors["weight"]
    targets = torch.tensor([3, 3, 7])
    found = torch.autograd.grad(token_logprobs(hidden[[0, 0, 0]], weight, targets).logps.sum(), [hidden, weight])
    expected = [torch.zeros_like(hidden), torch.zeros_like(weight)]
    for target in targets:
        one = torch.autograd.grad(token_logprobs_reference(hidden, weight, target[None]).logps.sum(), [hidden, weight])
        expected = [a + b for a, b in zip(expected, one, strict=True)]
    for name, a, b in zip(("hidden", "weight"), found, expected, strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_frozen_heads_get_no_gradient_and_none_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = drawn(9, 31, 6, bias=True)
    frozen = {name: x.detach() if name in ("weight", "bias") else x for name, x in tensors.items()}
    found = token_logprobs(**frozen)
    monkeypatch.setattr(chunked._Head, "scan", None)  # nothing is left to compute
    (grad,) = torch.autograd.grad(found.logps.sum(), [frozen["hidden"]])
    monkeypatch.undo()
    (expected,) = torch.autograd.grad(token_logprobs_reference(**frozen).logps.sum(), [frozen["hidden"]])
    torch.testing.assert_close(grad, expected)


def test_a_kept_promise_saves_the_second_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = drawn(9, 31, 6, bias=True)
    found = token_logprobs(**tensors, uniform=True)
    monkeypatch.setattr(chunked._Head, "scan", None)
    found.logps.mean().backward(retain_graph=True)
    assert tensors["weight"].grad.abs().max() > 0
    monkeypatch.undo()
    once = {name: tensors[name].grad.clone() for name in ("hidden", "weight", "bias")}
    found.logps.mean().backward()  # a second time: computed anew, and the same
    for name, grad in once.items():
        torch.testing.assert_close(tensors[name].grad, 2 * grad, msg=name)


def test_memory_nobody_wrote_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(*size: Any, dtype: torch.dtype | None = None, **_: Any) -> torch.Tensor:
        return torch.full(size, True if dtype == torch.bool else float("nan"), dtype=dtype)

    tensors = drawn(33, 17, 4, bias=True)
    expected = results(token_logprobs, tensors, torch.ones(33), chunk=7)
    top1 = token_logprobs(**tensors).is_top1
    monkeypatch.setattr(torch, "empty", poisoned)
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda _, *size, **options: poisoned(*size, **options))
    for name, value in results(token_logprobs, tensors, torch.ones(33), chunk=7).items():
        assert torch.equal(value, expected[name]), name
    assert torch.equal(token_logprobs(**tensors, chunk=7).is_top1, top1)


@pytest.mark.parametrize("tile", [1, 60, 1 << 20])
@pytest.mark.parametrize("uniform", [False, True])
def test_a_head_computed_in_fp32(tile: int, uniform: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-precision tensors, fp32 products: as exact as the reference in fp32, cast a few rows at a time."""
    monkeypatch.setattr(chunked, "TILE_BYTES", tile)
    upstream = torch.linspace(-1, 1, 33, dtype=torch.float64)
    tensors = drawn(33, 257, 24, bias=True)
    compared(tensors, upstream, torch.bfloat16, fp32_head=True, uniform=uniform, chunk=8)
    narrow = {
        k: x.bfloat16() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for k, x in tensors.items()
    }
    exact = token_logprobs_reference(**{k: x.double() if k != "targets" else x for k, x in narrow.items()}).logps
    errors = [(token_logprobs(**narrow, fp32_head=fp32).logps - exact).abs().max() for fp32 in (True, False)]
    assert errors[0] < 1e-5 < errors[1]


def test_sums_over_chunks_are_not_rounded_to_half_precision() -> None:
    """One token a chunk, all alike: 300 equal bfloat16 terms sum to 300 of them."""
    hidden, weight = (
        torch.ones(300, 4, dtype=torch.bfloat16),
        torch.zeros(8, 4, dtype=torch.bfloat16, requires_grad=True),
    )
    bias = torch.zeros(8, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(300, dtype=torch.int64)
    for uniform in (False, True):
        found = token_logprobs(hidden, weight, targets, bias=bias, uniform=uniform, chunk=1).logps.sum()
        of_weight, of_bias = torch.autograd.grad(found, [weight, bias])
        expected = torch.tensor([262.5] + [-37.5] * 7).bfloat16()  # 300 (1 - 1/8) and -300 / 8
        assert torch.equal(of_bias, expected)
        assert torch.equal(of_weight, expected[:, None].expand(8, 4))


def test_autocast_is_that_of_the_reference() -> None:
    tensors = drawn(33, 100, 24, bias=True, dtype=torch.float32)
    upstream = torch.linspace(-1, 1, 33)
    exact = results(token_logprobs_reference, drawn(33, 100, 24, bias=True), upstream)
    with torch.autocast("cpu", torch.bfloat16):
        reference, ours, wide = (
            results(token_logprobs_reference, tensors, upstream),
            results(token_logprobs, tensors, upstream, uniform=True),
            results(token_logprobs, tensors, upstream, fp32_head=True),
        )
    for name, expected in exact.items():
        assert ours[name].dtype == torch.float32, name
        error = (reference[name] - expected).norm()
        assert 0 < (ours[name] - expected).norm() <= 2 * error, name
        assert (wide[name] - expected).norm() < 1e-2 * error, name


def test_no_gradient_is_prepared_where_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = drawn(9, 31, 6, bias=True)
    monkeypatch.setattr(chunked._Head, "add", None)
    with torch.no_grad():
        found = token_logprobs(**tensors, entropy=True, uniform=True)
    assert not found.logps.requires_grad
    torch.testing.assert_close(found.logps, token_logprobs_reference(**tensors).logps.detach())


def test_entropy_carries_no_gradient_and_ties_are_top() -> None:
    hidden = torch.ones(2, 2, requires_grad=True)
    found = token_logprobs(hidden, torch.ones(4, 2), torch.tensor([0, 3]), entropy=True)
    assert found.entropy is not None
    assert not found.entropy.requires_grad
    assert found.is_top1.tolist() == [True, True]


@pytest.mark.parametrize("target", [-1, 5])
def test_a_token_the_head_does_not_have_is_refused(target: int) -> None:
    with pytest.raises(ValueError, match=r"targets are in \[0, 5\)"):
        token_logprobs(torch.ones(1, 2), torch.ones(5, 2), torch.tensor([target]))
