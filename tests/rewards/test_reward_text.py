import re
import string
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from seqtune.rewards.exact import normalised
from seqtune.rewards.specs import Exact, Format

PAGE = Path(__file__).parents[2] / "docs" / "rewards.md"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("  The  Eiffel\tTower! ", "eiffel tower"),
        ("ＡＢＣ １２", "abc 12"),
        ("ﬁne", "fine"),
        ("1,000", "1000"),
        ("1,000,000.50", "1000000.50"),
        ("1,5", "1,5"),
        ("-5", "-5"),
        ("−5", "-5"),
        ("x = -.5", "x = -.5"),
        ("3:15 p.m.", "3:15 pm"),
        ("1/2", "1/2"),
        ("½", "1/2"),
        ("50%", "50%"),
        ("100 %", "100"),
        ("$5.", "5"),
        ("(5)", "5"),
        ("well-known", "wellknown"),
        ("A", "a"),
        ("the", "the"),
        ("An answer", "answer"),
        ("theatre", "theatre"),
        ("!?", ""),
        ("", ""),
    ],
)
def test_normalisation(text: str, wanted: str) -> None:
    assert normalised(text) == wanted


@given(st.lists(st.text(string.ascii_letters, min_size=1), min_size=1))
def test_case_spacing_and_a_full_stop_do_not_matter(words: list[str]) -> None:
    assert normalised("  ".join(words).upper() + ".") == normalised(" ".join(words))


@pytest.mark.parametrize(
    ("answer", "completion", "score"),
    [
        ("Eiffel Tower", "the eiffel tower.", 1),
        ("Eiffel Tower", "It is the Eiffel Tower", 0),
        ("Eiffel Tower", "I think so.\n#### The Eiffel Tower", 1),
        ("B", r"A or B? \boxed{B}", 1),
        ("A", "", 0),
        ("A", "the", 0),
        ("5", "-5", 0),
        ("1.5", "15", 0),
        ("1000", "1,000", 1),
        ("steps\n#### 12", "#### 12", 1),
        (12, "12", 1),
        ("!!", "12", None),
        ("", "12", None),
        (None, "12", None),
    ],
)
def test_exact(answer, completion: str, score: float | None) -> None:
    assert Exact().build()(["p"], [completion], answer=[answer]) == [score]


def test_format_matches_the_whole_completion_across_lines() -> None:
    reward = Format(pattern=r"<think>.*</think>\s*<answer>.+</answer>").build()
    completions = [
        "<think>a\nb</think>\n<answer>5</answer>",
        "so <think>a</think><answer>5</answer>",
        "<think>a</think><answer>5</answer> done",
        "",
    ]
    assert reward(["p"] * 4, completions, answer=["5"] * 4) == [1, 0, 0, 0]


def test_the_template_of_the_docs_wants_each_tag_once() -> None:
    """The pattern that docs/rewards.md gives for thinking and answering."""
    [pattern] = re.findall(r"pattern: '(<think>.*)'", PAGE.read_text(encoding="utf-8"))
    reward = Format(pattern=pattern).build()
    completions = {
        "<think>a\nb</think>\n<answer>5</answer>\n": 1,
        "<think></think><answer></answer>": 1,
        "<think>a</think><think>b</think><answer>5</answer>": 0,
        "<think>a<think>b</think><answer>5</answer>": 0,
        "<think>a</think><answer>5</answer><answer>6</answer>": 0,
        "<think>a</think></think><answer>5</answer>": 0,
        "<think>a</think> so <answer>5</answer>": 0,
        "<think><answer>4</answer></think><answer>5</answer>": 0,
        "<answer>5</answer>": 0,
    }
    assert dict(zip(completions, reward(["p"] * 9, [*completions]), strict=True)) == completions


def test_a_pattern_that_would_run_for_ever_does_not_match() -> None:
    reward = Format(pattern=r"(a|aa)+[bc]d?", timeout=0.2).build()
    started = time.monotonic()
    assert reward(["p"] * 3, ["a" * 60 + "bc", "aac", "b"], answer=["5"] * 3) == [0, 1, 0]
    assert 0.1 < time.monotonic() - started < 2


def test_a_broken_pattern_is_refused_when_the_recipe_is_read() -> None:
    with pytest.raises(ValidationError, match="not a regular expression: missing \\)"):
        Format(pattern="(")
