"""Every shipped recipe, found by glob: its header, its plan, its override, its dry run, its group files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest
import yaml
from shipped_recipes import FIELDS, Recipe

import golden
import seqtune_recipes
from seqtune.config.plan import REGISTERED
from seqtune.config.reading import AXIS_SPECS, load, read, registry
from seqtune.errors import SeqtuneError
from seqtune_cli.compose import compose
from seqtune_cli.main import main

if TYPE_CHECKING:
    from seqtune.config.spec import Spec

FOLDER = Path(seqtune_recipes.__file__).parent
GROUP_FILES = sorted(FOLDER.glob("*/*.yaml"))
each_recipe = pytest.mark.parametrize("recipe", golden.RECIPES, ids=lambda recipe: recipe.name)


def test_the_glob_finds_them_all() -> None:
    assert len(golden.RECIPES) >= 10
    assert len(GROUP_FILES) >= 30
    assert {file.stem for file in golden.FOLDER.glob("*.yaml")} == {recipe.name for recipe in golden.RECIPES}


@each_recipe
def test_header_says_what_a_user_needs(recipe: Recipe) -> None:
    assert tuple(recipe.header) == FIELDS
    assert all(recipe.header.values())
    launched = f"recipe={recipe.name}" in recipe.header["Launch"].split()
    assert launched or recipe.header["Launch"].startswith("seqtune eval model=")


@each_recipe
def test_plan_is_the_golden_one(recipe: Recipe) -> None:
    plan = golden.plan_of(recipe)
    expected = (golden.FOLDER / f"{recipe.name}.yaml").read_text(encoding="utf-8")
    assert plan == expected, "the plan has changed: `make golden`, then read the diff"


@each_recipe
def test_golden_plan_reads_back_into_itself(recipe: Recipe) -> None:
    plan = read(compose(recipe.words, recipe.name))
    assert load((golden.FOLDER / f"{recipe.name}.yaml").read_text(encoding="utf-8")) == plan


@each_recipe
def test_override_of_the_header_changes_the_plan(recipe: Recipe) -> None:
    changed = read(compose([*recipe.words, *recipe.override], recipe.name))
    assert changed != read(compose(recipe.words, recipe.name))


@each_recipe
def test_dry_run(recipe: Recipe, capsys: pytest.CaptureFixture[str], workdir: Path) -> None:
    plan = read(compose(recipe.words, recipe.name))
    with pytest.raises(SystemExit) as exit:
        main(["train", f"recipe={recipe.name}", *recipe.words, "--dry-run"])
    assert exit.value.code == 0
    assert plan.stages[-1].objective.name in capsys.readouterr().out
    assert not list(workdir.iterdir()), "a dry run writes nothing"


@pytest.mark.parametrize("file", GROUP_FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_group_file_sets_fields_of_its_spec_and_nothing_it_would_have_anyway(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.startswith("# "), "the first line says what it is, for `seqtune list` and completion"
    axis, values = file.parent.name, yaml.safe_load(text)
    name = values.get("name")
    if name == "???":  # the user gives the name, and with it decides which fields there are
        assert set(values) == {"name"}
        return
    kinds = (registry(axis).load(name),) if axis in REGISTERED else AXIS_SPECS[axis]
    spec = next((kind for kind in kinds if "name" in values and name in _names(kind)), kinds[0])
    unknown = set(values) - set(spec.model_fields)
    assert not unknown
    repeated = {key for key, value in values.items() if key != "name" and spec.model_fields[key].default == value}
    assert not repeated, "the spec's default says so already"


def _names(kind: type[Spec]) -> tuple[object, ...]:
    """The names a spec is for, where its `name` is one of a few."""
    return get_args(kind.model_fields["name"].annotation)


def test_every_recipe_of_a_big_model_trains_all_weights_with_the_words_in_its_header() -> None:
    big = [recipe for recipe in golden.RECIPES if recipe.name.endswith("_qwen4b")]
    assert len(big) == 4
    for recipe in big:
        words = [w.strip(",.;") for w in recipe.header["Hardware and memory"].split() if "=" in w]
        plan, adapters = (read(compose([*recipe.words, *more], recipe.name)) for more in (words, []))
        assert plan.stages[0].peft.name == "full"
        assert plan.stages[0].parallel.name == "fsdp2"
        assert plan.stages[0].train.learning_rate < adapters.stages[0].train.learning_rate


@pytest.mark.parametrize("recipe", ["grpo_qwen4b", "gspo_qwen4b"])
def test_vllm_is_one_word(recipe: str) -> None:
    plan = read(compose(["rollout=vllm"], recipe))
    assert plan.stages[0].rollout is not None
    assert plan.stages[0].rollout.name == "vllm"


def test_sft_tiny_reads_gsm8k_from_a_file() -> None:
    data = read(compose(["data=gsm8k", "data.path=x.jsonl"], "sft_tiny")).stages[0].data
    assert (data.path, data.format) == ("x.jsonl", "prompt_completion")  # type: ignore[union-attr]
    assert data.columns == {"prompt": "question", "completion": "answer", "answer": "answer"}  # type: ignore[union-attr]


@pytest.mark.parametrize(("recipe", "group"), [("sft_tiny", "prompt_completion"), ("dpo_tiny", "preference")])
def test_a_file_alone_is_told_which_group_reads_it(recipe: str, group: str) -> None:
    with pytest.raises(SeqtuneError) as error:
        read(compose(["data.path=x.jsonl"], recipe))
    assert [problem.hint for problem in error.value.problems] == [f"for data of your own: data={group} data.path=FILE"]
    assert read(compose([f"data={group}", "data.path=x.jsonl"], recipe))
