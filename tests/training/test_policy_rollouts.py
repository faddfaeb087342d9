"""The rollout engine inside the policy trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from policy_stage import stage, stage_run

from seqtune.models.forest import attention
from seqtune.models.load import load_model
from seqtune.report.run_folder import RunFolder
from seqtune.rollout.noise import seed_of
from seqtune.rollout.transformers import generate
from seqtune.training.policy import trainer

if TYPE_CHECKING:
    from pathlib import Path


def notices(tmp_path: Path, **rollout: Any) -> list[str]:
    told: list[Any] = []
    trainer(stage_run(tmp_path, stage(rollout=rollout), watch=told.append))
    return [event.text for event in told if hasattr(event, "text")]


@pytest.mark.parametrize(("filters", "said"), [({"top_p": 0.9}, "top_p=0.9"), ({"top_k": 5}, "top_k=5"), ({}, None)])
def test_a_filter_without_a_ratio_is_told_of(tmp_path: Path, filters: dict[str, Any], said: str | None) -> None:
    biased = [text for text in notices(tmp_path, **filters) if "a biased estimate" in text]
    assert [said in text for text in biased] == ([True] if said else [])


def test_completions_are_those_of_the_models_own_cache(tmp_path: Path) -> None:
    one = trainer(stage_run(tmp_path, stage()))
    prompts = [ids for ids in ([5, 6, 7], [9, 8]) for _ in range(4)]
    found, logps = one._generate_single_turn(prompts, None, {}, 4)
    model = one.accelerator.unwrap_model(one.model_wrapped)
    with attention(model, one.plain_attention):
        expected = generate(
            model,
            prompts,
            max_new_tokens=6,
            eos_token_id=one.eos_token_ids,
            pad_token_id=0,
            seeds=[seed_of(0, 0, prompt, completion) for prompt in range(2) for completion in range(4)],
            batch_size=3,
        )
    assert found == expected
    assert logps is None
    assert len({tuple(row) for row in found}) > 4


@pytest.mark.parametrize(
    "sure", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-5}], ids=lambda sure: next(iter(sure))
)
def test_the_sampler_is_told_how_to_draw(tmp_path: Path, sure: dict[str, Any]) -> None:
    """Each of the three can leave one token to draw: then all completions of a prompt are the same."""
    one = trainer(stage_run(tmp_path, stage(rollout=sure)))
    found, _ = one._generate_single_turn([[5, 6, 7]] * 4, None, {}, 4)
    assert len({tuple(row) for row in found}) == 1


def test_log_probs_are_of_the_distribution_that_was_drawn_from(tmp_path: Path) -> None:
    """At temperature 0.5 log π is that of the logits over 0.5, of the old policy and of the one that is trained."""
    train = {"max_steps": 2, "learning_rate": 1e-12}
    one = trainer(stage_run(tmp_path, stage(rollout={"temperature": 0.5, "updates": 2}, train=train)))
    one.train()
    assert [abs(row["policy/approx_kl"]) < 1e-9 for row in RunFolder(tmp_path).metrics()] == [True, True]
    (rows, _), model = one._buffered_inputs, load_model(one.run.stage.model)
    prompt, completion = (rows[f"{part}_ids"][0][rows[f"{part}_mask"][0].bool()] for part in ("prompt", "completion"))
    with torch.no_grad():
        logits = model(torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
    wanted = (logits / 0.5).log_softmax(-1).gather(1, completion[:, None])[:, 0]
    torch.testing.assert_close(rows["old_per_token_logps"][0][: len(completion)], wanted, rtol=1e-4, atol=1e-4)
