import json
import os
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtune.errors import SeqtuneError
from seqtune.rewards.answers import plain_integer
from seqtune.rewards.math_worker import judge
from seqtune.rewards.specs import MathEquiv
from seqtune.sandbox import child as child_process


@pytest.fixture(scope="module")
def reward():
    return MathEquiv(timeout=10).build()


def scored(reward, completion: str, answer) -> float | None:
    return reward(["p"], [completion], answer=[answer])[0]


@pytest.mark.parametrize(
    ("answer", "completion", "score"),
    [
        pytest.param("42", "#### 42", 1, id="marked integer"),
        pytest.param("42", "#### 43", 0, id="wrong integer"),
        pytest.param("42", "#### 43\n42", 0, id="the marker counts, not the last number"),
        pytest.param("42", "first 41, then 42.", 1, id="last number"),
        pytest.param("7", "the answer is 7. There are 3 steps and 12 numbers", 1, id="after the word answer"),
        pytest.param("1000", r"\boxed{1,000}", 1, id="grouping in the completion"),
        pytest.param("1,000", "#### 1000", 1, id="grouping in the reference"),
        pytest.param("5", r"\boxed{3}, no: \boxed{5}", 1, id="two boxes, last right"),
        pytest.param("3", r"\boxed{3}, no: \boxed{5}", 0, id="two boxes, last wrong"),
        pytest.param("5", r"\boxed{5", 0, id="cut off inside the box"),
        pytest.param("5", "", 0, id="empty completion"),
        pytest.param("5", "####", 0, id="marker without an answer"),
        pytest.param("5", "no idea", 0, id="no number"),
        pytest.param(r"\frac{1}{2}", r"\boxed{0.5}", 1, id="fraction and decimal"),
        pytest.param("1/2", "#### 2/4", 1, id="unreduced fraction"),
        pytest.param(r"\frac{1}{2}", r"\boxed{2}", 0, id="not the last number of a bare LaTeX reference"),
        pytest.param("1/3", "0.333333", 1, id="decimals are compared to six places"),
        pytest.param("2.5", "#### 2½", 1, id="unicode fraction"),
        pytest.param("-5", "#### −5", 1, id="unicode minus"),
        pytest.param("5", "#### -5", 0, id="sign"),
        pytest.param("12", "#### １２", 1, id="full-width digits"),
        pytest.param("50", "#### 50%", 1, id="percent as written"),
        pytest.param("0.5", "so 50%", 1, id="percent as a fraction"),
        pytest.param("x+1", r"\boxed{1+x}", 1, id="expression"),
        pytest.param("$x^2$", "#### x²", 1, id="delimited reference"),
        pytest.param("[1,2)", r"\boxed{[1, 2)}", 1, id="interval"),
        pytest.param("(1,2)", r"\boxed{[1, 2)}", 0, id="another interval"),
        pytest.param(
            r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
            r"\boxed{\begin{pmatrix}1 & 2\\3 & 4\end{pmatrix}}",
            1,
            id="matrix",
        ),
        pytest.param("42", "#### 42 apples", 1, id="unit"),
        pytest.param("72", "He sold 48+24 = 72 clips.\n#### 72", 1, id="gsm8k"),
        pytest.param("1 + 2 = 3\n#### 3", "#### 3", 1, id="worked reference"),
        pytest.param(3, "#### 3", 1, id="reference is a number"),
        pytest.param("Paris", "5", None, id="reference is prose"),
        pytest.param("", "5", None, id="empty reference"),
        pytest.param(None, "5", None, id="no reference"),
    ],
)
def test_worked_cases(reward, answer, completion: str, score: float | None) -> None:
    assert scored(reward, completion, answer) == score


def test_rows_are_independent_of_their_order(reward) -> None:
    answers = ["5", "1/2", None, "7"]
    completions = ["#### 5", "#### 0.5", "#### 1", "#### 8"]
    straight = reward(["p"] * 4, completions, answer=answers)
    assert straight == [1, 1, None, 0]
    assert reward(["p"] * 4, completions[::-1], answer=answers[::-1]) == straight[::-1]


spelt = st.integers(-(10**6), 10**6).flatmap(
    lambda n: st.sampled_from([(n, str(n)), (n, f"{n:,}"), (n, f"{n}."), (n, f"{'-' * (n < 0)}{abs(n):06d}")])
)


@settings(deadline=None, max_examples=60)
@given(spelt, spelt)
def test_the_short_cut_for_integers_agrees_with_math_verify(one, other) -> None:
    for (value, text), (wanted, reference) in [(one, other), (one, one)]:
        assert plain_integer(text) == value
        question = {"reference": reference, "answer": text, "marked": True}
        assert judge(question) == (value == wanted)


def test_integers_do_not_start_the_child(monkeypatch) -> None:
    monkeypatch.setattr(child_process.subprocess, "Popen", lambda *a, **k: pytest.fail("the child was started"))
    rows = 20_000
    begin = time.perf_counter()
    values = MathEquiv().build()(["p"] * rows, ["2 + 3 = 5\n#### 5", "#### 6"] * (rows // 2), answer=["5"] * rows)
    assert sum(values) == rows / 2
    assert time.perf_counter() - begin < 5


def test_an_endless_computation_counts_as_wrong_and_the_next_row_is_scored() -> None:
    reward = MathEquiv(timeout=1).build()
    assert scored(reward, "#### 1/2", "0.5") == 1
    begin = time.perf_counter()
    assert reward(["p"] * 2, [r"\boxed{9^{9^{9^{9}}}}", "#### 0.50"], answer=["5", "1/2"]) == [0, 1]
    assert time.perf_counter() - begin < 15


def test_workers_compare_side_by_side_and_keep_their_places() -> None:
    reward = MathEquiv(timeout=2, workers=2).build()
    completions = [f"#### {n}/4" for n in range(1, 9)]
    assert reward(["p"] * 8, completions, answer=["0.25", "0.5"] * 4) == [1, 1, 0, 0, 0, 0, 0, 0]
    begin = time.perf_counter()
    endless = r"\boxed{9^{9^{9^{9}}}}"
    assert reward(["p"] * 2, [endless] * 2, answer=["1/2"] * 2) == [0, 0]
    assert time.perf_counter() - begin < 3.5  # one after the other take four


def test_a_reference_that_was_late_once_is_asked_for_again() -> None:
    reward = MathEquiv(timeout=2).build()
    calls: list[list[object]] = []
    ask = reward._pool.ask
    reward._pool.ask = lambda questions, seconds: calls.append(questions) or [None] * len(questions)
    assert scored(reward, "#### 0.5", "1/2") is None
    reward._pool.ask = ask
    assert scored(reward, "#### 0.5", "1/2") == 1


def test_a_killed_child_is_replaced(reward) -> None:
    assert scored(reward, "#### 1/2", "0.5") == 1
    child = reward._pool.children[0]._process
    child.kill()
    child.wait()
    assert scored(reward, "#### 1/2", "0.5") == 1


def test_it_works_outside_the_main_thread(reward) -> None:
    found: list[float | None] = []
    thread = threading.Thread(target=lambda: found.append(scored(reward, "#### 2/4", "1/2")))
    thread.start()
    thread.join()
    assert found == [1]


def test_a_discarded_reward_leaves_no_process_behind() -> None:
    reward = MathEquiv().build()
    assert scored(reward, "#### 1/2", "0.5") == 1
    child = reward._pool.children[0]._process
    os.kill(child.pid, 0)
    del reward
    assert child.poll() is not None


def test_a_child_that_cannot_start_is_reported(monkeypatch) -> None:
    monkeypatch.setattr(child_process.sys, "executable", "/bin/false")
    with pytest.raises(SeqtuneError, match="does not start") as caught:
        scored(MathEquiv().build(), "#### 1/2", "0.5")
    assert "math_worker" in caught.value.problems[0].hint


def test_data_without_answers_is_reported(reward) -> None:
    with pytest.raises(SeqtuneError, match="the column 'answer'") as caught:
        reward(["p"], ["#### 1"], solution=["1"])
    assert "solution" in caught.value.problems[0].hint


@pytest.mark.parametrize("marker", [pytest.param("A: ", marks=pytest.mark.slow), "#### "])
def test_real_solutions_are_judged_as_their_authors_did(reward, real_data, marker: str) -> None:
    """5,276 solutions of four models to GSM8K problems, labelled right or wrong; they end in `A: 18`."""
    answers, completions, labels = [], [], []
    for line in real_data("gsm8k_model_solutions.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for solution in (value for value in row.values() if isinstance(value, dict)):
            answers.append(row["ground_truth"].rpartition("A: ")[2])
            completions.append(solution["solution"].replace("\nA: ", f"\n{marker}"))
            labels.append(float(solution["is_correct"]))
    assert len(labels) > 5000
    assert reward(["p"] * len(labels), completions, answer=answers) == labels
