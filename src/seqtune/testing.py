"""Contracts that every registered member keeps, to be called from the tests of whoever ships one.

from seqtune.testing import check_objective

def test_contract():
    check_objective("acme")
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.autograd.gradcheck import GradcheckError, gradcheck
from torch.overrides import TorchFunctionMode

from seqtune.objectives import OBJECTIVES
from seqtune.packing import PACKINGS
from seqtune.packing.bounds import l1

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from seqtune.config.spec import Family, ObjectiveSpec

ROWS, TOKENS = 8, 6
RANKS = 20
"""Ranks of the made-up rewards: the default of `rank_grpo`."""


@dataclass(frozen=True)
class Batch:
    """Random inputs of one family, in the order of its loss function's positional arguments, rows first, float64.

    Args:
        tensors: Arguments by name.
        trained: Those that carry a gradient.
        named: Those passed by keyword.
    """

    tensors: dict[str, Tensor]
    trained: tuple[str, ...]
    named: frozenset[str] = frozenset()

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
                if value.dim() == 2 and value.is_floating_point()
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

    Losses and gradients are finite; the gradient is the derivative (of a spec with `stops_gradient`: with every
    detached value held fixed); padding, the order of rows and the split into micro-batches change nothing; the loss is
    inversely proportional to its denominator; rows without a trained token add nothing, whatever they hold; metrics are
    detached scalars keyed `area/name`; half precision goes in. A policy objective's advantages follow their completions
    when groups change places, do not see padding, are 0 or left out without a score, and are finite or left out.

    Args:
        name: In the registry `objectives`.
        **fields: Of its spec, where the defaults do not do.

    Raises:
        AssertionError: A clause is broken; says which.
        SeqtuneError: The name is not registered.
    """
    check_spec(OBJECTIVES.load(name)(name=name, **fields))


def check_spec(spec: ObjectiveSpec) -> None:
    """`check_objective` of a spec that need not be registered."""
    loss = spec.build()
    if spec.needs_mismatched:
        loss = partial(loss, kl=torch.tensor(0.4, dtype=torch.float64))
    batch = example(spec.family, also=getattr(spec, "loss_inputs", frozenset()))
    _check_finite(loss, batch)
    _check_gradient(loss, batch, held=spec.stops_gradient)
    _check_row_order(loss, batch)
    _check_split(loss, batch)
    _check_denominator(loss, batch)
    _check_metrics(loss, batch)
    if "mask" in batch.tensors:
        _check_padding(loss, batch)
        _check_masked_rows(loss, batch)
    _check_half_precision(loss, batch)
    if spec.family == "policy":
        _check_advantages(spec)
    assert spec.denominator_unit in ("tokens", "pairs", "groups", "sequences", "slots"), "denominator_unit is no unit"
    assert spec.formula.strip(), "formula is empty"
    assert spec.source.strip(), "source is empty"


def check_packing(name: str, **fields: Any) -> None:
    """Check that a registered packing keeps what rows must keep.

    No token in two rows, no row too long or empty, no fewer rows than the tokens need, the parts of a document in their
    order, and the same rows for the same lengths and seed.

    Args:
        name: In the registry `packings`.
        fields: Settings of its spec other than `name` and `capacity`.

    Raises:
        AssertionError: One of these fails; the message says which, and for which lengths.
        seqtune.errors.SeqtuneError: The name is not registered.
    """
    random = np.random.default_rng(0)
    for case in range(60):
        capacity = int(random.integers(2, 40))
        lengths = random.integers(1, capacity + 1, int(random.integers(0, 50)))
        if case % 3 == 0:  # more than half a row each but for a few of one token: what greedy packers do badly
            lengths = np.where(random.random(len(lengths)) < 0.8, capacity // 2 + 1, 1)
        given = f"packing '{name}' with lengths {lengths.tolist()} and capacity {capacity}"
        packer = PACKINGS.load(name)(name=name, capacity=capacity, **fields).build()
        bins = packer(lengths, capacity, case)
        try:
            bins.check(lengths, capacity)
        except ValueError as error:
            raise AssertionError(f"{given}: {error}") from error
        starts, sizes = bins.parts(lengths)
        order = np.argsort(bins.indices, kind="stable")
        same = np.diff(bins.indices[order]) == 0
        assert (np.diff(starts[order])[same] > 0).all(), f"{given}: parts of a document change places"
        lost = int(lengths.sum() - sizes.sum())
        assert len(bins) >= l1(lengths, capacity) or lost, f"{given}: {len(bins)} rows cannot hold the tokens"
        again = packer(lengths.copy(), capacity, case)
        for one, other in ((bins.indices, again.indices), (bins.offsets, again.offsets)):
            assert np.array_equal(one, other), f"{given}: two calls give different rows"


def example(family: Family, seed: int = 0, also: frozenset[str] = frozenset()) -> Batch:
    """A batch of random inputs for a family: 8 rows, up to 6 tokens each; `also` names inputs passed by keyword."""
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
    if family == "ranking":
        scores = torch.randint(3, (ROWS, 4), generator=generator).double()
        scores[::3, -1] = torch.nan  # a smaller group
        return Batch({"logps": 10 * logps(ROWS, 4), "scores": scores}, ("logps",))
    lengths = torch.randint(1, TOKENS + 1, (ROWS, 1), generator=generator)
    mask = (torch.arange(TOKENS) < lengths).to(torch.int64)
    if family == "sft":
        return Batch({"logps": logps(ROWS, TOKENS), "mask": mask}, ("logps",))
    old = logps(ROWS, TOKENS)
    if family == "offline":
        tensors = {"logps": old + 0.3 * normal(ROWS, TOKENS), "ref_logps": old, "advantages": normal(ROWS)}
        return Batch({**tensors, "mask": mask}, ("logps",))
    scale = torch.tensor([0.3, 1e-4], dtype=torch.float64).repeat(ROWS // 2).unsqueeze(1)  # clipped rows and others
    return Batch(
        {
            "logps": old + scale * normal(ROWS, TOKENS),
            "old_logps": old,
            "advantages": normal(ROWS),
            "mask": mask,
            "ref_logps": old + 0.2 * normal(ROWS, TOKENS),
            **{name: value for name, value in rollout(seed, mask, old).items() if name in also},
        },
        ("logps",),
        also,
    )


def rollout(seed: int, mask: Tensor, old_logps: Tensor) -> dict[str, Any]:
    """What policy objectives may ask of a rollout, made up, by the names of `seqtune.config.rules.inputs.INPUTS`.

    Args:
        seed: Of the values.
        mask: `[B, T]`.
        old_logps: `[B, T]`.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    rows, tokens = mask.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=old_logps.dtype)

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    return {
        "mask": mask,
        "limit": tokens,
        "completion_ids": integers(3, rows, tokens),
        "ended": integers(2, rows).bool(),
        "old_logps": old_logps,
        "ref_logps": old_logps + 0.2 * (uniform(rows, tokens) - 0.5),
        "sampler_logps": old_logps + 0.4 * (uniform(rows, tokens) - 0.5),
        "entropies": 2 * uniform(rows, tokens),
        "correction_scale": torch.full((rows,), 0.8, dtype=old_logps.dtype),
        "segments": integers(2, rows, tokens).cumsum(1).clamp(max=2),
        "prefix_mask": integers(4, rows, tokens) == 0,
        "memory_mask": integers(4, rows, tokens) == 0,
        "calls": integers(4, rows),
        "plan_rewards": uniform(rows),
        "rank_rewards": integers(2, rows, RANKS).to(old_logps.dtype),
        "reward_columns": uniform(rows, 3),
        "reward_weights": (),
        "format_scores": integers(2, rows).to(old_logps.dtype),
        "executions": uniform(rows, 2),
        "judge_scores": uniform(rows),
    }


def outcome(loss: Callable[..., tuple[Tensor, dict[str, Tensor]]], batch: Batch, denominator: float) -> Outcome:
    """Loss, gradients and metrics of a batch."""
    tensors = {
        key: value.clone().requires_grad_() if key in batch.trained else value.clone()
        for key, value in batch.tensors.items()
    }
    total, metrics = called(loss, batch, tensors, denominator)
    trained = [tensors[key] for key in batch.trained]
    gradients = torch.autograd.grad(total, trained)
    return Outcome(total.detach(), dict(zip(batch.trained, gradients, strict=True)), metrics)


def called(
    loss: Callable[..., tuple[Tensor, dict[str, Tensor]]], batch: Batch, tensors: dict[str, Tensor], denominator: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss function on `tensors`, which stand for those of `batch`."""
    given = {name: value for name, value in tensors.items() if name in batch.named}
    placed = [value for name, value in tensors.items() if name not in batch.named]
    return loss(*placed, **given, denominator=denominator)


class Held(TorchFunctionMode):
    """Holds every value that `detach` stops at what it was the first time: what is left is the surrogate whose
    derivative a gradient with stopped parts is."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Tensor] = []
        self.place = 0

    def __enter__(self) -> Any:
        self.place = 0
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is not torch.Tensor.detach:
            return result
        if self.place == len(self.values):
            self.values.append(result.clone())
        held = self.values[self.place]
        self.place += 1
        return held


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


def _check_gradient(loss: Callable[..., Any], batch: Batch, *, held: bool) -> None:
    mode = Held() if held else nullcontext()

    def of(*trained: Tensor) -> Tensor:
        changed = {**batch.tensors, **dict(zip(batch.trained, trained, strict=True))}
        with mode:
            return called(loss, batch, changed, ROWS)[0]

    points = [batch.tensors[key].clone().requires_grad_() for key in batch.trained]
    of(*points)  # the first call is the one whose stopped values are held
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
    exact = {key: value.double() if value.is_floating_point() else value for key, value in half.items()}
    wanted = outcome(loss, replace(batch, tensors=exact), ROWS)
    clause = "bfloat16 inputs give what the same numbers in float64 do"
    for one, other in (
        (found.loss, wanted.loss),
        *((found.gradients[key], wanted.gradients[key]) for key in batch.trained),
    ):
        # A gradient is rounded once, to the dtype of its input: twice that. All else is float32, summed over tokens.
        gradient = one.dtype == torch.bfloat16
        summed = ROWS * TOKENS * torch.finfo(torch.float32).eps
        limit = torch.finfo(torch.bfloat16).eps if gradient else summed
        torch.testing.assert_close(one.double(), other, rtol=limit, atol=summed, msg=lambda text: f"{clause}: {text}")


def _check_padding(loss: Callable[..., Any], batch: Batch) -> None:
    tight, wide = outcome(loss, batch, ROWS), outcome(loss, batch.padded(3), ROWS)
    _same(wide.loss, tight.loss, "padding does not change the loss")
    for key in batch.trained:
        _same(wide.gradients[key], _zeros_after(tight.gradients[key], 3), "padding does not change a gradient")


def _zeros_after(value: Tensor, columns: int) -> Tensor:
    return torch.cat([value, value.new_zeros(len(value), columns)], dim=1)


def _check_advantages(spec: Any) -> None:
    """Groups of 2 so that 8 rows make 4 groups, whatever group the spec asks for."""
    size = 2
    assign = spec.model_copy(update={"group_size": size}).build_advantage()
    rewards = torch.randint(4, (ROWS,), generator=torch.Generator().manual_seed(7)).double()
    tensors = example("policy").tensors
    made = rollout(0, tensors["mask"], tensors["old_logps"])
    given = {name: made[name] for name in sorted(spec.advantage_inputs)}
    found = assign(rewards, **given)
    assert found.shape in ((ROWS,), (ROWS, TOKENS)), f"advantages have the shape {tuple(found.shape)}"
    assert not found.isinf().any(), "advantages are finite, or NaN where something is left out"
    unscored = rewards.clone()
    unscored[0] = torch.nan
    without = assign(unscored, **given)
    assert not without[0].nan_to_num().any(), "a completion without a score has advantage 0, or is left out"
    assert without[size:].isfinite().equal(found[size:].isfinite()), (
        "a missing score spoils no other group's advantages"
    )
    order = torch.tensor([3, 0, 2, 1]).repeat_interleave(size) * size + torch.arange(size).repeat(ROWS // size)
    moved = {name: value[order] if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    _follows(assign(rewards[order], **moved), found[order], "advantages follow their completions")
    wide = {
        name: _with_columns(value, 2) if isinstance(value, torch.Tensor) and value.shape[1:] == (TOKENS,) else value
        for name, value in given.items()
    }
    padded = assign(rewards, **wide)
    _follows(padded[:, :TOKENS] if padded.dim() == 2 else padded, found, "padding does not change advantages")


def _follows(one: Tensor, other: Tensor, clause: str) -> None:
    torch.testing.assert_close(one, other, equal_nan=True, msg=lambda difference: f"{clause}: {difference}")


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
