"""Generated problems: answers recomputed from the text, no problem twice, nothing but the seed decides."""

from __future__ import annotations

import re

import pytest

from seqtune.config.axes import TemplateMathSpec
from seqtune.data.template_math import TEMPLATES, problems
from seqtune.errors import SeqtuneError


def spec(**values: object) -> TemplateMathSpec:
    return TemplateMathSpec.model_validate({"name": "template_math", "size": 300, "eval_size": 100, **values})


def solve(question: str) -> int:
    """The answer from the wording alone, without the templates' own arithmetic."""
    numbers = [int(number) for number in re.findall(r"\d+", question)]
    if question.endswith("= ?"):
        return int(eval(question.removesuffix("= ?"), {"__builtins__": {}}))
    if "shares" in question:
        assert numbers[0] % numbers[1] == 0
        return numbers[0] // numbers[1]
    have = numbers.pop(0)
    if "boxes of" in question:
        have *= numbers.pop(0)
    for verb, sign in (("buys", 1), ("gives", -1), ("finds", 1)):  # in the order the templates tell them
        if verb in question:
            have += sign * numbers.pop(0)
    assert not numbers, question
    return have


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_the_answer_and_every_step_are_right(template: str) -> None:
    train, heldout = problems(spec(templates=(template,), size=150, eval_size=30))
    for row in train + heldout:
        question = row["prompt"].strip()
        *steps, last = row["completion"].split("\n")
        assert row["answer"] == str(solve(question))
        assert last == f"#### {row['answer']}"
        assert solve(question) >= 0
        assert max(int(number) for number in re.findall(r"\d+", question)) <= 20
        for step in steps:
            left, right = step.split(" = ")
            assert eval(left, {"__builtins__": {}}) == int(right)
        assert steps[-1].endswith(f" = {row['answer']}")


def test_no_problem_occurs_twice() -> None:
    train, heldout = problems(spec(size=2000, eval_size=500))
    prompts = [row["prompt"] for row in train + heldout]
    assert (len(train), len(heldout)) == (2000, 500)
    assert len(set(prompts)) == 2500
    assert len({row["completion"] for row in train}) > 500


def test_the_seed_decides_and_nothing_else() -> None:
    assert problems(spec()) == problems(spec())
    assert problems(spec()) != problems(spec(seed=1))
    assert problems(spec(size=50))[1] == problems(spec())[1], "the held-out set does not depend on the other's size"
    assert problems(spec(eval_size=0))[0] == problems(spec())[0]


def test_all_templates_are_used_unless_named() -> None:
    train, _ = problems(spec(templates=("add",), size=100, eval_size=10))
    assert all(re.fullmatch(r"\d+ \+ \d+ = \?\n", row["prompt"]) for row in train)
    train, _ = problems(spec(size=500))
    assert any("shares" in row["prompt"] for row in train)
    assert any("*" in row["prompt"] for row in train)


def test_careless_demonstrations() -> None:
    train, heldout = problems(spec(size=2000, careless=0.4, templates=("add_subtract", "chain")))
    wrong = [row for row in train if not row["completion"].endswith(f"#### {row['answer']}")]
    assert abs(len(wrong) / 2000 - 0.4) < 0.05  # 4.5 standard errors
    for row in wrong:
        *steps, last = row["completion"].split("\n")
        assert len(steps) == row["prompt"].count("+") + row["prompt"].count("-") - 1
        assert steps[-1].endswith(f" = {last.removeprefix('#### ')}")
        assert row["answer"] == str(solve(row["prompt"].strip()))
    assert all(row["completion"].endswith(f"#### {row['answer']}") for row in heldout)
    careful = problems(spec(size=2000, templates=("add_subtract", "chain")))
    assert [row["prompt"] for row in careful[0]] == [row["prompt"] for row in train], "the same problems"
    pairs, _ = problems(spec(format="preference", careless=0.9))
    assert all(pair["chosen"].endswith(str(solve(pair["prompt"].strip()))) for pair in pairs)


def test_too_many_problems_are_refused() -> None:
    """All 16 sums of two numbers up to 4 can be had, split between the sets, and not one more."""
    adding = {"templates": ("add",), "max_number": 4}
    found = {}
    for field, other in (("size", "eval_size"), ("eval_size", "size")):
        with pytest.raises(SeqtuneError, match=r"distinct (training|held-out) problems up to 4, not 17") as caught:
            problems(spec(**adding, **{field: 17, other: other == "size"}))
        assert caught.value.problems[0].where == f"data.{field}"
        found[field] = int(re.findall(r"give (\d+)", str(caught.value))[0])
    assert sum(found.values()) == 16
    train, heldout = problems(spec(**adding, **found))
    assert len({row["prompt"] for row in train + heldout}) == 16


def test_every_template_is_held_out_in_the_same_share() -> None:
    """A template with few problems must not be used up by the held-out set."""
    train, heldout = problems(spec(templates=("add", "buy_give"), size=1000, eval_size=400))
    sums = [sum("has" not in row["prompt"] for row in part) for part in (train, heldout)]
    assert sum(sums) > 300, "most of 20 x 20"
    assert 0.1 < sums[1] / sum(sums) < 0.3


def test_an_unknown_template_is_refused_with_a_suggestion() -> None:
    with pytest.raises(SeqtuneError, match="did you mean 'boxes'"):
        problems(spec(templates=("add", "boxe")))


def test_pairs_differ_only_in_the_last_result() -> None:
    answers = {row["prompt"]: row for part in problems(spec()) for row in part}
    for part in problems(spec(format="preference")):
        for row in part:
            right = answers[row["prompt"]]
            assert row["chosen"] == right["completion"]
            head, wrong = row["rejected"].rsplit("\n#### ", 1)
            assert wrong != right["answer"]
            assert int(wrong) >= 0
            assert f"{head.removesuffix(wrong)}{right['answer']}\n#### {right['answer']}" == row["chosen"]
    assert problems(spec(format="preference")) == problems(spec(format="preference"))
