"""Contracts that every registered member keeps, to be called from the tests of whoever ships one.

from seqtune.testing import check_objective

def test_contract():
    check_objective("acme")
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.gradcheck import GradcheckError, gradcheck

from seqtune.objectives import OBJECTIVES

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from seqtune.config.spec import Family, ObjectiveSpec

ROWS, TOKENS = 8, 6


@dataclass(frozen=True)
class Batch:
    """Random inputs of one family, in the order of its loss function's positional arguments, rows first, float64.

    Args:
        tensors: Arguments by name.
        trained: Those that carry a gradient.
    """

    tensors: dict[str, Tensor]
    trained: tuple[str, ...]

    def rows(self, index: Tensor | slice) -> Batch:
        """The chosen rows."""
        return replace(self, tensors={key: value[index] for key, value in self.tensors.items()})

    def joined(self, other: Batch) -> Batch:
        """The rows of both."""
        return replace(
            self, tensors={key: torch.cat([value, other.tensors[key]]) for key, value in self.tensors.items()}
        )

    def padded(self, columns: int) -> Batch:
        """`[B, T]` tensors with further columns that the mask leaves out and that hold NaN."""
        return replace(self, tensors={key: _with_columns(value, columns) for key, value in self.tensors.items()})

    def masked_out(self) -> Batch:
        """No token trained: the mask is 0, and what it hides is NaN."""
        return replace(
            self,
            tensors={
                key: torch.zeros_like(value)
                if key == "mask"
                else torch.full_like(value, torch.nan)
                if value.dim() == 2
                else value
                for key, value in self.tensors.items()
            },
        )


@dataclass(frozen=True)
class Outcome:
    """What a loss function gave for a batch: the loss, its gradient by argument, the metrics."""

    loss: Tensor
    gradients: dict[str, Tensor]
    metrics: dict[str, Tensor]


def check_objective(name: str, **fields: Any) -> None:
    """Check that a registered objective keeps the contract of its family.

    Losses and gradients are finite; the gradient is the derivative; padding, the order of rows and the split into
    micro-batches change nothing; the loss is inversely proportional to its denominator; rows without a trained token
    add nothing, whatever they hold; metrics are detached scalars keyed `area/name`; half precision goes in.

    Args:
        name: In the registry `objectives`.
        **fields: Of its spec, where the defaults do not do.

    Raises:
        AssertionError: A clause is broken; says which.
        SeqtuneError: The name is not registered.
    """
    spec: ObjectiveSpec = OBJECTIVES.load(name)(name=name, **fields)
    loss = spec.build()
    batch = example(spec.family)
    _check_finite(loss, batch)
    _check_gradient(loss, batch)
    _check_row_order(loss, batch)
    _check_split(loss, batch)
    _check_denominator(loss, batch)
    _check_metrics(loss, batch)
    if "mask" in batch.tensors:
        _check_padding(loss, batch)
        _check_masked_rows(loss, batch)
    _check_half_precision(loss, batch)
    assert spec.denominator_unit in ("tokens", "pairs", "sequences"), "denominator_unit is no unit"
    assert spec.formula.strip(), "formula is empty"
    assert spec.source.strip(), "source is empty"


def example(family: Family, seed: int = 0) -> Batch:
    """A batch of random inputs for a family: 8 rows, up to 6 tokens each."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def logps(*shape: int) -> Tensor:
        return -0.1 - 2.4 * torch.rand(*shape, generator=generator, dtype=torch.float64)

    if family == "reward":
        return Batch(
            {key: normal(ROWS) for key in ("chosen_rewards", "rejected_rewards")},
            ("chosen_rewards", "rejected_rewards"),
        )
    if family == "preference":
        keys = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
        return Batch({key: 10 * logps(ROWS) for key in keys}, keys[:2])
    lengths = torch.randint(1, TOKENS + 1, (ROWS, 1), generator=generator)
    mask = (torch.arange(TOKENS) < lengths).to(torch.int64)
    if family == "sft":
        return Batch({"logps": logps(ROWS, TOKENS), "mask": mask}, ("logps",))
    old = logps(ROWS, TOKENS)
    scale = torch.tensor([0.3, 1e-4], dtype=torch.float64).repeat(ROWS // 2).unsqueeze(1)  # clipped rows and others
    return Batch(
        {
            "logps": old + scale * normal(ROWS, TOKENS),
            "old_logps": old,
            "advantages": normal(ROWS),
            "mask": mask,
            "ref_logps": old + 0.2 * normal(ROWS, TOKENS),
        },
        ("logps",),
    )


def outcome(loss: Callable[..., tuple[Tensor, dict[str, Tensor]]], batch: Batch, denominator: float) -> Outcome:
    """Loss, gradients and metrics of a batch."""
    tensors = {
        key: value.clone().requires_grad_() if key in batch.trained else value.clone()
        for key, value in batch.tensors.items()
    }
    total, metrics = loss(*tensors.values(), denominator=denominator)
    trained = [tensors[key] for key in batch.trained]
    gradients = torch.autograd.grad(total, trained)
    return Outcome(total.detach(), dict(zip(batch.trained, gradients, strict=True)), metrics)


def _with_columns(value: Tensor, columns: int) -> Tensor:
    if value.dim() != 2:
        return value
    fill = torch.nan if value.is_floating_point() else 0
    return torch.cat([value, value.new_full((len(value), columns), fill)], dim=1)


def _same(one: Tensor, other: Tensor, clause: str) -> None:
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, msg=lambda difference: f"{clause}: {difference}")


def _check_finite(loss: Callable[..., Any], batch: Batch) -> None:
    found = outcome(loss, batch, ROWS)
    assert found.loss.dim() == 0, f"the loss is a scalar: it has shape {tuple(found.loss.shape)}"
    assert found.loss.isfinite(), "the loss is finite"
    for key, gradient in found.gradients.items():
        assert gradient.isfinite().all(), f"the gradient of {key} is finite"
    assert any(gradient.any() for gradient in found.gradients.values()), "the loss has a gradient"


def _check_gradient(loss: Callable[..., Any], batch: Batch) -> None:
    def of(*trained: Tensor) -> Tensor:
        changed = {**batch.tensors, **dict(zip(batch.trained, trained, strict=True))}
        total: Tensor = loss(*changed.values(), denominator=ROWS)[0]
        return total

    points = [batch.tensors[key].clone().requires_grad_() for key in batch.trained]
    try:
        gradcheck(of, points, eps=1e-6, atol=1e-6, rtol=1e-4)
    except GradcheckError as error:
        raise AssertionError(f"the gradient is the derivative: {error}") from error


def _check_row_order(loss: Callable[..., Any], batch: Batch) -> None:
    order = torch.tensor([3, 0, 7, 5, 1, 6, 2, 4])
    straight, shuffled = outcome(loss, batch, ROWS), outcome(loss, batch.rows(order), ROWS)
    _same(shuffled.loss, straight.loss, "the order of rows does not change the loss")
    for key in batch.trained:
        _same(shuffled.gradients[key], straight.gradients[key][order], "the order of rows does not change a gradient")


def _check_split(loss: Callable[..., Any], batch: Batch) -> None:
    whole = outcome(loss, batch, ROWS)
    for size in (1, 3):
        parts = [outcome(loss, batch.rows(slice(start, start + size)), ROWS) for start in range(0, ROWS, size)]
        clause = f"micro-batches of {size} add up to the whole batch"
        _same(torch.stack([part.loss for part in parts]).sum(), whole.loss, clause)
        for key in batch.trained:
            _same(torch.cat([part.gradients[key] for part in parts]), whole.gradients[key], clause)


def _check_denominator(loss: Callable[..., Any], batch: Batch) -> None:
    once, twice = outcome(loss, batch, ROWS), outcome(loss, batch, 2 * ROWS)
    _same(2 * twice.loss, once.loss, "the loss is inversely proportional to the denominator")


def _check_metrics(loss: Callable[..., Any], batch: Batch) -> None:
    for key, value in outcome(loss, batch, ROWS).metrics.items():
        assert re.fullmatch(r"[a-z0-9_]+/[a-z0-9_]+", key), f"metrics are keyed area/name: {key!r}"
        assert isinstance(value, torch.Tensor), f"metric {key} is a tensor"
        assert value.dim() == 0, f"metric {key} is a scalar"
        assert not value.requires_grad, f"metric {key} is detached"
        assert value.isfinite(), f"metric {key} is finite"


def _check_half_precision(loss: Callable[..., Any], batch: Batch) -> None:
    half = {key: value.bfloat16() if value.is_floating_point() else value for key, value in batch.tensors.items()}
    found = outcome(loss, replace(batch, tensors=half), ROWS)
    assert found.loss.isfinite(), "bfloat16 inputs give a finite loss"
    assert found.loss.dtype == torch.float32, f"bfloat16 inputs are computed in float32, not {found.loss.dtype}"


def _check_padding(loss: Callable[..., Any], batch: Batch) -> None:
    tight, wide = outcome(loss, batch, ROWS), outcome(loss, batch.padded(3), ROWS)
    _same(wide.loss, tight.loss, "padding does not change the loss")
    for key in batch.trained:
        _same(wide.gradients[key], _zeros_after(tight.gradients[key], 3), "padding does not change a gradient")


def _zeros_after(value: Tensor, columns: int) -> Tensor:
    return torch.cat([value, value.new_zeros(len(value), columns)], dim=1)


def _check_masked_rows(loss: Callable[..., Any], batch: Batch) -> None:
    empty = batch.rows(slice(0, 2)).masked_out()
    without, with_empty = outcome(loss, batch, ROWS), outcome(loss, batch.joined(empty), ROWS)
    _same(with_empty.loss, without.loss, "rows without a trained token add nothing to the loss")
    nothing = outcome(loss, empty, 0)
    assert nothing.loss == 0, "a step without a trained token has loss 0"
    for found in (with_empty, nothing):
        for key, gradient in found.gradients.items():
            assert not gradient[-2:].any(), f"rows without a trained token give {key} no gradient and no NaN"
        for key, value in found.metrics.items():
            assert value.isfinite(), f"metric {key} is finite with rows that have no trained token"
