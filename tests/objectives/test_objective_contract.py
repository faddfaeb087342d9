from typing import ClassVar, Literal

import pytest
import torch

from seqtune.config.spec import DenominatorUnit, Family, ObjectiveSpec
from seqtune.objectives import OBJECTIVES
from seqtune.objectives.reduce import at_least_fp32
from seqtune.objectives.specs.policy import Policy
from seqtune.registry import Entry
from seqtune.testing import check_objective, check_spec


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_every_registered_objective_keeps_the_contract(name: str) -> None:
    check_objective(name)


@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "token_sum"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_every_policy_objective_keeps_the_contract(ratio: str, aggregation: str, kl: str) -> None:
    check_objective("policy", ratio=ratio, aggregation=aggregation, kl=kl, beta=0.1)


def test_means_over_documents_keep_the_contract() -> None:
    check_objective("sft", aggregation="sequence_mean")


@pytest.mark.parametrize(
    "fields",
    [
        {"clip": "cispo"},
        {"clip": "gate"},
        {"clip": "soft"},
        {"bound": 2.0},
        {"ratio": "segment"},
        {"ratio": "segment", "gradient": "token"},
        {"ratio": "sequence", "gradient": "token"},
        {"ratio": "sequence_sum"},
        {"aggregation": "constant"},
        {"correction": "truncate", "correction_high": 1.1},
        {"correction": "mask", "correction_over": "sequence_mean", "correction_high": 1.05, "correction_low": 0.95},
        {"correction": "mask", "correction_over": "sequence_sum"},
        {"correction": "truncate", "correction_normalised": True},
        {"rejection": "mean"},
        {"rejection": "max", "rejection_kl": "k3"},
        {"off_policy_threshold": 0.01},
        {"beta": 0.1, "kl_corrected": True, "kl": "k1"},
        {"beta": 0.1, "kl_in": "reward"},
        {"advantage": "batch_std"},
        {"advantage": "leave_one_out"},
        {"advantage": "reinforce_pp", "beta": 0.1, "kl_in": "reward", "kl": "k1", "gamma": 0.9},
        {"advantage": "reinforce_pp_baseline"},
        {"advantage": "columns"},
        {"credit": "tree"},
        {"credit": "tree", "tree_root": False},
        {"overlong": 0.5, "truncated": "drop"},
        {"entropy_drop": 0.5},
    ],
    ids=lambda fields: ",".join(f"{key}={value}" for key, value in fields.items()),
)
def test_every_part_keeps_the_contract(fields) -> None:
    check_objective("policy", **fields)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("dagrpo", {"anchors": True}),
        ("espo_entropy", {"grouping": "bins", "bins": 3, "alpha": 0}),
        ("ts_grpo", {"plan_advantage": "sum"}),
        ("rank_grpo", {"aggregation": "token_mean", "rank_reward": "own"}),
        ("minirl", {"correction": "mask"}),
        ("searcher", {"mu": 0}),
        ("a_lol", {"epsilon": 0.1}),
    ],
)
def test_methods_with_other_fields_keep_it_too(name: str, fields) -> None:
    check_objective(name, **fields)


def test_a_stopped_gradient_must_be_declared() -> None:
    """CISPO's gradient is not the derivative of its value: an undeclared one is caught, a declared one compared with
    the surrogate whose stopped values are held."""

    class Undeclared(Policy):
        name: str = "policy"
        clip: Literal["cispo"] = "cispo"

        @property
        def stops_gradient(self) -> bool:
            return False

    with pytest.raises(AssertionError, match="the gradient is the derivative"):
        check_spec(Undeclared())
    check_spec(Policy(clip="cispo"))


def test_advantages_that_look_at_padding_mix_groups_or_take_a_missing_score_for_one_are_caught() -> None:
    class Padded(Policy):
        credit: Literal["tree"] = "tree"

        def build_advantage(self):
            return lambda rewards, *, mask, completion_ids: rewards.unsqueeze(1) * mask / mask.shape[1]

    class Mixed(Policy):
        def build_advantage(self):
            return lambda rewards: rewards.nan_to_num().cumsum(0) * ~rewards.isnan()

    class Unscored(Policy):
        def build_advantage(self):
            return lambda rewards: rewards.nan_to_num(nan=1.0)

    class Spoilt(Policy):
        def build_advantage(self):
            return lambda rewards: rewards - rewards.mean()

    with pytest.raises(AssertionError, match="padding does not change advantages"):
        check_spec(Padded())
    with pytest.raises(AssertionError, match="advantages follow"):
        check_spec(Mixed())
    with pytest.raises(AssertionError, match="without a score has advantage 0"):
        check_spec(Unscored())
    with pytest.raises(AssertionError, match="spoils no other group"):
        check_spec(Spoilt())


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


def _rounds(logps, mask, *, denominator):
    """Adds in the dtype of its input, then computes in single precision: 100 - 1.3 in bfloat16 is 98.5."""
    shifted = at_least_fp32(logps + 100) - 100
    return -torch.where(mask.bool(), shifted, 0).sum() / (denominator or 1), {}


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
        (_rounds, "the same numbers in float64"),
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
