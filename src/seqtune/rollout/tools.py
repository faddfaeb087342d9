"""Completions that call tools: the model writes until a call closes, the result is put in, the model goes on.

Everything is token ids. What the model wrote stays as it was sampled, a result is encoded by itself and put after it,
so that the ids that are trained are the ids that were drawn. Nothing here knows a model: what generates is an argument.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from seqtune.config.tools import ToolSpec


class Answer(NamedTuple):
    """What a tool says to a query."""

    text: str
    failed: bool = False
    """Whether the text tells of a failure."""


class Tool(NamedTuple):
    """A tool that a completion may call."""

    spec: ToolSpec
    """Its markers and limits."""
    answers: Callable[[list[str]], list[Answer]]
    """An answer a query; a failure is an answer too."""


class Codec(NamedTuple):
    """Text to token ids and back."""

    encode: Callable[[str, bool], list[int]]
    """The ids of a text without what begins or ends a sequence; the flag says whether texts of special tokens become
    these tokens or are text like any other."""
    decode: Callable[[Sequence[int]], str]
    """Special tokens are written out."""


class Turn(NamedTuple):
    """What is asked of the model."""

    row: int
    """Number of the completion."""
    number: int
    """Of the completion's turns, from 0."""
    context: list[int]
    """Prompt and completion so far."""
    room: int
    """Tokens the turn may have, at least 1."""


@dataclass
class Completion:
    """A completion with what tools put into it."""

    ids: list[int] = field(default_factory=list)
    own: list[bool] = field(default_factory=list)
    """Whether the model wrote the token itself; one an id, and always so of the last."""
    calls: list[str] = field(default_factory=list)
    """Names of the tools that were run, in order."""
    failures: int = 0
    """Of these, how many failed."""
    outside: str = ""
    """What the model wrote outside of the calls that were run."""
    ended: bool = False
    """Whether it ended by itself."""

    def add(self, ids: Sequence[int], *, own: bool) -> None:
        """Append tokens."""
        self.ids += ids
        self.own += [own] * len(ids)


class Call(NamedTuple):
    """A call in a text."""

    tool: int
    query: str
    start: int
    end: int


def first_call(text: str, tools: Sequence[Tool], left: Sequence[int]) -> Call | None:
    """The first closed call of a tool that may be called once more.

    The first opening marker opens a call; until its closing marker all is its query, other markers too.

    Args:
        text: What the model wrote in a turn.
        tools: All there are.
        left: Calls each may still be called.
    """
    place = 0
    while True:
        opened = [(text.find(tool.spec.open, place), -len(tool.spec.open), n) for n, tool in enumerate(tools)]
        start, size, n = min((one for one in opened if one[0] >= 0), default=(-1, 0, 0))
        end = text.find(tools[n].spec.close, start - size) if start >= 0 else -1
        if end < 0:
            return None
        place = end + len(tools[n].spec.close)
        if left[n] > 0:
            return Call(n, text[start - size : end], start, place)


def converse(
    prompts: Sequence[list[int]],
    *,
    generate: Callable[[list[Turn], Callable[[int, list[int]], bool]], list[list[int]]],
    tools: Sequence[Tool],
    codec: Codec,
    ends: Sequence[int],
    limit: int,
) -> list[Completion]:
    """Complete every prompt, running the tools that are called.

    A call whose result would leave the model no token is not run: the completion is cut off there. All completions that
    go on do so together.

    Args:
        prompts: Token ids, one a row.
        generate: `generate(turns, stops)` completes the context of every turn with 1 to `room` tokens; it may end a
            turn where `stops(number in the batch, tokens so far)` says so, or go on: what is beyond is not read. What
            a turn is must depend on its row, number and context alone.
        tools: What may be called.
        codec: Of the model's tokenizer.
        ends: Tokens that end a completion when the model writes them.
        limit: Tokens a completion has at most, results included.

    Returns:
        One a prompt.
    """
    found = [Completion() for _ in prompts]
    left = [[tool.spec.max_calls for tool in tools] for _ in prompts]
    reach = max((len(tool.spec.close.encode()) for tool in tools), default=0)  # tokens a marker can lie on
    frames = [[codec.encode(text, True) for text in (tool.spec.result_open, tool.spec.result_close)] for tool in tools]
    live, number = list(range(len(prompts))), 0
    while live:
        turns = [Turn(row, number, [*prompts[row], *found[row].ids], limit - len(found[row].ids)) for row in live]

        def call(place: int, ids: list[int], live: list[int] = live) -> Call | None:
            tail = codec.decode(ids[-reach:])
            if not any(tool.spec.close in tail for tool in tools):
                return None
            return first_call(codec.decode(ids), tools, left[live[place]])

        def stops(place: int, ids: list[int]) -> bool:
            return call(place, ids) is not None

        queries: dict[int, list[tuple[int, str, int]]] = defaultdict(list)
        for place, (turn, ids) in enumerate(zip(turns, generate(turns, stops), strict=True)):
            one, ids = found[turn.row], ids[: turn.room]
            size = next((n for n in range(1, len(ids) + 1) if stops(place, ids[:n])), len(ids))
            ids = ids[:size]
            one.add(ids, own=True)
            made = call(place, ids)
            one.ended = made is None and ids[-1] in ends
            text = codec.decode(ids[:-1] if one.ended else ids)
            room = 0
            if made is not None:
                room = turn.room - len(ids) - sum(map(len, frames[made.tool])) - 1
                if room > 0:
                    queries[made.tool].append((turn.row, made.query, room))
                    text = text[: made.start] + text[made.end :]
            one.outside += text
        live, number = [], number + 1
        for n, asked in sorted(queries.items()):
            spec, (before, after) = tools[n].spec, frames[n]
            for (row, _, room), answer in zip(asked, tools[n].answers([query for _, query, _ in asked]), strict=True):
                result = codec.encode(answer.text, False)[: min(room, spec.max_result_tokens)]
                found[row].add([*before, *result, *after], own=False)
                found[row].calls.append(spec.name)
                found[row].failures += answer.failed
                left[row][n] -= 1
                live.append(row)
        live.sort()
    return found
