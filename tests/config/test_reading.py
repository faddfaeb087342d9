"""Composed values into plans: every problem at once, each with its path, its value, who set it and a way out."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import seqtune
from seqtune.config import axes, reading
from seqtune.config.plan import REGISTERED, Plan
from seqtune.config.reading import AXIS_SPECS, dump, load, read, registry
from seqtune.config.schema import recipe_schema
from seqtune.errors import Problem, SeqtuneError
from seqtune_cli import catalogue
from seqtune_cli.compose import compose

if TYPE_CHECKING:
    from seqtune.config.spec import Spec


def plan(*words: str, recipe: str = "sft_tiny") -> Plan:
    return read(compose(words, recipe))


def problems(*words: str, recipe: str = "sft_tiny") -> list[Problem]:
    with pytest.raises(SeqtuneError) as caught:
        plan(*words, recipe=recipe)
    return list(caught.value.problems)


def test_a_plan_survives_yaml() -> None:
    for recipe in ("sft_tiny", "gspo_qwen4b", "dpo_tiny", "reward_tiny", "quickstart"):
        found = plan(recipe=recipe)
        assert load(dump(found)) == found
    found = plan("data=gsm8k", "data.path=train.jsonl")  # the path is read instead of the group's name
    assert load(dump(found)) == found


def test_all_problems_are_told_together() -> None:
    told = problems(
        "objectiv.epsilon=1",
        "model=tinny",
        "train.seed=a",
        "train.batch_size=0",
        "data.size=1.5",
        "eval.k=4",
        "packing.on_overflow=trunc",
        "a=1,2",
        "hydra.run.dir=x",
    )
    assert [(p.problem.partition(":")[0], p.where) for p in told] == [
        ("model", "command line"),
        ("a", "command line"),
        ("hydra.run.dir", "command line"),
        ("objectiv.epsilon", "command line"),
        ("data.size", "command line"),
        ("packing.on_overflow", "command line"),
        ("train.batch_size", "command line"),
        ("train.seed", "command line"),
        ("eval.k", "command line"),
    ]
    assert all(p.problem.partition(": ")[2] for p in told)


@pytest.mark.parametrize(
    ("words", "problem", "hint"),
    [
        (["model.revision=1"], "model.revision: not a field of model 'tiny' (1)", "have: attention"),
        (["data.eval_size=-1"], "data.eval_size: -1 is below 0", "data.eval_size=0 at least"),
        (["eval.confidence=1"], "eval.confidence: 1 is not below 1", ""),
        (
            ["model.dtype=bf16"],
            "model.dtype: \"bf16\" is not 'auto', 'float32', 'bfloat16' or 'float16'",
            "did you mean",
        ),
        (["train.epochs=.inf"], 'train.epochs: ".inf" is not a number', ""),
        (["data.chat=1"], "data.chat: 1 is not true or false", ""),
        (["data.templates=add"], 'data.templates: "add" is not a list', "data.templates=[add]"),
        (["train=3"], "train: there is no train '3'", "have: full, lora, tiny"),
        (["reward=format"], "reward.pattern: has to be given", "reward.pattern=VALUE"),
        (["reward=format", "reward.pattern='('"], 'reward.pattern: "(" is refused: not a regular expression', ""),
        (["peft.name=lora"], "peft.name: 'lora' would keep the other values of the group 'full'", "peft=lora switches"),
        (["objective.name=gspoo"], "objective.name: unknown objective 'gspoo'", "did you mean 'gspo'?"),
        (["~data"], "data: the recipe chooses none", "choose one: data=NAME"),
        (["reward=null"], "reward: there is no reward 'null'", "have: code_exec"),
        (["objective=null"], "objective: there is no objective 'null'", "have: a_lol"),
        (["train.seed='3'"], 'train.seed: "3" is not a whole number', "train.seed=3 without quotes"),
        (
            ["reward=combined", "reward.parts={a:{name:formatt}}"],
            "reward.parts.a.name: unknown reward 'formatt'",
            "did you mean 'format'?",
        ),
        (
            ["reward=combined", "reward.parts={a:{name:exact,colum:x}}"],
            "reward.parts.a.colum: not a field of reward 'exact' (\"x\")",
            "",
        ),
        (
            ["reward=combined", "reward.parts={a:{name:combined,parts:{b:{name:length_budget,target:0}}}}"],
            "reward.parts.a.parts.b.target: 0 is below 1",
            "reward.parts.a.parts.b.target=1 at least",
        ),
        (
            ["reward=combined", "reward.parts={a:{name:format}}"],
            "reward.parts.a.pattern: has to be given",
            "reward.parts.a.pattern=VALUE",
        ),
        (
            ["reward=combined", "reward.parts={a:exact}"],
            'reward.parts.a: "exact" is refused: write {name: exact}',
            "",
        ),
        (
            ["reward=combined", "reward.parts={a:{name:exact}}", "reward.weights={b:2}"],
            "reward: weights name no part: b",
            "",
        ),
    ],
)
def test_problems_in_plain_words(words: list[str], problem: str, hint: str) -> None:
    (told,) = problems(*words)
    assert told.problem.startswith(problem)
    assert told.hint.startswith(hint) if hint else True
    assert told.where == "command line" or words in (["~data"], ["reward=format"])
    assert ("takes it away" in told.hint) == (words == ["reward=null"])
    assert "pydantic" not in str(told)


def test_a_value_left_over_from_the_recipe_is_named_with_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("defaults:\n  - gspo_tiny\n  - _self_\nobjective:\n  epsilon_low: 1.0e-3\n", encoding="utf-8")
    (told,) = problems("objective=sft", "packing=best_fit", recipe=str(file))
    assert told.problem == "objective.epsilon_low: not a field of objective 'sft' (0.001)"
    assert told.where == f"{file}:5"


def test_the_fields_of_a_group_that_is_mistyped_are_not_judged_by_the_group_it_would_replace() -> None:
    (told,) = problems("objective=ipo", "objective.tau=0.2")
    assert told.problem == "objective: there is no objective 'ipo'"


def test_a_value_inside_sections_that_nothing_reads_is_told_once() -> None:
    (told,) = problems("+rollout.tools.x.name=python")
    assert told.problem.startswith("rollout.tools.x.name: nothing reads it")


def test_a_tool_is_read_as_strictly_as_a_reward() -> None:
    (told,) = problems("rollout.tools={a:{name:python,timout:3}}", recipe="gspo_tiny")
    assert (told.problem, told.where) == ("rollout.tools.a.timout: not a field of tool 'python' (3)", "command line")
    assert told.hint.startswith("did you mean 'timeout'?")
    (told,) = problems("rollout.tools={a:{name:python},b:{name:python}}", recipe="gspo_tiny")
    assert told.problem == "rollout: tools 'a' and 'b' are both called by '<python>'"
    assert told.where == "command line"  # which said more of the section than the recipe did


def test_a_recipe_without_self_has_the_last_word_and_no_warning(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("defaults: [gspo_tiny]\ntrain: {max_steps: 3}\n", encoding="utf-8")
    assert plan(recipe=str(file)).stages[0].train.max_steps == 3


def test_a_variable_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("defaults: [gspo_tiny, _self_]\ntrain:\n  seed: ${oc.env:SEQTUNE_SEED}\n", encoding="utf-8")
    (told,) = problems(recipe=str(file))
    assert told.problem == "train.seed: Environment variable 'SEQTUNE_SEED' not found"
    monkeypatch.setenv("SEQTUNE_SEED", "3")
    (told,) = problems(recipe=str(file))
    assert (told.problem, told.where) == ('train.seed: "3" is not a whole number', f"{file}:3")
    assert told.hint.endswith("${oc.decode:${oc.env:NAME}}")
    file.write_text(file.read_text().replace("${oc.env:SEQTUNE_SEED}", "${oc.decode:${oc.env:SEQTUNE_SEED}}"))
    assert plan(recipe=str(file)).stages[0].train.seed == 3


def test_a_field_of_one_stage_is_pointed_to_that_stage() -> None:
    (told,) = problems("objective.epsilon_high=0.0005", recipe="quickstart")
    assert told.problem == "objective.epsilon_high: not a field of objective 'sft' (0.0005)"
    assert told.where == "command line (stage sft)"
    assert told.hint == "for the stage that has it: stages.gspo.objective.epsilon_high=0.0005"


def test_a_reward_of_ones_own_is_chosen_by_its_name() -> None:
    found = plan("reward.name=scores.py:short")
    assert type(found.stages[0].reward).__name__ == "Custom"


def test_a_group_that_leaves_its_name_open_takes_any() -> None:
    assert plan("reward=custom", "reward.name=exact").stages[0].reward == plan("reward=exact").stages[0].reward


def test_only_policy_stages_have_a_rollout() -> None:
    assert plan("rollout=transformers").stages[0].rollout is None
    assert plan(recipe="gspo_tiny").stages[0].rollout is not None


def test_a_damaged_plan_is_told() -> None:
    for text in ("", "a: [", "stages: 3\nrecipe: x", "recipe: x\nstages:\n- 3"):
        with pytest.raises(SeqtuneError, match=r"plan\.yaml is damaged"):
            load(text)
    text = dump(plan()).replace("seed: 0", "seed: -1", 1)
    with pytest.raises(SeqtuneError, match="is below 0"):
        load(text)


VALUES = st.sampled_from(
    ["1", "-1", "0.5", "nan", "null", "true", "abc", "[1]", "{a:1}", "???", "'${x}'", "''", "(", "1,2"]
)
KEYS = st.sampled_from(
    ["train", "train.seed", "data.columns.x", "stages.a.x", "objective.name", "a.b", "hydra.x", ".", ""]
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.builds("{}{}={}".format, st.sampled_from(["", "+", "++", "~"]), KEYS, VALUES), max_size=3))
def test_no_words_cause_anything_but_a_told_problem(words: list[str]) -> None:
    try:
        found = plan(*words)
    except SeqtuneError:
        return
    assert load(dump(found)) == found


def specs() -> list[type[Spec]]:
    """Every spec a plan can hold."""
    found = [spec for kinds in AXIS_SPECS.values() for spec in kinds]
    for axis in REGISTERED:
        found += [registry(axis).load(name) for name in registry(axis)]
    return found


@pytest.mark.parametrize("spec", specs(), ids=lambda spec: spec.__name__)
def test_every_field_is_documented(spec: type[Spec]) -> None:
    assert inspect.getdoc(spec)
    # The name of a registered spec is documented by the spec it names.
    assert [name for name, field in spec.model_fields.items() if not field.description and name != "name"] == []


def attributes_read() -> set[str]:
    """Names of all attributes that the library's code reads, the specs' own `build()` included."""
    root = Path(seqtune.__file__).parent
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in root.rglob("*.py")]
    return {
        node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def test_every_field_is_read_by_something() -> None:
    read_names = attributes_read()
    unread = {f"{spec.__name__}.{name}" for spec in specs() for name in spec.model_fields if name not in read_names}
    assert unread == set()


def _matches(value: Any, schema: dict[str, Any], whole: dict[str, Any]) -> bool:
    """As much of JSON Schema as recipes use."""
    if "$ref" in schema:
        return _matches(value, whole["$defs"][schema["$ref"].rpartition("/")[2]], whole)
    if "anyOf" in schema:
        return any(_matches(value, one, whole) for one in schema["anyOf"])
    if "const" in schema:
        return bool(value == schema["const"])
    if "enum" in schema:
        return value in schema["enum"]
    kind = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int}
    if schema.get("type") == "number":
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
    elif "type" in schema and (
        not isinstance(value, kind[schema["type"]]) or (schema["type"] == "integer" and isinstance(value, bool))
    ):
        return False
    if isinstance(value, dict):
        extra, known = schema.get("additionalProperties", True), schema.get("properties", {})
        rest = all(
            _matches(v, extra, whole) if isinstance(extra, dict) else extra for k, v in value.items() if k not in known
        )
        return rest and all(_matches(value[k], known[k], whole) for k in value.keys() & known.keys())
    if isinstance(value, list):
        return all(_matches(item, schema.get("items", {}), whole) for item in value)
    if isinstance(value, str):
        return re.search(schema.get("pattern", ""), value) is not None and len(value) >= schema.get("minLength", 0)
    if isinstance(value, int | float):
        return bool(
            value >= schema.get("minimum", value)
            and value <= schema.get("maximum", value)
            and (value > schema["exclusiveMinimum"] if "exclusiveMinimum" in schema else True)
            and (value < schema["exclusiveMaximum"] if "exclusiveMaximum" in schema else True)
        )
    return True


def test_the_schema_takes_the_shipped_recipes_and_refuses_mistakes() -> None:
    import yaml

    schema = recipe_schema()
    recipes = [yaml.safe_load(one.file.read_text(encoding="utf-8")) for one in catalogue.recipes().values()]
    assert len(recipes) >= 9
    assert [_matches(recipe, schema, schema) for recipe in recipes] == [True] * len(recipes)
    groups = [(axis, one) for axis, options in catalogue.groups().items() for one in options.values()]
    assert len(groups) >= 25
    for axis, one in groups:
        values = yaml.safe_load(one.file.read_text(encoding="utf-8"))
        assert _matches(values, schema["$defs"][axis], schema), (axis, one.name)
    for wrong in ({"objectiv": {}}, {"train": {"seed": -1}}, {"objective": {"name": "gspoo"}}, {"model": {"layer": 1}}):
        assert not _matches(wrong, schema, schema), wrong


def test_the_reader_imports_nothing_heavy() -> None:
    source = Path(reading.__file__).read_text(encoding="utf-8") + Path(axes.__file__).read_text(encoding="utf-8")
    assert not re.search(r"^\s*(import|from) (torch|transformers|hydra|trl)", source, re.MULTILINE)
