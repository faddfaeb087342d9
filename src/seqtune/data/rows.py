"""Rows: what makes one good in its format, and the account of those that are not."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal

from seqtune.data.formats import FORMATS
from seqtune.errors import Problem, SeqtuneError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Row = dict[str, Any]

WHERE = "_where"
"""Column that carries `file:line` of every example, so that later steps can name it."""

_NAMED = 5  # bad rows an error names; the rest is only counted


class BadRow(Exception):
    """A row that cannot be used.

    Args:
        reason: Kind of fault; skipped rows are counted by it.
        detail: What exactly is wrong with this row.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class BadRows:
    """Collects the bad rows of one pass.

    Args:
        on_error: `error`: `close` raises; `skip`: `close` returns the counts.
    """

    def __init__(self, on_error: Literal["error", "skip"]) -> None:
        self.on_error = on_error
        self.counts: Counter[str] = Counter()
        self._first: list[Problem] = []

    def add(self, where: str, bad: BadRow) -> None:
        """Take note of one bad row."""
        self.counts[bad.reason] += 1
        if len(self._first) < _NAMED:
            self._first.append(Problem(f"{bad.reason}: {bad.detail}", where))

    def close(self) -> dict[str, int]:
        """Bad rows by reason.

        Raises:
            SeqtuneError: There are some and `on_error` is `error`: the first five with file and line, and the count.
        """
        if self.on_error == "error" and self.counts:
            total = self.counts.total()
            reasons = ", ".join(f"{reason} {count}" for reason, count in self.counts.most_common())
            summary = Problem(
                f"{total} bad row{'s' if total > 1 else ''} ({reasons})",
                "data.path",
                "mend them, or leave them out with data.on_error=skip",
            )
            raise SeqtuneError.of([*self._first, summary])
        return dict(self.counts)


Source = str | tuple[str | float, ...]
"""A column; or several, and numbers that stand for themselves, whose values make a list."""


def reader(
    form: str, columns: Mapping[str, Source], *, answer_pattern: str | None, chat: bool
) -> Callable[[Mapping[str, Any]], Row]:
    """A function from a raw row to an example with the columns of `form`.

    Columns that belong to no format pass through; columns named like a field of another format are left out, because
    trainers recognise a data set by the names of its columns.

    Args:
        form: Name of the format.
        columns: Field of the format -> column of the data, `a.b` for the field b of objects in column a. A field of a
            group that is a list may be gathered from several columns; a number among them stands for itself.
        answer_pattern: Regular expression whose first group is the answer; None takes the column as it is.
        chat: Turn strings into user and assistant messages.

    Returns:
        The function; it raises `BadRow`.

    Raises:
        SeqtuneError: The columns do not fit the format, the pattern is no regular expression with a group, or `chat`
            is asked for plain text.
    """
    spec = FORMATS[form]
    known = (*spec.fields, *spec.optional)
    _check_columns(form, columns, known)
    if chat and form == "text":
        raise SeqtuneError(
            "plain text has no turns", "data.chat", "set data.chat=false, or use data.format=prompt_completion"
        )
    find_answer = _answer_finder(answer_pattern, known, form)
    foreign = {name for other in FORMATS.values() for name in (*other.fields, *other.optional)} - set(known)
    sources = {name: columns.get(name, name) for name in known}
    moved = {part for name, source in sources.items() if name != source for part in _named(source)} | foreign
    kinds: dict[str, str] = {}

    def read(raw: Mapping[str, Any]) -> Row:
        row: Row = {}
        for name in known:
            source = sources[name]
            if isinstance(source, str):
                value = _found(source, raw)
                if value is None:
                    if name in spec.fields or name in columns:
                        raise BadRow("missing column", _missing(name, source, raw))
                    continue
            else:
                value = [part if isinstance(part, float) else _found(part, raw) for part in source]
                if None in value:
                    raise BadRow("missing column", _missing(name, str(source[value.index(None)]), raw))
            row[name] = value
        if find_answer is not None and "answer" in row:
            row["answer"] = find_answer(row["answer"])
        _CHECKS[form](row)
        if "answer" in row:
            row["answer"] = _answer(row["answer"])
        if chat:
            _to_turns(row)
        _same_kind(row, kinds)
        for name, value in raw.items():
            if name not in row and name not in moved:
                row[name] = value
        return row

    return read


def key(row: Mapping[str, Any]) -> str:
    """What two examples share when one would give the other away: the prompt, or the whole text."""
    for name in ("prompt", "text", "messages"):
        if row.get(name):
            value = row[name]
            return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return json.dumps([row.get("chosen"), row.get("rejected")], sort_keys=True)


def to_turns(rows: list[Row]) -> list[Row]:
    """The rows with their strings turned into user and assistant messages."""
    turned = [dict(row) for row in rows]
    for row in turned:
        _to_turns(row)
    return turned


def _found(source: str, raw: Mapping[str, Any]) -> Any:
    """The value of a column, or of a field of the objects in one."""
    if source in raw or "." not in source:
        return raw.get(source)
    head, _, rest = source.partition(".")
    inner = raw.get(head)
    return _found(rest, inner) if isinstance(inner, dict) else None


def _named(source: Source) -> set[str]:
    """The columns a source reads."""
    names = [source] if isinstance(source, str) else [part for part in source if isinstance(part, str)]
    return {name for whole in names for name in (whole, whole.partition(".")[0])}


def _check_columns(form: str, columns: Mapping[str, Source], known: tuple[str, ...]) -> None:
    for name, source in columns.items():
        if name not in known:
            raise SeqtuneError(f"'{name}' is no field of {form}", f"data.columns.{name}", did_you_mean(name, known))
        if not isinstance(source, str) and name not in ("completions", "scores"):
            raise SeqtuneError(
                f"'{name}' is one value, not a list to gather from columns", f"data.columns.{name}", "name one column"
            )
    taken: dict[str, str] = {}
    for name, source in columns.items():
        if name == "answer":  # the answer is often found inside the completion
            continue
        for part in (source,) if isinstance(source, str) else source:
            if not isinstance(part, str):
                continue
            if part in taken:
                raise SeqtuneError(
                    f"'{taken[part]}' and '{name}' are both read from column '{part}'",
                    f"data.columns.{name}",
                    "give each field its own column",
                )
            taken[part] = name


def _answer_finder(pattern: str | None, known: tuple[str, ...], form: str) -> Callable[[Any], str] | None:
    if pattern is None:
        return None
    if "answer" not in known:
        raise SeqtuneError(f"format {form} has no answer", "data.answer_pattern", "leave data.answer_pattern out")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise SeqtuneError(f"'{pattern}' is no regular expression: {error}", "data.answer_pattern") from error
    if compiled.groups < 1:
        raise SeqtuneError(
            f"'{pattern}' has no group", "data.answer_pattern", "put parentheses around the answer: '#### (.+)'"
        )

    def find(value: Any) -> str:
        if not isinstance(value, str):
            raise BadRow("wrong type", f"answer is {_kind(value)}, not a string to search")
        match = compiled.search(value)
        if match is None or match.group(1) is None:
            raise BadRow("no answer", f"'{pattern}' is not found in {_short(value)}")
        return match.group(1).strip()

    return find


def _missing(name: str, source: str, raw: Mapping[str, Any]) -> str:
    if source in raw:
        return f"column '{source}' is null"
    have = ", ".join(f"'{column}'" for column in raw) or "none"
    return f"no column '{source}' (have: {have}); data.columns.{name}=COLUMN says where it is"


def _text(row: Row) -> None:
    _checked(row["text"], "text")


def _prompt_completion(row: Row) -> None:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) != isinstance(completion, list):
        raise BadRow("wrong type", f"prompt is {_kind(prompt)}, completion is {_kind(completion)}: make them alike")
    _content(row, "prompt")
    _content(row, "completion")
    if isinstance(completion, list) and not _speaks(completion):
        raise BadRow("no trainable token", "the completion has no assistant turn with content")


def _messages(row: Row) -> None:
    if not isinstance(row["messages"], list):
        raise BadRow("wrong type", f"messages is {_kind(row['messages'])}, not a list of {{role, content}}")
    _content(row, "messages")
    if not _speaks(row["messages"]):
        raise BadRow("no trainable token", "there is no assistant turn with content")


def _preference(row: Row) -> None:
    chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
    if isinstance(chosen, list) != isinstance(rejected, list):
        raise BadRow("wrong type", f"chosen is {_kind(chosen)}, rejected is {_kind(rejected)}: make them alike")
    _content(row, "chosen")
    _content(row, "rejected")
    if chosen == rejected:
        raise BadRow("equal pair", "chosen and rejected are the same")
    if isinstance(chosen, list):
        _split_turns(row, chosen, rejected, prompt)
    elif prompt is None:
        same = takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
        common = "".join(char for char, _ in same)
        # Cut before the last blank: tokenizers bind a blank to the word after it.
        cut = max((at for at, char in enumerate(common) if char.isspace()), default=0)
        if not common[:cut].strip():
            raise BadRow("missing column", "no prompt, and chosen and rejected do not start with a shared one")
        row.update(prompt=common[:cut], chosen=chosen[cut:], rejected=rejected[cut:])
    elif isinstance(prompt, list):
        raise BadRow("wrong type", "prompt is a list, chosen and rejected are strings: make them alike")
    _content(row, "prompt")


def _split_turns(row: Row, chosen: list[Row], rejected: list[Row], prompt: Any) -> None:
    if isinstance(prompt, list):
        return
    if chosen[0]["role"] == "assistant" and rejected[0]["role"] == "assistant":
        if prompt is None:
            raise BadRow("missing column", "no prompt, and chosen and rejected do not start with a shared one")
        row["prompt"] = [{"role": "user", "content": _checked(prompt, "prompt")}]
        return
    # A prompt string beside whole conversations repeats their first turns.
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == 0:
        raise BadRow("missing column", "no prompt, and chosen and rejected do not start with a shared one")
    row.update(prompt=chosen[:shared], chosen=chosen[shared:], rejected=rejected[shared:])


def _prompt_answer(row: Row) -> None:
    _content(row, "prompt")


def _groups(row: Row) -> None:
    _content(row, "prompt")
    completions, scores = row["completions"], row["scores"]
    if not isinstance(completions, list) or not all(isinstance(text, str) for text in completions):
        raise BadRow("wrong type", "completions is no list of strings")
    if not isinstance(scores, list) or not all(isinstance(score, bool) or _number(score) for score in scores):
        raise BadRow("wrong type", "scores is no list of finite numbers (or of true and false, which are 1 and 0)")
    if len(completions) != len(scores):
        raise BadRow("wrong type", f"{len(completions)} completions but {len(scores)} scores")
    if len(completions) < 2:
        raise BadRow("wrong type", "a group has at least two completions")
    if not all(text.strip() for text in completions):
        raise BadRow("empty text", "a completion is empty")
    row["scores"] = [float(score) for score in scores]
    if isinstance(row["prompt"], list):
        row["completions"] = [[{"role": "assistant", "content": text}] for text in completions]


_CHECKS: dict[str, Callable[[Row], None]] = {
    "text": _text,
    "prompt_completion": _prompt_completion,
    "messages": _messages,
    "preference": _preference,
    "prompt_answer": _prompt_answer,
    "groups": _groups,
}


def _checked(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRow("wrong type", f"{name} is {_kind(value)}, not a string")
    if not value.strip():
        raise BadRow("empty text", f"{name} is empty")
    return value


def _content(row: Row, name: str) -> None:
    """A string, or a non-empty list of messages (from which null keys are removed)."""
    value = row[name]
    if not isinstance(value, list):
        if isinstance(value, dict):
            raise BadRow("wrong type", f"{name} is an object, not a string or a list of messages")
        _checked(value, name)
        return
    if not value:
        raise BadRow("empty text", f"{name} has no message")
    row[name] = [_message(message, f"{name}[{index}]") for index, message in enumerate(value)]


def _message(message: Any, name: str) -> Row:
    if not isinstance(message, dict):
        raise BadRow("wrong type", f"{name} is {_kind(message)}, not {{role, content}}")
    turn = clean(message)
    if "from" in turn and "value" in turn and "role" not in turn:
        raise BadRow("wrong type", f"{name} has 'from' and 'value': rename them to 'role' and 'content'")
    if not isinstance(turn.get("role"), str):
        raise BadRow("wrong type", f"{name} has no role")
    content = turn.setdefault("content", "")
    if not isinstance(content, str):
        raise BadRow("wrong type", f"{name}.content is {_kind(content)}, not a string")
    if not content.strip() and not (turn["role"] == "system" or turn.get("tool_calls")):
        raise BadRow("empty text", f"{name}.content is empty")
    return turn


def clean(message: Mapping[str, Any]) -> Row:
    """A message without its null keys: Arrow gives every message the keys of all, templates ask which are there."""
    return {name: value for name, value in message.items() if value is not None}


def _speaks(messages: list[Row]) -> bool:
    return any(
        message["role"] == "assistant" and (message.get("content") or message.get("tool_calls")) for message in messages
    )


def _answer(value: Any) -> str:
    if _number(value):
        return str(value)
    return _checked(value, "answer")


def _to_turns(row: Row) -> None:
    for name, role in (
        ("prompt", "user"),
        ("completion", "assistant"),
        ("chosen", "assistant"),
        ("rejected", "assistant"),
    ):
        if isinstance(row.get(name), str):
            row[name] = [{"role": role, "content": row[name]}]
    if "completions" in row:
        row["completions"] = [
            [{"role": "assistant", "content": text}] if isinstance(text, str) else text for text in row["completions"]
        ]


def _same_kind(row: Row, kinds: dict[str, str]) -> None:
    """Arrow holds one type a column, so a column is strings in every row or message lists in every row."""
    for name in ("prompt", "completion", "chosen", "rejected"):
        if name in row:
            kind = _kind(row[name])
            first = kinds.setdefault(name, kind)
            if kind != first:
                raise BadRow("wrong type", f"{name} is {kind}, the first row has {first}")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    for kind, name in (
        (bool, "a boolean"),
        (str, "a string"),
        (int, "a number"),
        (float, "a number"),
        (list, "a list"),
    ):
        if isinstance(value, kind):
            return name
    return "an object" if isinstance(value, dict) else f"a {type(value).__name__}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"…{text[-39:]}")
