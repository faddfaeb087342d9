"""The loop that lets a completion call tools, with scripted models: bytes are tokens, 0 ends a completion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqtune.config.tools import ToolSpec
from seqtune.rollout.tools import Answer, Codec, Completion, Tool, Turn, converse, first_call

END = 0
CODEC = Codec(lambda text, special: list(text.encode()), lambda ids: bytes(ids).decode(errors="replace"))
Asked = Callable[[int, list[int]], bool]


def tool(answers: Callable[[str], str | Answer] = str.upper, name: str = "up", **fields) -> Tool:
    def all_of(queries: list[str]) -> list[Answer]:
        found = [answers(query) for query in queries]
        return [one if isinstance(one, Answer) else Answer(one) for one in found]

    marks = {"open": f"<{name}>", "close": f"</{name}>", "result_open": "[", "result_close": "]"}
    return Tool(ToolSpec(**{"name": name, **marks, **fields}), all_of)


def scripted(*scripts: Sequence[str], eager: bool = True) -> Callable[[list[Turn], Asked], list[list[int]]]:
    """A model that says the texts of its row, one a turn; ` ` is no text. `eager` ends a turn where it may."""

    def generate(turns: list[Turn], stops: Asked) -> list[list[int]]:
        found = []
        for place, turn in enumerate(turns):
            whole = list(scripts[turn.row][turn.number].replace("$", "\0").encode())[: turn.room]
            if eager:
                whole = whole[: next((n for n in range(1, len(whole)) if stops(place, whole[:n])), len(whole))]
            found.append(whole)
        return found

    return generate


def run(
    *scripts: Sequence[str], tools: Sequence[Tool] | None = None, limit: int = 200, eager: bool = True
) -> list[Completion]:
    return converse(
        [list(b"Q:")] * len(scripts),
        generate=scripted(*scripts, eager=eager),
        tools=[tool()] if tools is None else tools,
        codec=CODEC,
        ends=[END],
        limit=limit,
    )


def text(one: Completion) -> str:
    return bytes(one.ids).decode().replace("\0", "$")


def injected(one: Completion) -> str:
    return bytes(i for i, own in zip(one.ids, one.own, strict=True) if not own).decode()


@pytest.mark.parametrize("eager", [True, False], ids=["stops", "goes on"])
def test_a_result_follows_the_call_and_is_not_the_models(eager: bool) -> None:
    [one] = run(["I ask <up>abc</up> and go on unread", " so $"], eager=eager)
    assert text(one) == "I ask <up>abc</up>[ABC] so $"
    assert injected(one) == "[ABC]"
    assert (one.calls, one.failures, one.outside, one.ended) == (["up"], 0, "I ask  so ", True)


def test_without_a_call_nothing_changes() -> None:
    [one] = run(["plain text$"])
    [same] = run(["plain text$"], tools=[])
    assert one == same
    assert all(one.own)
    assert (one.ids, one.calls, one.outside) == (list(b"plain text\0"), [], "plain text")


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("<up>abc$", "never closed"),
        ("abc</up>$", "never opened"),
        ("<up>abc</UP>$", "another marker"),
        ("</up>abc<up>$", "the wrong way round"),
    ],
)
def test_no_call_is_run(written: str, why: str) -> None:
    [one] = run([written])
    assert (text(one), one.calls, all(one.own)) == (written, [], True), why


def test_the_first_marker_opens_and_its_closing_marker_ends() -> None:
    tools = [tool(), tool(str.lower, "low")]
    left = [4, 4]
    assert first_call("<up>a<low>b</low>c</up>", tools, left)[:2] == (0, "a<low>b</low>c")
    assert first_call("<up>a <up>b</up></up>", tools, left)[:2] == (0, "a <up>b")
    assert first_call("<low>X</low><up>b</up>", tools, left)[:2] == (1, "X")
    assert first_call("<low>X</low><up>b</up>", tools, left)[2:] == (0, 12)
    assert first_call("<low>X</low><up>b</up>", tools, [1, 0]) == (0, "b", 12, 22)
    assert first_call("<low>X</low><up>b</up>", tools, [0, 0]) is None
    assert first_call("<up>never <low>X</low>", tools, left) is None


def test_the_longer_of_two_markers_that_begin_alike_opens() -> None:
    tools = [tool(open="<t", close="!"), tool(str.lower, "low", open="<tool>", close="!")]
    assert first_call("<tool>X!", tools, [1, 1])[:2] == (1, "X")


def test_calls_beyond_the_limit_are_text() -> None:
    [one] = run(["<up>a</up>", "<up>b</up>", "<up>c</up>$"], tools=[tool(max_calls=2)])
    assert text(one) == "<up>a</up>[A]<up>b</up>[B]<up>c</up>$"
    assert (len(one.calls), one.outside) == (2, "<up>c</up>")


def test_a_tool_used_up_leaves_the_others() -> None:
    [one] = run(["<up>a</up>", "<up>b</up><low>C</low>", "$"], tools=[tool(max_calls=1), tool(str.lower, "low")])
    assert text(one) == "<up>a</up>[A]<up>b</up><low>C</low>[c]$"
    assert one.calls == ["up", "low"]


def test_a_long_result_is_cut_to_its_limit() -> None:
    [one] = run(["<up>a</up>", "$"], tools=[tool(lambda query: "x" * 50, max_result_tokens=3)])
    assert injected(one) == "[xxx]"


def test_the_last_token_is_always_the_models() -> None:
    """A call takes 10 tokens, a result of 5 with its markers 7: with 18 in all one token is left to go on."""
    [one] = run(["<up>a</up>", "yes"], tools=[tool(lambda query: "x" * 5)], limit=18)
    assert text(one) == "<up>a</up>[xxxxx]y"
    [one] = run(["<up>a</up>", "yes"], tools=[tool(lambda query: "x" * 5)], limit=16)
    assert text(one) == "<up>a</up>[xxx]y", "the result gives way"
    [one] = run(["<up>a</up>", "yes"], tools=[tool(lambda query: "x" * 5)], limit=14)
    assert text(one) == "<up>a</up>[x]y", "as long as one token of it is left"
    asked = []
    [one] = run(["<up>a</up>", "yes"], tools=[tool(lambda query: asked.append(query) or "x")], limit=13)
    assert (text(one), one.calls, one.ended, asked) == ("<up>a</up>", [], False, []), "no room for a token of it"
    assert one.outside == "<up>a</up>"


def test_an_end_inside_a_result_is_none() -> None:
    [one] = run(["<up>a</up>", "more$"], tools=[tool(lambda query: "x\0y")])
    assert text(one) == "<up>a</up>[x$y]more$"
    assert one.ended
    assert one.own[-5:] == [True] * 5


def test_failures_are_told_and_counted() -> None:
    fails = tool(lambda query: Answer("error: no", failed=True))
    [one] = run(["<up>a</up>", "<up>b</up>", "$"], tools=[fails])
    assert (injected(one), one.failures, len(one.calls)) == ("[error: no][error: no]", 2, 2)


def test_rows_that_go_on_do_so_together() -> None:
    batches: list[list[str]] = []

    def answers(queries: list[str]) -> list[Answer]:
        batches.append(queries)
        return [Answer(query) for query in queries]

    one = Tool(tool().spec, answers)
    found = run(["<up>a</up>", "$"], ["no$"], ["<up>b</up>", "<up>c</up>", "$"], tools=[one])
    assert batches == [["a", "b"], ["c"]]
    assert [text(row) for row in found] == ["<up>a</up>[a]$", "no$", "<up>b</up>[b]<up>c</up>[c]$"]


def random_model(vocabulary: Sequence[str], seed: int) -> Callable[[list[Turn], Asked], list[list[int]]]:
    """Words by a hash of the context: a turn depends on its context, whatever else is in the batch."""

    def generate(turns: list[Turn], stops: Asked) -> list[list[int]]:
        found = []
        for turn in turns:
            words: list[int] = []
            while len(words) < turn.room and END not in words:
                key = sha256(repr((seed, turn.number, turn.context, words)).encode()).digest()
                words += vocabulary[key[0] % len(vocabulary)].encode()
            found.append(words[: turn.room])
        return found

    return generate


@given(
    st.lists(st.binary(min_size=1, max_size=3), min_size=1, max_size=5, unique=True),
    st.integers(0, 1000),
    st.integers(1, 120),
    st.integers(1, 3),
)
def test_whatever_is_written(prompts: list[bytes], seed: int, limit: int, max_calls: int) -> None:
    """Own tokens and results make up the completion, within the limit, ending with the model's own; rows are alone."""
    said: list[str] = []

    def answer(query: str) -> str:
        said.append("#" * (len(query) % 7))
        return said[-1]

    tools = [tool(answer, "a", max_calls=max_calls), tool(answer, "b", max_calls=max_calls, max_result_tokens=2)]
    words = ["<a>", "</a>", "<b>", "</b>", "x", "yy", "\0", "</", "a>"]

    def complete(rows: list[bytes]) -> list[Completion]:
        ids = [list(row) for row in rows]
        model = random_model(words, seed)
        return converse(ids, generate=model, tools=tools, codec=CODEC, ends=[END], limit=limit)

    found = complete(prompts)
    for prompt, one in zip(prompts, found, strict=True):
        assert len(one.ids) == len(one.own) <= limit
        assert one.own[-1]
        assert one.ended == (one.ids[-1] == END)
        assert set(injected(one)) <= set("[#]")
        assert injected(one).count("[") == len(one.calls) <= 2 * max_calls
        assert bytes(one.ids).count(b"[") == len(one.calls), "the model writes none"
        assert END not in one.ids[:-1]
        assert complete([prompt]) == [one]
