"""The commands on small recipes, in this process: what they print and what they leave on disk."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from seqtune.errors import SeqtuneError
from seqtune_cli.evaluations import _model
from seqtune_cli.main import main

if TYPE_CHECKING:
    from pathlib import Path

TINY = ["model.layers=2", "model.hidden_size=32", "model.heads=2", "model.kv_heads=1", "model.intermediate_size=32"]
SMALL = [*TINY, "data.size=24", "data.eval_size=8", "train.max_steps=2", "train.batch_size=2", "eval.max_new_tokens=4"]

pytestmark = pytest.mark.usefixtures("workdir")


def run(*words: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    assert stopped.value.code == 0


def told(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """What a command prints as JSON."""
    run(*words, "--json")
    return json.loads(capsys.readouterr().out)


def test_show_tells_values_origins_formula_batch_and_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    (stage,) = told(capsys, "show", "recipe=gspo_tiny", *TINY, "train.seed=3", "rollout.updates=2")["stages"]
    assert stage["values"]["train.seed"] == {"value": 3, "origin": "command line"}
    assert stage["values"]["objective.epsilon_low"] == {"value": 3e-4, "origin": "default"}
    assert stage["formula"].startswith("L = (1/B)")
    assert stage["batch"] == {
        "completions a step": 32,
        "prompts a rollout": 8,
        "completions a rollout": 64,
        "new tokens a step, at most": 1024,
    }
    assert stage["parameters"]["all"] == stage["parameters"]["trained"] > 10_000
    (more,) = told(capsys, "show", "recipe=gspo_tiny", *TINY, "objective=dapo")["stages"]
    assert more["batch"]["completions sampled for it, at most"] == 10 * 32
    run("show", "recipe=gspo_tiny", *TINY)
    text = capsys.readouterr().out
    assert "seqtune_recipes/gspo_tiny.yaml:" in text
    assert "parameters, trained" in text


@pytest.mark.parametrize(
    ("words", "batch"),
    [
        ([], {"texts a step": 8}),
        (["objective.sampling=all"], {"groups a step": 8}),
        (["objective=slic"], {"groups a step": 8}),
    ],
)
def test_show_says_what_a_step_takes_of_groups(
    words: list[str], batch: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    (stage,) = told(capsys, "show", "recipe=offline_tiny", *TINY, *words)["stages"]
    assert stage["batch"] == batch


def test_show_of_a_model_that_is_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    (stage,) = told(capsys, "show", "recipe=sft_qwen4b")["stages"]
    assert stage["batch"]["tokens a step, at most"] == 2 * 8 * 4096
    assert set(stage["parameters"]) == {"unknown"}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("recipes", "gspo_tiny"),
        ("objectives", "gspo"),
        ("packings", "best_fit"),
        ("pefts", "lora"),
        ("parallel", "ddp"),
        ("rewards", "math_equiv"),
        ("formats", "preference"),
    ],
)
def test_list(kind: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = told(capsys, "list", kind)[kind]
    (row,) = (row for row in rows if row["name"] == name)
    assert row["origin"] == "seqtune"
    assert len(row["about"]) > 10
    run("list", kind)
    assert name in capsys.readouterr().out


def test_copy_edit_and_run(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("copy", "recipe=gspo_tiny", "mine.yaml")
    assert "seqtune train recipe=./mine.yaml" in capsys.readouterr().out
    file = workdir / "mine.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("max_steps: 10", "max_steps: 7"), encoding="utf-8")
    plan = told(capsys, "train", "recipe=./mine.yaml", "--dry-run")
    assert plan["stages"][0]["train"]["max_steps"] == 7
    run("train", "recipe=mine.yaml", "--dry-run")
    assert "7 steps" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["copy", "recipe=gspo_tiny", "mine.yaml"])
    assert "mine.yaml exists already" in capsys.readouterr().err


def test_a_local_recipe_brings_groups_of_its_own_folder(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workdir / "here" / "data").mkdir(parents=True)
    (workdir / "here" / "data" / "ours.yaml").write_text("name: template_math\nsize: 5\n", encoding="utf-8")
    (workdir / "here" / "it.yaml").write_text(
        "defaults:\n  - sft_tiny\n  - override data: ours\n  - _self_\n", encoding="utf-8"
    )
    plan = told(capsys, "train", "recipe=here/it.yaml", "--dry-run")
    assert plan["stages"][0]["data"]["size"] == 5


def test_schema_and_doctor(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("schema", "recipe.schema.json")
    schema = json.loads((workdir / "recipe.schema.json").read_text(encoding="utf-8"))
    assert schema["properties"]["objective"] == {"$ref": "#/$defs/objective"}
    capsys.readouterr()
    found = told(capsys, "doctor")
    assert {"sdpa", "eager"} <= {one["name"] for one in found["attention"] if one["usable"]}
    assert all(one["reason"] for one in found["attention"])
    run("doctor")
    assert "not usable" in capsys.readouterr().out


def test_a_model_to_evaluate_is_a_group_or_any_name() -> None:
    assert _model("tiny") == ["model=tiny"]
    assert _model("Qwen/Qwen3-4B") == ["model=pretrained", "model.name='Qwen/Qwen3-4B'"]
    assert _model("it's") == ["model=pretrained", "model.name='it\\'s'"]


@pytest.mark.slow
def test_train_evaluate_resume_pack_and_export(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("train", "recipe=sft_tiny", *SMALL, "train.seed=2", "out=it", "--quiet")
    capsys.readouterr()
    record = json.loads((workdir / "it" / "provenance.json").read_text(encoding="utf-8"))
    assert record["recipe"] == "sft_tiny"
    assert record["words"] == [*SMALL, "train.seed=2"]
    assert record["origins"]["sft"]["train.seed"] == "command line"

    found = told(capsys, "eval", "run=it", "eval.items=4")
    assert found["results"]["accuracy"]["n"] == 4
    assert (workdir / found["file"]).is_file()

    rows = [{"question": f"1 + {n}", "answer": f"it is #### {n + 1}"} for n in range(6)]
    (workdir / "test.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    # all of the file, although the group holds 200 rows out; what the run said about template_math is left behind
    found = told(capsys, "eval", "run=it", "data=gsm8k", "data.path=test.jsonl", "eval=perplexity")
    assert found["results"]["perplexity"]["n"] == 6
    with pytest.raises(SystemExit):
        main(["eval", "run=it", "data=gsm8k", "data.path=test.jsonl", "data.sice=1"])
    assert "data.sice: not a field of data" in capsys.readouterr().err

    run("train", "--resume", "it")
    assert "nothing to resume" in capsys.readouterr().out

    summary = told(capsys, "pack", "recipe=sft_tiny", *SMALL, "out=packed")
    assert summary["documents"] == 24
    run("train", "recipe=sft_tiny", *SMALL, "packing.path=packed", "out=again", "--quiet")
    capsys.readouterr()

    run("export", "run=it", "out=model")
    assert (workdir / "model" / "model.safetensors").is_file()
    capsys.readouterr()
    found = told(capsys, "eval", "model=./model", "data.eval_size=4", "eval.max_new_tokens=2")
    assert found["results"]["length"]["n"] == 4


def test_a_run_folder_without_a_plan_is_refused(workdir: Path) -> None:
    from seqtune_cli.runs import existing

    with pytest.raises(SeqtuneError, match=r"holds no plan\.yaml"):
        existing(workdir)
