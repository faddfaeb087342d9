import asyncio
import fractions

import numpy as np
import pytest
import torch

from seqtune.errors import SeqtuneError
from seqtune.rewards import REWARDS
from seqtune.rewards.score import score

PROMPTS = ["first question", "second question", "third question"]
COMPLETIONS = ["a", "b", "c"]


def check(returned, **columns):
    def given_back(prompts, completions, **rest):
        return returned

    return score(given_back, PROMPTS, COMPLETIONS, columns)


@pytest.mark.parametrize(
    "returned",
    [
        [1, 0.5, None],
        (True, 0.5, None),
        [np.float32(1), np.float64(0.5), None],
        [torch.tensor(1.0), torch.tensor([0.5]), None],
        [fractions.Fraction(1), fractions.Fraction(1, 2), None],
    ],
)
def test_numbers_of_every_kind_become_floats(returned) -> None:
    values = check(returned)
    assert values == [1.0, 0.5, None]
    assert all(type(value) is float for value in values[:2])


@pytest.mark.parametrize("returned", [np.array([1, 0, 2]), torch.tensor([1.0, 0.0, 2.0])])
def test_arrays_are_lists(returned) -> None:
    assert check(returned) == [1, 0, 2]


@pytest.mark.parametrize(
    ("returned", "problem", "row"),
    [
        ([1, float("nan"), 0], "returned nan", "row 1, prompt 'second question'"),
        ([1, 0, float("-inf")], "returned -inf", "row 2, prompt 'third question'"),
        (["1", 0, 0], "returned '1', which is not a number", "row 0, prompt 'first question'"),
        ([0, 0, [1]], "returned [1], which is not a number", "row 2"),
        ([0, 1j, 0], "which is not a number", "row 1"),
        ([10**400, 0, 0], "returned inf", "row 0"),
        ([0, torch.ones(2, 2), 0], "which is not a number", "row 1"),
        ([0, 0, np.ones((2, 2))], "which is not a number", "row 2"),
        ([0, "x" * 10_000, 0], "xxx…, which is not a number", "row 1"),
        ([1, 0], "returned 2 values for 3 completions", "row 2, prompt 'third question'"),
        ([1, 0, 0, 1], "returned 4 values for 3 completions", "row 2"),
        (1.0, "returned float for 3 completions", ""),
        (None, "returned NoneType for 3 completions", ""),
        ({0: 1, 1: 2, 2: 3}, "returned dict for 3 completions", ""),
    ],
)
def test_what_is_not_one_finite_number_a_row_is_refused_with_the_row(returned, problem: str, row: str) -> None:
    with pytest.raises(SeqtuneError) as caught:
        check(returned)
    found = caught.value.problems[0]
    assert problem in found.problem
    assert "'given_back'" in found.problem
    assert row in found.where


def test_a_reward_that_raises_names_the_row_it_raises_on() -> None:
    def ratio(prompts, completions, size):
        return [1 / value for value in size]

    with pytest.raises(SeqtuneError, match="'ratio' raised ZeroDivisionError: division by zero") as caught:
        score(ratio, PROMPTS, COMPLETIONS, {"size": [1, 2, 0]})
    assert caught.value.problems[0].where == "row 2, prompt 'third question'"
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


class Shy(Exception):
    def __str__(self) -> str:
        raise ValueError("no")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SystemExit(0), "raised SystemExit: 0"),
        (asyncio.CancelledError(), "raised CancelledError"),
        (Shy(), "raised Shy: (cannot be shown)"),
        (ValueError("x" * 10_000), "xxx…"),
    ],
)
def test_whatever_a_reward_raises_is_told(error: BaseException, said: str) -> None:
    def raising(prompts, completions):
        raise error

    with pytest.raises(SeqtuneError) as caught:
        score(raising, PROMPTS, COMPLETIONS, {})
    assert said in caught.value.problems[0].problem
    assert len(str(caught.value)) < 600


def test_ctrl_c_is_no_error_of_the_reward() -> None:
    def stopped(prompts, completions):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(stopped, PROMPTS, COMPLETIONS, {})


def test_a_reward_that_raises_on_the_batch_only_says_so() -> None:
    def picky(prompts, completions):
        if len(completions) > 1:
            raise ValueError("one at a time")
        return [1.0]

    with pytest.raises(SeqtuneError, match="one at a time") as caught:
        score(picky, PROMPTS, COMPLETIONS, {}, name="mine.py:picky")
    assert caught.value.problems[0].where == "the batch as a whole"
    assert "'mine.py:picky'" in str(caught.value)


def test_a_long_prompt_is_cut() -> None:
    with pytest.raises(SeqtuneError) as caught:
        score(lambda prompts, completions: [float("nan")], ["x" * 500], ["a"], {})
    assert len(caught.value.problems[0].where) < 120


def test_a_mendable_error_of_the_reward_passes_through() -> None:
    exact = REWARDS.load("exact")().build()
    with pytest.raises(SeqtuneError, match="column 'answer'"):
        score(exact, PROMPTS, COMPLETIONS, {})


def test_the_reward_cannot_change_the_batch() -> None:
    def emptying(prompts, completions, answer):
        values = [0.0 for _ in completions]
        prompts.clear(), completions.clear(), answer.clear()
        return values

    answers = ["1", "2", "3"]
    assert score(emptying, PROMPTS, COMPLETIONS, {"answer": answers}) == [0, 0, 0]
    assert len(answers) == len(PROMPTS) == 3


FIELDS = {
    "format": {"pattern": r".*\d"},
    "cosine_length": {"max_length": 10},
    "soft_overlong": {"max_length": 3, "cache": 2},
    "length_budget": {"target": 2},
    "combined": {
        "parts": {"right": {"name": "exact"}, "short": {"name": "soft_overlong", "max_length": 3, "cache": 2}}
    },
}
NEEDS_MODEL = {"reward_model"}  # in test_reward_model.py
WANTED = {  # of "#### 5", "", "what ☃?"; tokens [1, 1, 1, 1], [2], [3, 4]
    "code_exec": [1, 0, 0],
    "list_ndcg": [0, 0, 0],
    "cosine_length": [0.5 + 0.25 * (1 + 0.30901699437494745), -0.5 - 0.25 * (1 + 0.9510565162951535), -0.952254],
    "soft_overlong": [-1, 0, -0.5],
    "length_budget": [-1, -0.5, 0],
    "repetition": [-0.5, 0, 0],
    "combined": [0, 0, -0.5],
}


@pytest.mark.parametrize("name", sorted(set(REWARDS) - NEEDS_MODEL))
def test_every_registered_reward_is_deterministic_and_ignores_the_order_of_rows(name: str) -> None:
    reward = REWARDS.load(name)(**FIELDS.get(name, {})).build()
    completions = ["#### 5", "", "what \N{SNOWMAN}?", "#### 6"]
    columns = {
        "answer": ["5", "5", "5", None],
        "level": [1, 2, 3, 4],
        "tests": ["assert True", "assert False", "assert True", None],
        "relevant": [["a"], ["b"], ["c"], None],
        "completion_ids": [[1, 1, 1, 1], [2], [3, 4], [5]],
    }
    straight = score(reward, ["p"] * 4, completions, columns)
    backwards = score(reward, ["p"] * 4, completions[::-1], {key: values[::-1] for key, values in columns.items()})
    assert backwards[::-1] == straight == score(reward, ["p"] * 4, completions, columns)
    assert straight[:3] == pytest.approx(WANTED.get(name, [1, 0, 0]), abs=1e-6)


# Several numbers a completion


def test_several_numbers_a_completion_are_for_those_who_ask() -> None:
    def ranks(prompts, completions):
        return [[1, 0.5], None, np.array([1.0, 2.0, 3.0])]

    assert score(ranks, PROMPTS, COMPLETIONS, {}, vectors=True) == [[1, 0.5], None, [1, 2, 3]]
    with pytest.raises(SeqtuneError, match=r"returned \[1, 0.5\], which is not a number") as caught:
        score(ranks, PROMPTS, COMPLETIONS, {})
    assert "one number" in caught.value.problems[0].hint


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([], "a number is missing"),
        ([1, None], "a number is missing"),
        ([1, float("nan")], "returned nan"),
        ([[1]], "not a number"),
        (["1"], "not a number"),
    ],
)
def test_a_list_of_numbers_is_checked_with_its_row(value, problem: str) -> None:
    with pytest.raises(SeqtuneError, match=problem) as caught:
        score(lambda prompts, completions: [1.0, value, 0.0], PROMPTS, COMPLETIONS, {}, vectors=True)
    assert "row 1" in caught.value.problems[0].where


def test_a_batch_of_vectors_may_be_one_array() -> None:
    found = score(lambda prompts, completions: np.eye(3), PROMPTS, COMPLETIONS, {}, vectors=True)
    assert found == np.eye(3).tolist()


# Coroutines


async def slowly(prompts, completions):
    await asyncio.sleep(0.01)
    return [float(len(one)) for one in completions]


def test_a_coroutine_is_awaited() -> None:
    assert score(slowly, PROMPTS, COMPLETIONS, {}) == [1, 1, 1]


def test_a_coroutine_is_awaited_where_a_loop_runs_already() -> None:
    async def notebook():
        return score(slowly, PROMPTS, COMPLETIONS, {})

    assert asyncio.run(notebook()) == [1, 1, 1]


def test_a_coroutine_that_raises_names_the_row() -> None:
    async def ratio(prompts, completions, size):
        return [1 / value for value in size]

    with pytest.raises(SeqtuneError, match="ZeroDivisionError") as caught:
        score(ratio, PROMPTS, COMPLETIONS, {"size": [1, 0, 1]})
    assert "row 1" in caught.value.problems[0].where
