"""Every registered method beside the one it is most easily taken for, set as near to it as it can be."""

from typing import Any

import pytest
import torch

from seqtune.objectives import OBJECTIVES
from seqtune.testing import ROWS, example, outcome, rollout

GROUP = 4
DEFAULTS: dict[str, dict[str, Any]] = {
    "policy": {"advantage": "group", "ratio": "token", "clip": "pessimistic", "epsilon_low": 0.2, "epsilon_high": 0.2,
               "aggregation": "sequence_mean", "beta": 0, "kl": "k3", "kl_in": "loss", "kl_corrected": False,
               "correction": "none", "rejection": "none", "overlong": 0, "truncated": "keep", "entropy_drop": 0,
               "gradient": "shared", "credit": "sequence", "sampling_rounds": 1, "group_size": 8, "gamma": 1,
               "tau_positive": 1.0, "tau_negative": 1.05, "ref_model_mixup_alpha": 0.6},
    "grpo": {"beta": 0.04},
    "gspo": {"ratio": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
    "dr_grpo": {"advantage": "centered", "aggregation": "constant"},
    "dapo": {"epsilon_high": 0.28, "aggregation": "token_mean", "overlong": 0.2, "truncated": "drop",
             "sampling_rounds": 10},
    "rloo": {"advantage": "leave_one_out", "ratio": "sequence_sum", "beta": 0.05, "kl": "k1", "kl_in": "reward"},
    "reinforce_pp": {"advantage": "reinforce_pp", "aggregation": "token_mean", "beta": 0.01, "kl": "k1",
                     "kl_in": "reward"},
    "gspo_token": {"ratio": "sequence", "gradient": "token", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
    "tempo": {"credit": "tree", "tree_weight": 1, "tree_root": True, "epsilon_high": 0.28,
              "aggregation": "token_mean"},
    "minirl": {"advantage": "centered", "clip": "gate", "epsilon_high": 0.27, "correction": "truncate",
               "correction_over": "token", "correction_high": 5, "aggregation": "token_sum"},
    "ts_grpo": {"ratio": "segment", "epsilon_low": 3e-3, "epsilon_high": 4e-3, "plan_epsilon_low": 0.2,
                "plan_epsilon_high": 0.2, "plan_weight": 1, "answer_weight": 1, "plan_advantage": "answer"},
    "espo_entropy": {"ratio": "segment", "gradient": "token", "epsilon_low": 3e-3, "epsilon_high": 4e-3, "share": 0.2,
                     "bins": 2, "alpha": 0.5, "width_low": 0.25, "width_high": 4, "grouping": "share"},
    "dagrpo": {"tau": 0.2, "success": 0.5, "anchors": False, "anchor_gamma": 0.1, "aggregation": "token_mean"},
    "rank_grpo": {"ranks": 20, "rank_reward": "discounted", "epsilon_low": 0.06, "epsilon_high": 0.08, "beta": 1e-3,
                  "ratio": "segment", "aggregation": "rank", "overflow_penalty": 0.1, "ending_bonus": 0.1},
    "prefix_rft": {"advantage": "centered", "prefix_keep": 0.2, "share_first": 0.95, "share_last": 0.05,
                   "share_high": 0.95, "share_schedule": "cosine", "bound": 3, "aggregation": "constant"},
    "foresight": {"beta": 0.04, "format_weight": 0.2, "execution_weight": 0.6, "judge_weight": 0.2, "executions": 1},
    "searcher": {"advantage": "reinforce_pp", "aggregation": "token_mean", "beta": 0.01, "kl": "k1", "kl_in": "reward",
                 "correct": 0.5, "calls_weight": 2, "calls_limit": 2, "mu": 0.1},
}  # fmt: skip
"""What papers, their code or we chose, as the pages say; `policy` has the rest."""


SCORED = {"value": "fit", "value_samples": 4, "value_prompts": 512, "sampling": "priority"}
OTHERS: dict[str, dict[str, Any]] = {
    "sft": {"aggregation": "token_mean"},
    "dpo": {"beta": 0.1, "label_smoothing": 0},
    "kto": {"beta": 0.1, "desirable_weight": 1, "undesirable_weight": 1},
    "reward": {"center_coefficient": 0},
    "a_lol": {**SCORED, "epsilon": 0.9},
    "a_lol_seq": {**SCORED, "epsilon": 0.9},
    "a_lol_ref_free": SCORED,
    "a_lol_kl": {**SCORED, "beta": 0.1},
    "slic": {"calibration": "rank", "margin": 1, "regularisation": 0.5},
}


@pytest.mark.parametrize("name", [*DEFAULTS, *OTHERS])
def test_defaults(name: str) -> None:
    spec = OBJECTIVES.load(name)()
    wanted = {**DEFAULTS["policy"], **DEFAULTS[name]} if name in DEFAULTS else OTHERS[name]
    found = {field: getattr(spec, field) for field in wanted}
    assert found == wanted
    assert spec.name == name


def test_every_objective_is_in_a_table() -> None:
    assert {name for name in OBJECTIVES if OBJECTIVES.load(name).family == "policy"} == DEFAULTS.keys()
    assert set(OBJECTIVES) == DEFAULTS.keys() | OTHERS.keys()


def learnt(name: str, fields: dict[str, Any]) -> torch.Tensor:
    """Gradient of a method's loss, with the advantages it gives a made-up rollout of two groups of four."""
    spec = OBJECTIVES.load(name)(**{**fields, "group_size": GROUP})
    batch = example("policy", also=spec.loss_inputs)
    made = rollout(0, batch.tensors["mask"], batch.tensors["old_logps"])
    rewards = torch.tensor([0, 1, 0, 0.25, 0, 0.75, 0.75, 0.75]).double()
    advantages = spec.build_advantage()(rewards, **{name: made[name] for name in spec.advantage_inputs})
    batch.tensors["advantages"] = advantages
    return outcome(spec.build(), batch, ROWS).gradients["logps"]


NO_KL = {"beta": 0}
BY_TOKEN = {**NO_KL, "aggregation": "token_mean"}
PAIRS = [
    ("gspo", {"credit": "tree"}, "gspo_token", {"credit": "tree"}),
    ("grpo", NO_KL, "dr_grpo", {}),
    ("rloo", NO_KL, "grpo", {**NO_KL, "advantage": "leave_one_out"}),
    ("rloo", NO_KL, "policy", {"ratio": "sequence_sum"}),
    ("dapo", {"overlong": 0}, "grpo", {**BY_TOKEN, "epsilon_high": 0.28}),
    ("dapo", {"truncated": "keep"}, "grpo", {**BY_TOKEN, "epsilon_high": 0.28}),
    ("tempo", {}, "grpo", {**BY_TOKEN, "epsilon_high": 0.28}),
    ("rank_grpo", NO_KL, "gspo", {"epsilon_low": 0.06, "epsilon_high": 0.08}),
    ("minirl", {}, "grpo", {**NO_KL, "advantage": "centered", "epsilon_high": 0.27, "aggregation": "token_sum"}),
    ("espo_entropy", {}, "gspo", {"epsilon_low": 3e-3, "epsilon_high": 4e-3}),
    ("espo_entropy", {"epsilon_high": 0.2, "alpha": 2}, "espo_entropy", {"epsilon_high": 0.2, "alpha": 0}),
    ("ts_grpo", {}, "gspo", {"epsilon_low": 3e-3, "epsilon_high": 4e-3}),
    ("ts_grpo", {}, "grpo", NO_KL),
    ("dagrpo", {"tau": 0.9}, "grpo", BY_TOKEN),
    (
        "prefix_rft",
        {"prefix_keep": 1},
        "grpo",
        {**NO_KL, "advantage": "centered", "aggregation": "constant", "bound": 3},
    ),
    ("prefix_rft", {}, "prefix_rft", {"prefix_keep": 1}),
    ("foresight", {}, "grpo", {}),
    ("searcher", {"mu": 0}, "reinforce_pp", {}),
    ("searcher", {}, "searcher", {"mu": 0}),
    ("reinforce_pp", NO_KL, "reinforce_pp", {**NO_KL, "advantage": "reinforce_pp_baseline"}),
    ("reinforce_pp", NO_KL, "grpo", BY_TOKEN),
    ("reinforce_pp", {"beta": 1}, "reinforce_pp", NO_KL),
]


@pytest.mark.parametrize(("one", "its", "other", "others"), PAIRS)
def test_a_method_is_not_its_neighbour(one: str, its: dict[str, Any], other: str, others: dict[str, Any]) -> None:
    assert (learnt(one, its) - learnt(other, others)).abs().max() > 1e-3


ON_POLICY = {
    "grpo": "sequence_mean", "gspo": "sequence_mean", "gspo_token": "sequence_mean", "espo_entropy": "sequence_mean",
    "foresight": "sequence_mean", "dr_grpo": "constant", "prefix_rft": "constant", "dapo": "token_mean",
    "tempo": "token_mean", "dagrpo": "token_mean", "reinforce_pp": "token_mean", "searcher": "token_mean",
    "minirl": "token_sum", "rloo": "token_sum",
}  # fmt: skip


@pytest.mark.parametrize(("name", "aggregation"), ON_POLICY.items())
def test_on_policy_a_method_is_the_policy_gradient_under_its_aggregation(name: str, aggregation: str) -> None:
    """-A ∇log π on every token, divided as the aggregation says; what methods differ in shows off policy alone."""
    fields = {"mu": 0} if name == "searcher" else {}
    spec = OBJECTIVES.load(name)(beta=0, **fields)
    batch = example("policy", also=spec.loss_inputs)
    batch.tensors["logps"] = batch.tensors["old_logps"].clone()
    if "sampler_logps" in batch.tensors:
        batch.tensors["sampler_logps"] = batch.tensors["old_logps"]
    a, mask = batch.tensors["advantages"].unsqueeze(1), batch.tensors["mask"]
    weight = mask / mask.sum(1, keepdim=True) if aggregation == "sequence_mean" else mask
    found = outcome(spec.build(), batch, ROWS).gradients["logps"]
    torch.testing.assert_close(found, -a * weight / ROWS)


WIDE = {"epsilon_low": 0.3, "epsilon_high": 0.4}
SOFT = {"clip": "soft"}
GAP = {"correction": "truncate", "correction_high": 1.1}
FIELDS = [
    ("policy", {"advantage": "reinforce_pp"}, {"gamma": 0.5}),
    ("policy", {}, {"overlong": 0.5}),
    ("policy", {}, {"truncated": "drop"}),
    ("policy", {"credit": "tree"}, {"tree_weight": 0.5}),
    ("policy", {"credit": "tree"}, {"tree_root": False}),
    ("policy", {}, {"entropy_drop": 0.5}),
    ("policy", {}, {"epsilon_low": 0.05}),
    ("policy", {}, {"epsilon_high": 0.05}),
    ("policy", {}, {"bound": 1.21}),
    ("policy", SOFT, {"tau_positive": 3.0}),
    ("policy", SOFT, {"tau_negative": 3.0}),
    ("policy", GAP, {"correction_high": 1.05}),
    ("policy", {**GAP, "correction": "mask"}, {"correction_low": 0.95}),
    ("policy", GAP, {"correction_over": "sequence_mean"}),
    ("policy", GAP, {"correction_normalised": True}),
    ("policy", {"rejection": "max"}, {"rejection_threshold": 0.001}),
    ("policy", {"rejection": "max"}, {"rejection_kl": "k1"}),
    ("policy", {"rejection": "max"}, {"rejection": "mean"}),
    ("policy", {}, {"off_policy_threshold": 0.01}),
    ("policy", {"beta": 0.1}, {"beta": 0.2}),
    ("policy", {"beta": 0.1}, {"kl": "k2"}),
    ("policy", {"beta": 0.1}, {"kl_corrected": True}),
    ("policy", {"beta": 1}, {"kl_in": "reward"}),
    ("policy", {"beta": 1, "kl_in": "reward"}, {"kl": "k1"}),
    ("espo_entropy", WIDE, {"share": 0.6}),
    ("espo_entropy", {**WIDE, "grouping": "bins"}, {"bins": 3}),
    ("espo_entropy", {"epsilon_low": 0.2, "epsilon_high": 0.2, "alpha": 2}, {"width_low": 1.0}),
    ("ts_grpo", {}, {"plan_weight": 0.5}),
    ("ts_grpo", {}, {"answer_weight": 0.5}),
    ("ts_grpo", {}, {"plan_epsilon_low": 0.01}),
    ("ts_grpo", {}, {"plan_epsilon_high": 0.01}),
    ("ts_grpo", {}, {"plan_advantage": "own"}),
    ("ts_grpo", {"plan_advantage": "own"}, {"plan_advantage": "sum"}),
    ("ts_grpo", {}, {"advantage": "centered"}),
    ("dagrpo", {"tau": 0.9}, {"success": 0.8}),
    ("dagrpo", {"anchors": True}, {"anchor_gamma": 0.5}),
    ("rank_grpo", {}, {"rank_reward": "own"}),
    ("rank_grpo", {}, {"aggregation": "token_sum"}),
    ("prefix_rft", {"prefix_keep": 1}, {"bound": 1.21}),
    ("foresight", {}, {"format_weight": 0.5}),
    ("foresight", {}, {"execution_weight": 0.2}),
    ("foresight", {}, {"judge_weight": 0.8}),
    ("searcher", {}, {"correct": 0.2}),
    ("searcher", {}, {"calls_weight": 0.5}),
    ("searcher", {}, {"calls_limit": 0.1}),
    ("searcher", {}, {"mu": 0.5}),
]


@pytest.mark.parametrize(("name", "fields", "change"), FIELDS)
def test_what_a_field_says_is_learnt(name: str, fields: dict[str, Any], change: dict[str, Any]) -> None:
    assert (learnt(name, {**fields, **change}) - learnt(name, fields)).abs().max() > 1e-5


def test_the_four_a_lols_differ_away_from_the_reference() -> None:
    gradients = {}
    for name in ("a_lol", "a_lol_seq", "a_lol_ref_free", "a_lol_kl"):
        gradients[name] = outcome(OBJECTIVES.load(name)().build(), example("offline"), ROWS).gradients["logps"]
    names = list(gradients)
    for n, one in enumerate(names):
        for other in names[:n]:
            assert (gradients[one] - gradients[other]).abs().max() > 1e-3, (one, other)
