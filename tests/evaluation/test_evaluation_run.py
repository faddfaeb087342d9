"""The files an evaluation leaves, and the words of the command line that ask for one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from seqtune.config.reading import read
from seqtune.errors import SeqtuneError
from seqtune.evaluation.run import evaluate_stage
from seqtune.models.load import load_model, load_tokenizer
from seqtune_cli.compose import compose

if TYPE_CHECKING:
    from pathlib import Path

    from seqtune.config.plan import Plan

WORDS = ["model.layers=1", "model.hidden_size=32", "data.size=40", "eval.max_new_tokens=4"]


def plan_of(recipe: str, *words: str) -> Plan:
    return read(compose([*WORDS, *words], recipe))


def evaluated(plan: Plan, into: Path, **settings: Any) -> tuple[Any, Path]:
    stage = plan.stages[-1]
    return evaluate_stage(plan, stage, load_model(stage.model), load_tokenizer(stage.model), into=into, **settings)


def test_two_files_say_what_was_measured_on_what(tmp_path: Path) -> None:
    plan = plan_of("gspo_tiny", "data.eval_size=6")
    found, file = evaluated(plan, tmp_path / "eval", name="untrained", label="untrained")
    assert file == tmp_path / "eval" / "untrained.json"
    record = json.loads(file.read_text())
    assert record["label"] == "untrained"
    assert record["stage"] == "gspo"
    assert record["examples"] == 6
    assert record["eval"]["max_new_tokens"] == 4
    assert record["data"]["name"] == "template_math"
    assert record["reward"] == {"name": "format", "pattern": "[ -~].*", "timeout": 5.0}
    assert record["metrics"] == found.results()
    items = [json.loads(line) for line in (tmp_path / "eval" / "untrained.items.jsonl").read_text().splitlines()]
    assert items == found.items
    assert items[0]["where"] == "template_math:held-out 1"


def test_the_whole_file_or_what_is_held_out(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i}+1=", "answer": i + 1}) + "\n" for i in range(10)))
    words = [word for word in WORDS if not word.startswith("data.")]
    plan = read(compose([*words, "data=prompt_answer", f"data.path={data}", "data.eval_size=3"], "gspo_tiny"))
    heldout, all_but = (
        {item["prompt"] for item in evaluated(plan, tmp_path, whole=whole)[0].items} for whole in (False, True)
    )
    assert (len(heldout), len(all_but)) == (3, 7)
    assert not heldout & all_but


def test_a_stage_without_reward_takes_the_one_of_another_stage(tmp_path: Path) -> None:
    plan = plan_of("gspo_tiny", "data.eval_size=2")
    stage = plan.stages[0].model_copy(update={"reward": None})
    found, _ = evaluate_stage(
        plan, stage, load_model(stage.model), load_tokenizer(stage.model), into=tmp_path, name="x"
    )
    assert "accuracy" in found.metrics
    with pytest.raises(SeqtuneError, match="there is no reward"):
        evaluated(plan.model_copy(update={"stages": (stage,)}), tmp_path)


def test_names_of_files_never_collide(tmp_path: Path) -> None:
    plan = plan_of("gspo_tiny", "data.eval_size=2", "eval=perplexity")
    files = {evaluated(plan, tmp_path)[1] for _ in range(3)}
    assert len(files) == 3
    assert all(file.name.startswith("perplexity-20") for file in files)
    assert json.loads(files.pop().read_text())["reward"] is None
