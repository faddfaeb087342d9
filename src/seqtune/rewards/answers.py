"""Where the answer stands in a text, and when two answers are plainly equal."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

from seqtune.errors import SeqtuneError

_HASHES = "####"
_BOXED = "\\boxed"
_BRACE = re.compile(r"\\[\\{}]|[{}]")


def marked_answer(text: str) -> str | None:
    """What follows the last `####` up to the end of its line, or stands in the last `\\boxed{…}` or `<answer>` tags.

    The marker that comes last in the text wins; boxes and tags that are not closed are none. None without a marker.
    """
    line = text.rfind(_HASHES)
    boxed, tagged = _last_boxed(text), _last_tagged(text)
    place, found = max(boxed or (-1, ""), tagged or (-1, ""), (line, ""))
    if place < 0:
        return None
    if place == line:
        found = text[line + len(_HASHES) :].split("\n", 1)[0]
    inner = _last_boxed(found)
    return (found if inner is None else inner[1]).strip()


def _last_boxed(text: str) -> tuple[int, str] | None:
    """Position and content of the last `\\boxed{…}` whose braces close; `\\{` and `\\}` are no braces."""
    found: tuple[int, str] | None = None
    opened: list[int] = []
    for brace in _BRACE.finditer(text):
        if brace[0] == "{":
            opened.append(brace.end())
        elif brace[0] == "}" and opened:
            begin = opened.pop()
            start = begin - 1 - len(_BOXED)
            if text.startswith(_BOXED, max(start, 0)) and start > (found or (-1,))[0]:
                found = start, text[begin : brace.start()]
    return found


def _last_tagged(text: str) -> tuple[int, str] | None:
    """Position and content of the last `<answer>…</answer>`."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end) if end >= 0 else -1
    return (start, text[start + len("<answer>") : end]) if start >= 0 else None


_INTEGER = re.compile(r"[$]?\s*([+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+))\s*[.]?")


def plain_integer(text: str) -> int | None:
    """The value of text that is nothing but an integer: `42`, `-7`, `1,000`, `$12`, `12.`; None for anything else."""
    found = _INTEGER.fullmatch(text.strip()) if len(text) <= 64 else None
    return int(found[1].replace(",", "")) if found else None


_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_WIDE = re.compile("[！-～]+")
_FRACTION = re.compile("(?:([0-9]+) ?)?([¼-¾⅐-⅞])")
_ROOT = re.compile(r"√\s*([0-9]+|[A-Za-z]|\([^()]*\))")
_SIGNS = str.maketrans(
    {
        "\N{MINUS SIGN}": "-",
        "\N{MIDDLE DOT}": "*",
        "\N{DOT OPERATOR}": "*",
        "\N{INFINITY}": "\\infty",
        "€": "",
        "£": "",
        "¥": "",
    }
)


def ascii_maths(text: str) -> str:
    """Unicode spellings of numbers as the ASCII that parsers read: `−5` -> `-5`, `2½` -> `(2+1/2)`, `x²` -> `x^2`.

    Full-width forms, roots and infinity too; currency signs go. Everything else is left alone.
    """
    if text.isascii():
        return text
    text = _WIDE.sub(lambda found: _compatible(found[0]), text)
    text = _SUPERSCRIPT.sub(lambda found: _power(_compatible(found[0])), text)
    text = _FRACTION.sub(lambda found: f"({found[1] + '+' if found[1] else ''}{_compatible(found[2])})", text)
    return _ROOT.sub(lambda found: f"\\sqrt{{{found[1]}}}", text).translate(_SIGNS)


def _compatible(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("\N{FRACTION SLASH}", "/")


def _power(digits: str) -> str:
    return f"^{digits}" if len(digits) == 1 else f"^{{{digits}}}"


_SPELLINGS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\\[!$]"), ""),  # a negative space; \$
    (re.compile(r"(?<=[0-9])(?:\\[,;: ]|\{,\}|~)(?=[0-9]{3}(?![0-9]))"), ""),  # between groups of digits
    (re.compile(r"\\varnothing"), r"\\emptyset"),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"(?<=[\w)\]}])\*\*(?=[\w(-])(?![^\s*]*\*\*)"), "^"),  # a power, as in Python
    (re.compile(r"\*\*"), ""),  # bold, as in Markdown
    (re.compile(r"-\$(?=[0-9])"), "$-"),
    (re.compile(r"(?<![\w.^/\\])([0-9]+) ([0-9]+)/([0-9]+)(?![\w./])"), r"(\1+\2/\3)"),  # a mixed number
)
_EXPONENT = re.compile(r"(?<![\w.\\])([0-9]+(?:\.[0-9]+)?)[eE]([+-]?[0-9]{1,3})(?!\w|\.[0-9])")


def plain_maths(text: str) -> str:
    """Spellings that math-verify misreads as the ones it reads, beside those of `ascii_maths`.

    `\\$18` -> `18`, `10\\,000` -> `10000`, `50\\%` -> `50%`, `2**3` -> `2^3`, `**5**` -> `5`, `2 1/3` -> `(2+1/3)`,
    `1.5e3` -> `1500`.
    """
    text = ascii_maths(text)
    for spelling, wanted in _SPELLINGS:
        text = spelling.sub(wanted, text)
    return _EXPONENT.sub(_written_out, text)


def _written_out(found: re.Match[str]) -> str:
    """`1.5e3` as `1500`, which any parser reads; what would be long as a product."""
    return format(Decimal(found[0]), "f") if abs(int(found[2])) <= 12 else f"{found[1]}*10^{{{int(found[2])}}}"


def references(columns: dict[str, list[object]], reward: str) -> list[str | None]:
    """The column `answer` as text; a missing answer (None) stays None.

    Raises:
        SeqtuneError: The data has no such column.
    """
    if "answer" not in columns:
        raise SeqtuneError(
            f"reward '{reward}' compares with the column 'answer', which the data does not have",
            where="data.columns",
            hint=f"map it (data.columns.answer=NAME); columns at hand: {', '.join(sorted(columns)) or 'none'}",
        )
    return [None if value is None else str(value) for value in columns["answer"]]
