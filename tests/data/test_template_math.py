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
    assert problems(spec(size=50))[1] == problems(spec(size=300))[1], "held-out problems do not depend on data.size"


def test_all_templates_are_used_unless_named() -> None:
    train, _ = problems(spec(templates=("add",), size=100))
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
    with pytest.raises(
        SeqtuneError, match=r"give 16 distinct problems up to 4; data.size \+ data.eval_size asks for 17"
    ):
        problems(spec(templates=("add",), max_number=4, size=10, eval_size=7))
    train, heldout = problems(spec(templates=("add",), max_number=4, size=10, eval_size=6))
    assert len(train) + len(heldout) == 16


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
