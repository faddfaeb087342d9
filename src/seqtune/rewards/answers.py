"""Where the answer stands in a text, and when two answers are plainly equal."""

from __future__ import annotations

import re
import unicodedata

from seqtune.errors import SeqtuneError

_HASHES = "####"
_BOXED = "\\boxed{"


def marked_answer(text: str) -> str | None:
    """What follows the last `####` up to the end of its line, or stands inside the last complete `\\boxed{…}`.

    The marker that comes last in the text wins. None if there is neither.
    """
    hashes = text.rfind(_HASHES)
    boxed = _last_boxed(text)
    if boxed is not None and boxed[0] > hashes:
        return boxed[1].strip()
    if hashes < 0:
        return None
    line = text[hashes + len(_HASHES) :].split("\n", 1)[0].strip()
    inner = _last_boxed(line)
    return line if inner is None else inner[1].strip()


def _last_boxed(text: str) -> tuple[int, str] | None:
    """Position and content of the last `\\boxed{…}` whose braces close."""
    start = text.rfind(_BOXED)
    while start >= 0:
        depth = 1
        begin = start + len(_BOXED)
        for position in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return start, text[begin:position]
        start = text.rfind(_BOXED, 0, start)
    return None


_INTEGER = re.compile(r"[$]?\s*([+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+))\s*[.]?")


def plain_integer(text: str) -> int | None:
    """The value of text that is nothing but an integer: `42`, `-7`, `1,000`, `$12`, `12.`; None for anything else."""
    found = _INTEGER.fullmatch(text.strip()) if len(text) <= 64 else None
    return int(found[1].replace(",", "")) if found else None


_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_WIDE = re.compile("[！-～]+")
_FRACTION = re.compile("([0-9]?)([¼-¾⅐-⅞])")


def ascii_maths(text: str) -> str:
    """Unicode spellings of numbers as the ASCII that parsers read: `−5` -> `-5`, `2½` -> `2+(1/2)`, `x²` -> `x^2`.

    Full-width forms too; everything else is left alone.
    """
    if text.isascii():
        return text
    text = text.replace("\N{MINUS SIGN}", "-")
    text = _WIDE.sub(lambda found: _compatible(found[0]), text)
    text = _SUPERSCRIPT.sub(lambda found: _power(_compatible(found[0])), text)
    return _FRACTION.sub(lambda found: f"{found[1]}{'+' * bool(found[1])}({_compatible(found[2])})", text)


def _compatible(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("\N{FRACTION SLASH}", "/")


def _power(digits: str) -> str:
    return f"^{digits}" if len(digits) == 1 else f"^{{{digits}}}"


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
