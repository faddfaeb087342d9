"""Length, repetition, overlap, lists and combinations by worked numbers, and each against its neighbour."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from seqtune.errors import SeqtuneError
from seqtune.rewards import specs
from seqtune.rewards.combined import combine
from seqtune.rewards.exact import exact, f1
from seqtune.rewards.ranking import discount, hits, items, list_ndcg, log_decay
from seqtune.rewards.score import score

short_text = st.text(alphabet="ab c", max_size=12)


def ids(*sizes: int) -> dict[str, list[list[int]]]:
    return {"completion_ids": [list(range(size)) for size in sizes]}


def run(spec, completions, **columns):
    return score(spec.build(), ["p"] * len(completions), completions, columns)


# Length


def test_soft_overlong() -> None:
    """L = 100, c = 20: 0 up to 80; 85 is a quarter of the way; at 100 and beyond -1."""
    found = run(specs.SoftOverlong(max_length=100, cache=20), ["x"] * 6, **ids(70, 80, 85, 95, 100, 101))
    assert found == [0, 0, -0.25, -0.75, -1, -1]


def test_a_cache_larger_than_the_length_is_refused() -> None:
    with pytest.raises(ValidationError, match="larger than max_length"):
        specs.SoftOverlong(max_length=10, cache=11)


def test_cosine_length() -> None:
    """Correct: 1 at length 0, 0.75 half way, 0.5 from L on. Wrong: -1, -0.75, -0.5."""
    found = run(
        specs.CosineLength(max_length=10, correct={"name": "exact"}),
        ["5"] * 4 + ["6"] * 4 + ["5"],
        answer=["5"] * 8 + [None],
        **ids(0, 5, 10, 20, 0, 5, 10, 20, 5),
    )
    assert found[:8] == pytest.approx([1, 0.75, 0.5, 0.5, -1, -0.75, -0.5, -0.5])
    assert found[8] is None


@given(st.integers(0, 50), st.integers(0, 50))
def test_right_falls_and_wrong_rises_with_length(first: int, second: int) -> None:
    first, second = sorted((first, second))
    spec = specs.CosineLength(max_length=40, correct={"name": "exact"})
    right = run(spec, ["5"] * 2, answer=["5"] * 2, **ids(first, second))
    wrong = run(spec, ["6"] * 2, answer=["5"] * 2, **ids(first, second))
    assert right[0] >= right[1] >= 0.5 > -0.5 >= wrong[1] >= wrong[0]


def test_length_budget() -> None:
    """target 10, α = 0.5: off by 5 costs 0.25. With a correctness: 1 · (1 - 0.5 · 5/10) = 0.75, and 0 stays 0."""
    plain = run(specs.LengthBudget(target=10, alpha=0.5), ["x"] * 3, **ids(10, 5, 30))
    assert plain == [0, -0.25, -1]
    spec = specs.LengthBudget(target=10, alpha=0.5, correct={"name": "exact"})
    assert run(spec, ["5", "5", "6", "5"], answer=["5", "5", "5", None], **ids(10, 5, 5, 5)) == [0.5, 0.75, 0, None]


def test_length_rewards_differ() -> None:
    """Swapping two of them would show: 5 tokens of at most 10, the answer right."""
    given = {"answer": ["5"], **ids(5)}
    found = [
        run(specs.CosineLength(max_length=10, correct={"name": "exact"}), ["5"], **given),
        run(specs.SoftOverlong(max_length=10, cache=8), ["5"], **given),
        run(specs.LengthBudget(target=10), ["5"], **given),
        run(specs.LengthBudget(target=10, alpha=0.2, correct={"name": "exact"}), ["5"], **given),
    ]
    assert found == [[pytest.approx(0.75)], [-0.375], [-0.5], [pytest.approx(0.9)]]


@pytest.mark.parametrize(("unit", "length"), [("tokens", 7), ("words", 2), ("characters", 9)])
def test_what_length_counts(unit: str, length: int) -> None:
    found = run(specs.LengthBudget(target=1, unit=unit), ["four five"], **ids(7))
    assert found == [-(length - 1)]


def test_tokens_have_to_be_given() -> None:
    with pytest.raises(SeqtuneError, match="without token ids") as caught:
        run(specs.SoftOverlong(max_length=10, cache=2), ["a"])
    assert "reward.unit=words" in caught.value.problems[0].hint


def test_a_column_may_have_the_name_of_a_field() -> None:
    columns = {"target": [1], "alpha": [9], "unit": ["words"], "max_length": [1], "pattern": ["x"], **ids(5)}
    assert run(specs.LengthBudget(target=10), ["5"], **columns) == [-0.5]
    assert run(specs.SoftOverlong(max_length=10, cache=8), ["5"], **columns) == [-0.375]
    assert run(specs.Format(pattern="5"), ["5"], **columns) == [1]


# Repetition


def test_repetition() -> None:
    """[5 5 5 5 5] has four bigrams, one of them new: (1 - 1/4) · -1."""
    spec = specs.Repetition(n=2)
    rows = [[5] * 5, [1, 2, 3], [1], [], [1, 2, 1, 2]]
    assert run(spec, ["x"] * 5, completion_ids=rows) == pytest.approx([-0.75, 0, 0, 0, -1 / 3])
    assert run(specs.Repetition(n=3), ["x"], completion_ids=[[1, 2, 1, 2]]) == [0]
    assert run(specs.Repetition(n=1, penalty=-2, unit="words"), ["a b  a\na"]) == [-1]


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 4))
def test_repetition_stays_between_the_penalty_and_nothing(row: list[int], n: int) -> None:
    [found] = run(specs.Repetition(n=n), ["x"], completion_ids=[row])
    assert -1 < found <= 0
    assert (found == 0) == (len({tuple(row[i : i + n]) for i in range(len(row) - n + 1)}) == max(len(row) - n + 1, 0))


# F1


def test_f1() -> None:
    """ "the cat sat" has cat and sat; the reference cat, on, mat: one shared, P = 1/2, R = 1/3, F1 = 2/5."""
    completions = ["the cat sat", "cat cat", "#### mat on cat", "", "dog"]
    found = run(specs.F1(), completions, answer=["a cat on the mat"] * 5)
    assert found == pytest.approx([0.4, 0.4, 1, 0, 0])
    assert run(specs.F1(), ["x", "x"], answer=[None, "!"]) == [None, None]


def test_f1_counts_words_as_often_as_both_have_them() -> None:
    assert run(specs.F1(), ["no no no"], answer=["no no yes"]) == pytest.approx([2 * 2 / 6])


@given(short_text, short_text)
def test_f1_is_symmetric_and_one_where_exact_is(left: str, right: str) -> None:
    [forward], [backward] = f1(["p"], [left], answer=[right]), f1(["p"], [right], answer=[left])
    if forward is not None and backward is not None:
        assert forward == backward
        assert 0 <= forward <= 1
        if exact(["p"], [left], answer=[right]) == [1]:
            assert forward == 1


# Lists


def test_ranked_lists_by_the_worked_example() -> None:
    """rel [[1,0,1],[0,1,0],[0,0,0]] with disc 1, 0.630930, 0.5 (arXiv 2510.20150)."""
    completions = ["a\nx\nb", "x\na\ny", "x\ny\nz"]
    columns = {"relevant": [["a", "b"]] * 3}
    spec = {"k": 3}

    def vectors(output: str):
        reward = specs.ListNdcg(output=output, **spec).build()
        return score(reward, ["p"] * 3, completions, columns, vectors=True)

    expected = [[1.5, 0.5, 0.5], [0.630930, 0.630930, 0], [0, 0, 0]]
    for found, wanted in zip(vectors("log_decay"), expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-6)
    assert vectors("exp_inf") == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    best = 1 + 1 / math.log2(3)
    assert run(specs.ListNdcg(**spec), completions, **columns) == pytest.approx(
        [1.5 / best, 0.630930 / best, 0], abs=1e-6
    )
    with pytest.raises(SeqtuneError, match="not a number"):
        run(specs.ListNdcg(output="exp_inf", **spec), completions, **columns)


def test_what_counts_as_an_item() -> None:
    assert items("1. The Matrix\n- Heat!\n\n2) Alien\n\n") == ["matrix", "heat", "", "alien"]
    assert items("12 Monkeys") == ["12 monkeys"]


def test_seen_and_named_items_do_not_count_and_rows_without_relevant_ones_are_not_scored() -> None:
    completions = ["a\na\nb"] * 4
    columns = {"relevant": ["a\nb", ["a", "b"], [], ["a"]], "seen": [None, ["a"], None, "a"]}
    found = list_ndcg(["p"] * 4, completions, columns, k=3, output="exp_inf", relevant="relevant")
    assert found == [[1, 0, 1], [0, 0, 1], None, None]
    with pytest.raises(SeqtuneError, match="column 'relevant'"):
        run(specs.ListNdcg(), ["a"])


@given(st.lists(st.integers(0, 1), min_size=1, max_size=8))
def test_gain_from_a_rank_on_falls_by_what_the_rank_earns(rel: list[int]) -> None:
    found = [*log_decay(rel), 0.0]
    assert len(found) == len(rel) + 1
    for rank, hit in enumerate(rel):
        assert found[rank] - found[rank + 1] == pytest.approx(hit * discount(rank))


@given(st.lists(st.sampled_from("abcd"), max_size=6), st.integers(1, 6))
def test_hits_are_as_many_as_ranks_and_each_item_once(listed: list[str], k: int) -> None:
    found = hits(listed, {"a", "b"}, set(), k)
    assert len(found) == k
    assert sum(found) == len({"a", "b"} & set(listed[:k]))


# Combinations


PARTS = {"right": [1.0, 1.0, 0.0, None], "form": [1.0, 0.0, 1.0, 1.0], "short": [-0.5, -0.5, 0.0, -1.0]}


@pytest.mark.parametrize(
    ("weights", "gates", "wanted"),
    [
        ({}, (), [1.5, 0.5, 1.0, 0.0]),
        ({"short": 2.0, "form": 0.5}, (), [0.5, 0.0, 0.5, -1.5]),
        ({}, ("form",), [0.5, 0.0, 0.0, -1.0]),
        ({}, ("right",), [0.5, -0.5, 0.0, None]),
        ({}, ("right", "form", "short"), [-0.5, 0.0, 0.0, None]),
    ],
    ids=["sum", "weighted", "gated", "gate that does not score", "product"],
)
def test_combinations(weights: dict, gates: tuple, wanted: list) -> None:
    """Row 0: 1 + 1 - 0.5 = 1.5; weighted 1 + 0.5 - 1 = 0.5; gated by form 1 · (1 - 0.5); product 1 · 1 · -0.5."""
    assert combine(PARTS, weights=weights, gates=gates) == wanted


def test_nothing_scored_is_no_score() -> None:
    assert combine({"a": [None], "b": [None]}, weights={}, gates=()) == [None]


def test_a_combined_reward_tells_its_parts() -> None:
    spec = specs.Combined(
        parts={"form": {"name": "format", "pattern": "#### .*"}, "right": {"name": "exact"}}, gates=["form"]
    )
    reward = spec.build()
    completions, answers = ["#### 5", "5", "#### 6"], ["5", "5", "5"]
    assert reward.parts(["p"] * 3, completions, answer=answers) == {"form": [1, 0, 1], "right": [1, 1, 0]}
    assert score(reward, ["p"] * 3, completions, {"answer": answers}) == [1, 0, 0]
    assert spec.model_dump()["parts"]["form"] == {"name": "format", "pattern": "#### .*", "timeout": 5.0}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"parts": {}}, "at least 1"),
        ({"parts": {"a": {"name": "exakt"}}}, "did you mean 'exact'"),
        ({"parts": {"a": {}}}, "write {name: NAME}"),
        ({"parts": {"a": {"name": "exact", "timeout": 1}}}, "reward 'exact': timeout"),
        ({"parts": {"a": {"name": "exact"}}, "weights": {"b": 1.0}}, "name no part: b"),
        ({"parts": {"a": {"name": "exact"}}, "gates": ["b"]}, "name no part: b"),
        ({"parts": {"a": {"name": "exact"}}, "weights": {"a": 1.0}, "gates": ["a"]}, "a gate has no weight"),
    ],
)
def test_a_combination_that_cannot_be_is_refused(fields: dict, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        specs.Combined(**fields)


def test_a_part_that_gives_several_numbers_is_named() -> None:
    spec = specs.Combined(parts={"list": {"name": "list_ndcg", "output": "exp_inf", "k": 2}})
    with pytest.raises(SeqtuneError, match="'list' returned"):
        run(spec, ["a"], relevant=[["a"]])
