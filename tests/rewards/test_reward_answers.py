import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqtune.rewards.answers import ascii_maths, marked_answer, plain_integer, plain_maths


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("3 + 4 = 7\n#### 7", "7"),
        ("#### 7\nSo we are done.", "7"),
        ("#### 6\nno:\n#### 7", "7"),
        ("####", ""),
        (r"\boxed{3}, no, \boxed{5}", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"first \boxed{3}, then \boxed{4", "3"),
        (r"\boxed{4", None),
        ("#### Step 2\nhence \\boxed{8}", "8"),
        ("\\boxed{8}\n#### 9", "9"),
        (r"#### \boxed{9}", "9"),
        (r"\boxed{\left\{ 5 \right.}", r"\left\{ 5 \right."),
        (r"\boxed{a\\{b}}", r"a\\{b}"),
        (r"\boxed{3}, {, \boxed{4", "3"),
        (r"}\boxed{3}", "3"),
        (r"\boxed{\boxed{4}}", "4"),
        ("<think>7?</think><answer>8</answer>", "8"),
        ("<answer>7</answer> no <answer> 8 </answer>", "8"),
        ("<answer>7</answer> no <answer>8", "7"),
        (r"<answer>so \boxed{9}</answer>", "9"),
        (r"\boxed{9} <answer>8</answer>", "8"),
        ("</answer><answer>", None),
        ("the answer is 7", None),
        ("", None),
    ],
)
def test_the_last_marker_holds_the_answer(text: str, answer: str | None) -> None:
    assert marked_answer(text) == answer


@given(st.text(), st.integers())
def test_whatever_stands_before_the_last_marker_does_not_matter(text: str, answer: int) -> None:
    assert marked_answer(f"{text}\n#### {answer}") == str(answer)
    assert marked_answer(f"{text}\n\\boxed{{{answer}}}") == str(answer)


@given(st.text(alphabet="#\\boxed{} 12\n"))
def test_no_text_is_too_broken_to_read(text: str) -> None:
    marked_answer(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("42", 42), ("-7", -7), ("+7", 7), ("007", 7), ("1,000", 1000), ("$ 12", 12), ("12.", 12), (" 5 ", 5)],
)
def test_plain_integers(text: str, value: int) -> None:
    assert plain_integer(text) == value


@pytest.mark.parametrize(
    "text", ["", "1,00", "1,0000", "1.5", "1/2", "5%", "5 apples", "x", "-", "1e3", "٣", "9" * 100]
)
def test_what_is_no_plain_integer(text: str) -> None:
    assert plain_integer(text) is None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("−5", "-5"),
        ("½", "(1/2)"),
        ("2½", "(2+1/2)"),
        ("-2½", "-(2+1/2)"),
        ("x^2 ½", "x^(2+1/2)"),
        ("2√3 + √(x+1)", "2\\sqrt{3} + \\sqrt{(x+1)}"),
        ("2·3", "2*3"),
        ("−∞", "-\\infty"),
        ("€5", "5"),
        ("x² + y¹²", "x^2 + y^{12}"),
        ("１２．５", "12.5"),
        ("é π", "é π"),
    ],
)
def test_unicode_spellings(text: str, wanted: str) -> None:
    assert ascii_maths(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (r"\$18", "18"),
        ("-$5", "$-5"),
        (r"1,\!000", "1,000"),
        (r"10\,000", "10000"),
        (r"10{,}000{,}000", "10000000"),
        (r"(1,\,2)", r"(1,\,2)"),
        (r"50\%", "50%"),
        ("2**3", "2^3"),
        ("(x)**(-1)", "(x)^(-1)"),
        ("**5**", "5"),
        ("is **5** or **6**", "is 5 or 6"),
        ("2 1/3", "(2+1/3)"),
        ("-2 1/3", "-(2+1/3)"),
        ("12 1/3x", "12 1/3x"),
        ("1/2 1/3", "1/2 1/3"),
        ("1.5e3", "1500"),
        ("-2E-3", "-0.002"),
        ("6.02e23", "6.02*10^{23}"),
        ("3e", "3e"),
        ("x2e5", "x2e5"),
        ("2e5.5", "2e5.5"),
    ],
)
def test_spellings_that_parsers_misread(text: str, wanted: str) -> None:
    assert plain_maths(text) == wanted


def test_many_open_boxes_take_no_time() -> None:
    started = time.monotonic()
    assert marked_answer(r"\boxed{" * 30_000) is None
    assert marked_answer("<answer>" * 30_000 + "{" * 30_000) is None
    assert time.monotonic() - started < 2
