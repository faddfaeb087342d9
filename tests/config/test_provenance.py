"""Who set a value: every kind of origin on a recipe of two stages, with the line it stands on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from seqtune.config.provenance import Origin, provenance
from seqtune.errors import SeqtuneError
from seqtune_cli.compose import compose

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = """\
defaults:
  - gspo_tiny
  - _self_
train:
  seed: 3
  batch_size: 16
stages:
  sft:
    - objective=sft
    - packing=best_fit
    - train.batch_size=4
  gspo: []
"""


@pytest.fixture
def recipe(workdir: Path) -> str:
    (workdir / "two.yaml").write_text(RECIPE, encoding="utf-8")
    return "two.yaml"


def test_a_mapping_adds_to_the_one_there_and_a_list_replaces_it(workdir: Path) -> None:
    text = "defaults: [sft_tiny, _self_]\ndata:\n  columns: {prompt: question}\n  templates: [a, b]\n"
    (workdir / "mine.yaml").write_text(text, encoding="utf-8")
    words = ["data.columns={answer: result}", "data.templates=[c]"]
    (stage,) = compose(words, "mine.yaml").stages
    assert stage.values["data"]["columns"] == {"prompt": "question", "answer": "result"}
    assert stage.values["data"]["templates"] == ["c"]
    assert str(stage.origin("data.columns.prompt")) == "mine.yaml:3"
    assert str(stage.origin("data.columns.answer")) == "command line"
    (stage,) = compose([*words, "data.columns={prompt: q}"], "mine.yaml").stages
    assert stage.values["data"]["columns"] == {"prompt": "q", "answer": "result"}
    assert str(stage.origin("data.columns.prompt")) == "command line"


def test_one_recipe_is_named() -> None:
    with pytest.raises(SeqtuneError, match="two recipes are named: sft_tiny and gspo_tiny"):
        compose(["recipe=sft_tiny"], "gspo_tiny")
    assert compose(["recipe=sft_tiny"], "sft_tiny").recipe == "sft_tiny"


def test_the_last_setter_is_named(recipe: str) -> None:
    sft, gspo = compose(["train.accumulate=2", "stages.sft.train.weight_decay=0.1"], recipe).stages
    assert (sft.name, gspo.name) == ("sft", "gspo")
    assert str(sft.origin("train.seed")) == "two.yaml:5"
    assert str(sft.origin("objective.name")) == "seqtune_recipes/objective/sft.yaml:2"
    assert str(gspo.origin("objective.name")) == "seqtune_recipes/objective/gspo.yaml:2"
    assert sft.origin("train.batch_size") == Origin("stage", "two.yaml", 11)
    assert gspo.origin("train.batch_size") == Origin("file", "two.yaml", 6)
    assert sft.origin("train.accumulate").kind == gspo.origin("train.accumulate").kind == "command line"
    assert sft.origin("train.weight_decay").kind == "command line"
    assert str(gspo.origin("train.weight_decay")) == "default"
    assert gspo.origin("rollout.max_new_tokens").file == "seqtune_recipes/gspo_tiny.yaml"


def test_words_for_one_stage_win_over_words_for_all(recipe: str) -> None:
    stages = compose(["stages.sft.train.seed=9", "train.seed=8", "train.batch_size=2"], recipe).stages
    assert [stage.values["train"]["seed"] for stage in stages] == [9, 8]
    assert [stage.values["train"]["batch_size"] for stage in stages] == [2, 2]


def test_a_stage_can_be_replaced_or_left_out(recipe: str) -> None:
    (only,) = compose(["~stages.sft"], recipe).stages
    assert only.name == "gspo"
    shorter = compose(["stages.sft=['objective=sft','packing=best_fit','train.batch_size=3']"], recipe).stages
    assert shorter[0].values["train"]["batch_size"] == 3
    assert shorter[0].origin("train.batch_size").kind == "stage"


def test_a_group_the_recipe_lacks_is_added() -> None:
    (stage,) = compose(["rollout=transformers"], "sft_tiny").stages
    assert stage.values["rollout"] == {"name": "transformers"}


def test_provenance_json_has_every_value_set(recipe: str) -> None:
    record = provenance(compose(["train.accumulate=2"], recipe))
    assert record["words"] == ["train.accumulate=2"]
    assert record["recipe"].endswith("/two.yaml")
    assert record["origins"]["sft"]["train.accumulate"] == "command line"
    assert record["origins"]["gspo"]["train.batch_size"] == "two.yaml:6"
    assert provenance(compose([], "sft_tiny"))["recipe"] == "sft_tiny"


def test_composing_leaves_no_hydra_behind() -> None:
    from hydra import version
    from hydra.core.global_hydra import GlobalHydra

    version.setbase("1.2")
    first = compose(["train.seed=1"], "sft_tiny")
    assert compose(["train.seed=1"], "sft_tiny") == first
    assert not GlobalHydra.instance().is_initialized()
    assert str(version.getbase()) == "1.2"
