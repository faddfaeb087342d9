"""What makes a row good in its format: every fault with its reason, every fill-in with its result."""

from __future__ import annotations

from typing import Any

import pytest

from seqtune.data.rows import BadRow, BadRows, key, reader
from seqtune.errors import SeqtuneError

HI = {"role": "user", "content": "hi"}
YO = {"role": "assistant", "content": "yo"}


def checked(form: str, row: dict[str, Any], **options: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"answer_pattern": None, "chat": False, **options}
    return reader(form, given.pop("columns", {}), **given)(row)


@pytest.mark.parametrize(
    ("form", "row", "reason", "detail"),
    [
        (
            "text",
            {"body": "a"},
            "missing column",
            "no column 'text' (have: 'body'); data.columns.text=COLUMN says where",
        ),
        ("text", {}, "missing column", "no column 'text' (have: none)"),
        ("text", {"text": None}, "missing column", "column 'text' is null"),
        ("text", {"text": " \n"}, "empty text", "text is empty"),
        ("text", {"text": 3}, "wrong type", "text is a number, not a string"),
        ("text", {"text": True}, "wrong type", "text is a boolean, not a string"),
        ("prompt_completion", {"prompt": "a"}, "missing column", "no column 'completion'"),
        ("prompt_completion", {"prompt": "a", "completion": ""}, "empty text", "completion is empty"),
        ("prompt_completion", {"prompt": {"a": 1}, "completion": "b"}, "wrong type", "prompt is an object"),
        ("prompt_completion", {"prompt": [HI], "completion": "b"}, "wrong type", "make them alike"),
        ("prompt_completion", {"prompt": [HI], "completion": [HI]}, "no trainable token", "no assistant turn"),
        ("messages", {"messages": "hi"}, "wrong type", "messages is a string, not a list of {role, content}"),
        ("messages", {"messages": []}, "empty text", "messages has no message"),
        ("messages", {"messages": [HI]}, "no trainable token", "there is no assistant turn with content"),
        ("messages", {"messages": ["hi"]}, "wrong type", "messages[0] is a string, not {role, content}"),
        ("messages", {"messages": [{"content": "hi"}]}, "wrong type", "messages[0] has no role"),
        ("messages", {"messages": [HI, {"role": "assistant", "content": 3}]}, "wrong type", "messages[1].content"),
        ("messages", {"messages": [{**HI, "content": ""}, YO]}, "empty text", "messages[0].content is empty"),
        ("messages", {"messages": [{"from": "human", "value": "hi"}]}, "wrong type", "rename them to 'role'"),
        ("preference", {"chosen": "a"}, "missing column", "no column 'rejected'"),
        ("preference", {"prompt": "p", "chosen": "a", "rejected": "a"}, "equal pair", "are the same"),
        ("preference", {"prompt": "p", "chosen": "a", "rejected": [YO]}, "wrong type", "make them alike"),
        ("preference", {"prompt": [HI], "chosen": "a", "rejected": "b"}, "wrong type", "make them alike"),
        ("preference", {"chosen": "yes", "rejected": "no"}, "missing column", "do not start with a shared one"),
        ("preference", {"chosen": [YO], "rejected": [{**YO, "content": "no"}]}, "missing column", "shared one"),
        ("preference", {"chosen": [HI, YO], "rejected": [YO, HI]}, "missing column", "shared one"),
        ("prompt_answer", {"prompt": "a", "answer": ""}, "empty text", "answer is empty"),
        ("prompt_answer", {"prompt": "a", "answer": [1]}, "wrong type", "answer is a list, not a string"),
        ("prompt_answer", {"prompt": "a", "answer": float("nan")}, "wrong type", "answer is a number"),
        ("groups", {"prompt": "a", "completions": "b", "scores": [1]}, "wrong type", "completions is no list"),
        ("groups", {"prompt": "a", "completions": ["b", "c"], "scores": [1, "x"]}, "wrong type", "scores is no list"),
        ("groups", {"prompt": "a", "completions": ["b", "c"], "scores": [1]}, "wrong type", "2 completions but 1"),
        ("groups", {"prompt": "a", "completions": ["b"], "scores": [1]}, "wrong type", "at least two"),
        ("groups", {"prompt": "a", "completions": ["b", ""], "scores": [1, 2]}, "empty text", "a completion is empty"),
    ],
)
def test_bad_rows(form: str, row: dict[str, Any], reason: str, detail: str) -> None:
    with pytest.raises(BadRow) as caught:
        checked(form, row)
    assert caught.value.reason == reason
    assert detail in caught.value.detail


def test_columns_are_mapped_and_others_pass_through() -> None:
    """A column named like a field of another format is left out: trainers tell formats by the names of columns."""
    row = {"question": "q", "answer": "so\n#### 4 ", "level": 3, "messages": "x"}
    columns = {"prompt": "question", "completion": "answer", "answer": "answer"}
    found = checked("prompt_completion", row, columns=columns, answer_pattern="#### (.+)")
    assert found == {"prompt": "q", "completion": "so\n#### 4 ", "answer": "4", "level": 3}


def test_an_answer_that_is_not_found() -> None:
    with pytest.raises(BadRow, match=r"'#### \(\.\+\)' is not found in 'no result'") as caught:
        checked("prompt_answer", {"prompt": "q", "answer": "no result"}, answer_pattern="#### (.+)")
    assert caught.value.reason == "no answer"


def test_numbers_are_answers() -> None:
    assert checked("prompt_answer", {"prompt": "q", "answer": 42})["answer"] == "42"


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        ("text", {"chat": True}, "plain text has no turns"),
        ("text", {"answer_pattern": "(a)"}, "format text has no answer"),
        ("prompt_answer", {"answer_pattern": "("}, "is no regular expression"),
        ("prompt_answer", {"answer_pattern": "a"}, "'a' has no group"),
        ("prompt_answer", {"columns": {"promt": "q"}}, "'promt' is no field of prompt_answer"),
        ("preference", {"columns": {"chosen": "x", "rejected": "x"}}, "are both read from column 'x'"),
    ],
)
def test_options_that_do_not_fit(form: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SeqtuneError, match=message):
        checked(form, {}, **options)


def test_chat_turns_strings_into_messages() -> None:
    assert checked("preference", {"prompt": "p", "chosen": "a", "rejected": "b"}, chat=True) == {
        "prompt": [{"role": "user", "content": "p"}],
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    }


def test_a_shared_beginning_becomes_the_prompt() -> None:
    """Cut before the blank that the first differing word follows, so that the blank belongs to that word."""
    found = checked("preference", {"chosen": "Q: 2+2? It is four", "rejected": "Q: 2+2? It is five"})
    assert found == {"prompt": "Q: 2+2? It is", "chosen": " four", "rejected": " five"}


@pytest.mark.parametrize("prompt", [None, "hi"])
def test_shared_turns_become_the_prompt(prompt: str | None) -> None:
    """A prompt string beside whole conversations repeats their first turn."""
    no = {**YO, "content": "no"}
    found = checked("preference", {"prompt": prompt, "chosen": [HI, YO], "rejected": [HI, no]})
    assert found == {"prompt": [HI], "chosen": [YO], "rejected": [no]}


def test_a_prompt_string_before_answers_becomes_a_turn() -> None:
    no = {**YO, "content": "no"}
    found = checked("preference", {"prompt": "hi", "chosen": [YO], "rejected": [no]})
    assert found == {"prompt": [HI], "chosen": [YO], "rejected": [no]}


def test_null_keys_of_messages_are_removed() -> None:
    found = checked("messages", {"messages": [{**HI, "name": None}, {**YO, "tool_calls": None}]})
    assert found == {"messages": [HI, YO]}


def test_a_column_is_strings_or_messages_in_every_row() -> None:
    read = reader("prompt_answer", {}, answer_pattern=None, chat=False)
    read({"prompt": "a", "answer": "1"})
    with pytest.raises(BadRow, match="prompt is a list, the first row has a string"):
        read({"prompt": [HI], "answer": "1"})


def test_errors_name_the_first_five_and_count_all() -> None:
    bad = BadRows("error")
    for line in range(1, 8):
        bad.add(f"a.jsonl:{line}", BadRow("empty text" if line % 2 else "wrong type", "text is …"))
    with pytest.raises(SeqtuneError) as caught:
        bad.close()
    problems = caught.value.problems
    assert [problem.where for problem in problems] == [*(f"a.jsonl:{line}" for line in range(1, 6)), "data.path"]
    assert problems[0].problem == "empty text: text is …"
    assert problems[-1].problem == "7 bad rows (empty text 4, wrong type 3)"
    assert problems[-1].hint == "mend them, or leave them out with data.on_error=skip"


def test_skipped_rows_are_counted_by_reason() -> None:
    bad = BadRows("skip")
    bad.add("a:1", BadRow("empty text", "x"))
    bad.add("a:2", BadRow("empty text", "y"))
    assert bad.close() == {"empty text": 2}


def test_what_examples_share() -> None:
    assert key({"prompt": "a", "completion": "b"}) == key({"prompt": "a", "completion": "c"})
    assert key({"prompt": [HI]}) == key({"prompt": [dict(reversed(HI.items()))]})
    assert key({"text": "a"}) != key({"text": "b"})
    assert key({"messages": [HI, YO]}) != key({"messages": [HI]})
