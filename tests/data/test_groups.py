"""Groups as pairs and as their best; groups gathered from columns, and from templates."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from datasets import Dataset

from seqtune.config.axes import DataSpec, TemplateMathSpec
from seqtune.data.groups import best, pairs
from seqtune.data.rows import WHERE
from seqtune.data.sources import load
from seqtune.errors import SeqtuneError

if TYPE_CHECKING:
    from pathlib import Path

ROWS: list[dict[str, Any]] = [
    {"prompt": "a", "completions": ["x", "y", "z", "w"], "scores": [0.5, 1.0, 0.0, 0.5], WHERE: "f:1"},
    {"prompt": "b", "completions": ["x", "y"], "scores": [1.0, 1.0], WHERE: "f:2"},
    {"prompt": "c", "completions": ["x", "x"], "scores": [1.0, 0.0], WHERE: "f:3"},
]


def found(how: Any) -> tuple[list[tuple[str, str]], int]:
    made, silent = pairs(Dataset.from_list(ROWS), how)
    assert set(made["prompt"]) == {"a"}
    assert set(made[WHERE]) == {"f:1"}
    return list(zip(made["chosen"], made["rejected"], strict=True)), silent


def test_the_best_and_the_worst_of_a_group_are_its_pair() -> None:
    """A tie, and two equal texts with different scores, are no pair."""
    assert found("best_worst") == ([("y", "z")], 2)


def test_all_pairs_are_those_with_different_scores() -> None:
    assert found("all") == ([("x", "z"), ("y", "x"), ("y", "z"), ("y", "w"), ("w", "z")], 2)


def test_no_pair_at_all_is_an_empty_set() -> None:
    made, silent = pairs(Dataset.from_list(ROWS[1:]), "all")
    assert (len(made), silent) == (0, 2)


def test_the_best_of_each_group() -> None:
    assert list(best(Dataset.from_list(ROWS))["completion"]) == ["y", "x", "x"]


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


COLUMNS = {
    "prompt": "question",
    "completions": ["gold", "small.text", "large.text"],
    "scores": [1, "small.right", "large.right"],
    "answer": "gold",
}
GOOD = {
    "question": "2 + 2?",
    "gold": "A: 4",
    "small": {"text": "A: 5", "right": False},
    "large": {"text": "four, A: 4", "right": True},
    "level": 1,
}


def test_a_group_is_gathered_from_columns_and_objects(tmp_path: Path) -> None:
    spec = DataSpec(path=str(write(tmp_path, GOOD)), format="groups", columns=COLUMNS, answer_pattern=r"A: (\d+)")
    (row,) = load(spec).train.to_list()
    assert row.pop(WHERE).endswith(":1")
    assert row == {
        "prompt": "2 + 2?",
        "completions": ["A: 4", "A: 5", "four, A: 4"],
        "scores": [1.0, 0.0, 1.0],
        "answer": "4",
        "level": 1,
    }


def test_a_column_of_that_very_name_comes_before_a_field_of_an_object(tmp_path: Path) -> None:
    path = write(tmp_path, {"a.b": "dotted", "a": {"b": "inside"}})
    (row,) = load(DataSpec(path=str(path), columns={"text": "a.b"})).train.to_list()
    assert row["text"] == "dotted"


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ({"small": {"right": False}}, "missing column: no column 'small.text'"),
        ({"small": None}, "missing column: no column 'small.text'"),
        ({"gold": None}, "missing column: column 'gold' is null"),
        ({"small": {"text": "A: 5", "right": "no"}}, "wrong type: scores is no list of finite numbers"),
        ({"small": {"text": " ", "right": False}}, "empty text: a completion is empty"),
    ],
)
def test_a_broken_group_is_told_with_its_line_or_counted(tmp_path: Path, broken: dict[str, Any], told: str) -> None:
    path = str(write(tmp_path, GOOD, {**GOOD, **broken}))
    spec = DataSpec(path=path, format="groups", columns=COLUMNS)
    with pytest.raises(SeqtuneError) as caught:
        load(spec)
    first = caught.value.problems[0]
    assert first.problem.startswith(told)
    assert first.where == f"{path}:2"
    kept = load(spec.model_copy(update={"on_error": "skip"}))
    assert len(kept.train) == 1
    assert kept.skipped == {told.partition(":")[0]: 1}


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"prompt": ["a", "b"]}, "'prompt' is one value, not a list to gather from columns"),
        ({"completions": ["a", "b"], "scores": ["a", 1]}, "'completions' and 'scores' are both read from column 'a'"),
    ],
)
def test_columns_that_cannot_be_gathered_are_refused(tmp_path: Path, columns: dict[str, Any], told: str) -> None:
    with pytest.raises(SeqtuneError, match=re.escape(told)):
        load(DataSpec(path=str(write(tmp_path, GOOD)), format="groups", columns=columns))


def test_a_conversation_gets_turns_of_the_assistant(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "hi"}]
    path = write(tmp_path, {"prompt": talk, "completions": ["yo", "no"], "scores": [True, False]})
    (row,) = load(DataSpec(path=str(path), format="groups")).train.to_list()
    assert row["completions"] == [[{"role": "assistant", "content": text}] for text in ("yo", "no")]
    assert row["scores"] == [1.0, 0.0]
    (same,) = load(DataSpec(path=str(path), format="groups", chat=True)).train.to_list()
    assert same["completions"] == row["completions"]


def test_template_groups_score_right_answers_and_no_others() -> None:
    spec = TemplateMathSpec(name="template_math", format="groups", size=200, eval_size=20)
    plain = spec.model_copy(update={"format": "prompt_completion"})
    examples, single = load(spec), load(plain)
    assert list(examples.train["prompt"]) == list(single.train["prompt"])
    assert list(examples.heldout["answer"]) == list(single.heldout["answer"])
    sizes = set()
    for row, worked in zip(examples.train, single.train["completion"], strict=True):
        assert row["completions"][0] == worked
        assert len(set(row["completions"])) == len(row["completions"])
        sizes.add(len(row["completions"]))
        for text, score in zip(row["completions"], row["scores"], strict=True):
            assert score == float(text.rpartition("#### ")[2] == row["answer"]), text
    assert sizes <= {3, 4}
    assert 4 in sizes
