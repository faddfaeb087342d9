"""What mixtures, orders of rows and rotary positions cannot be combined with, and the way out that is named."""

from __future__ import annotations

import pytest

from seqtune.config.reading import dump, load, read
from seqtune.errors import SeqtuneError
from seqtune_cli.compose import compose

MIXTURE = ["data=mixture", "data.sources=[{path: a.jsonl, weight: 3}, {path: b.jsonl, format: messages}]"]
ONLINE = [*MIXTURE, "packing=online_best_fit"]


def problem(*words: str, recipe: str = "sft_tiny") -> str:
    with pytest.raises(SeqtuneError) as error:
        read(compose(words, recipe))
    return str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        ONLINE,
        [*ONLINE, "data.stop=all_exhausted", "train.max_steps=null"],
        ["packing=dataset_decomposition", "packing.order.odds=p100"],
        ["packing.order={name: growlength, lengths: [512, 2048], fractions: [1, 3]}", "packing.on_overflow=split"],
        ["packing.order.name=token_budget", "packing.order.padded=true"],
        ["model.rope={name: yarn, factor: 4}"],
    ],
    ids=["mixture", "mixture that ends", "decomposition", "growlength", "token budget", "rope"],
)
def test_what_is_said_is_in_the_plan_and_is_read_back(words: list[str]) -> None:
    plan = read(compose(words, "sft_tiny"))
    assert load(dump(plan)) == plan


@pytest.mark.parametrize(
    ("words", "said", "hint"),
    [
        (MIXTURE, "packing 'best_fit' sees all documents", "packing=online_best_fit"),
        ([*ONLINE, "train.max_steps=null"], "has no epochs to train", "data.stop=all_exhausted"),
        ([*ONLINE, "packing.order.name=token_budget"], "chooses among all rows", "leave packing.order out"),
        (
            [*ONLINE, "data.stop=all_exhausted", "train.max_steps=null", "train.epochs=2"],
            "train.epochs=2 passes",
            "epochs says how often",
        ),
        (
            ["data=mixture", "data.sources=[{path: a, chat: true}]", "packing=online_best_fit"],
            "source 'a' of the format 'text' has none",
            "chat: false",
        ),
        (["packing.order.name=growlength"], "documents longer than they are an error", "packing.on_overflow=split"),
        (
            ["packing.order={name: growlength, lengths: [64, 128]}", "packing.on_overflow=split"],
            "are not those of packing.capacity=2048",
            "packing.capacity=128",
        ),
        (
            ["packing.order={name: growlength, fractions: [1, 2]}", "packing.on_overflow=split"],
            "2 shares for the 5 stages of rows of 128, 256, 512, 1024, 2048 tokens",
            "give each stage a share",
        ),
        (["packing=dataset_decomposition", "packing.shortest=100"], "shortest=100 is no power of two", ""),
        (["packing.order.name=growing"], "is not 'shuffle', 'group_by_length'", ""),
        (["packing.order={name: growlength, shortst: 3}"], "packing.order.shortst: not a field of packing.order", ""),
        (["packing.order={name: growlength, shortest: 0}"], "packing.order.shortest: 0 is below 2", ""),
        (["packing.order.shortest=64"], "says no name", ""),
        (["model.rope.name=pi"], "model.rope.factor: has to be given", "model.rope.factor=VALUE"),
        (["model.rope={name: pi, factor: 1}"], "model.rope.factor: 1 is not above 1", ""),
    ],
)
def test_what_contradicts_is_told_with_the_way_out(words: list[str], said: str, hint: str) -> None:
    told = problem(*words)
    assert said in told
    assert hint in told


def test_a_source_is_named_by_its_number() -> None:
    told = problem(
        "data=mixture", "data.sources=[{path: a}, {path: b, wight: 2, weight: 0}]", "packing=online_best_fit"
    )
    assert "data.sources.1.wight: not a field of data.sources.1 (2)\n  where: command line" in told
    assert "data.sources.1.weight: is not above 0" in told
    assert "is empty" not in told


def test_only_sft_trains_on_a_mixture() -> None:
    assert "a mixture is trained on as it is read" in problem(*MIXTURE, recipe="dpo_tiny")


def test_an_order_of_rows_needs_packed_rows() -> None:
    told = problem("packing.order.name=group_by_length", recipe="dpo_tiny")
    assert "packing.order.name: nothing reads it; objective 'dpo' packs no rows" in told


def test_a_later_stage_may_change_the_rotary_positions() -> None:
    plan = read(compose(["data.path=x.txt"], "context_extension_tiny"))
    assert [stage.model.rope is None for stage in plan.stages] == [True, False]
    assert "names another model" in problem(
        "data.path=x.txt", "stages.long.model.seed=1", recipe="context_extension_tiny"
    )
