from typing import ClassVar

import pytest
import torch

from seqtune.config.spec import DenominatorUnit, Family, ObjectiveSpec
from seqtune.objectives import OBJECTIVES
from seqtune.objectives.specs import Policy
from seqtune.registry import Entry
from seqtune.testing import check_objective


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_every_registered_objective_keeps_the_contract(name: str) -> None:
    check_objective(name)


@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "token_sum"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_every_policy_objective_keeps_the_contract(ratio: str, aggregation: str, kl: str) -> None:
    check_objective("policy", ratio=ratio, aggregation=aggregation, kl=kl, beta=0.1)


def test_what_the_denominator_counts() -> None:
    units = {name: OBJECTIVES.load(name)().denominator_unit for name in ("sft", "dpo", "reward", "grpo", "gspo")}
    assert units == {"sft": "tokens", "dpo": "pairs", "reward": "pairs", "grpo": "sequences", "gspo": "sequences"}
    assert Policy(aggregation="token_mean").denominator_unit == "tokens"
    assert Policy(aggregation="token_sum").denominator_unit == "sequences"


def _sft(logps, mask, *, denominator):
    return -(logps * mask).sum() / denominator, {}


def _local_mean(logps, mask, *, denominator):
    return -torch.where(mask.bool(), logps, 0).mean() * 8 / denominator, {}


def _count_of_rows(logps, mask, *, denominator):
    return -torch.where(mask.bool(), logps, 0).sum() / logps.shape[1] / denominator, {}


def _first_row_counts_double(logps, mask, *, denominator):
    weights = torch.ones(len(logps), 1, dtype=logps.dtype)
    weights[0] = 2
    return -(weights * torch.where(mask.bool(), logps, 0)).sum() / denominator, {}


def _attached_metric(logps, mask, *, denominator):
    loss = -torch.where(mask.bool(), logps, 0).sum() / denominator
    return loss, {"sft/nll": loss}


def _misnamed_metric(logps, mask, *, denominator):
    return -torch.where(mask.bool(), logps, 0).sum() / denominator, {"NLL": torch.zeros(())}


def _no_gradient(logps, mask, *, denominator):
    return (logps * 0).nansum() / denominator, {}


def _wrong_gradient(logps, mask, *, denominator):
    picked = torch.where(mask.bool(), logps, 0)
    return -(2 * picked - picked.detach()).sum() / denominator, {}


def _half(logps, mask, *, denominator):
    return -torch.where(mask.bool(), logps, torch.zeros((), dtype=logps.dtype)).sum() / (denominator or 1), {}


def _ignores_the_denominator(logps, mask, *, denominator):
    return -torch.where(mask.bool(), logps, 0).sum(), {}


@pytest.mark.parametrize(
    ("loss", "clause"),
    [
        (_sft, "padding does not change"),
        (_local_mean, "micro-batches of 1 add up"),
        (_count_of_rows, "padding does not change the loss"),
        (_first_row_counts_double, "the order of rows"),
        (_attached_metric, "detached"),
        (_misnamed_metric, "area/name"),
        (_no_gradient, "has a gradient"),
        (_wrong_gradient, "the gradient is the derivative"),
        (_half, "computed in float32"),
        (_ignores_the_denominator, "inversely proportional"),
    ],
)
def test_a_broken_objective_is_caught_with_the_clause_it_breaks(monkeypatch, loss, clause: str) -> None:
    class Broken(ObjectiveSpec):
        family: ClassVar[Family] = "sft"
        formula: ClassVar[str] = "L"
        source: ClassVar[str] = "here"

        @property
        def denominator_unit(self) -> DenominatorUnit:
            return "tokens"

        def build(self):
            return loss

    monkeypatch.setattr(Entry, "load", lambda entry: Broken)
    with pytest.raises(AssertionError, match=clause):
        check_objective("sft")
