"""The rollout engine inside the policy trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from policy_stage import stage, stage_run

from seqtune.models.forest import attention
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
