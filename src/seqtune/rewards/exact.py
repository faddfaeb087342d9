"""Equality and overlap after normalisation."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from seqtune.rewards.answers import marked_answer, references

_GROUPING = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalised(text: str) -> str:
    """Text in the form in which answers are compared.

    Unicode NFKC, lower case, single spaces; without punctuation and currency signs, without the articles a, an, the.
    Punctuation that makes a number another number stays (`-5`, `1.5`, `1/2`, `3:15`, `50%`); commas between groups of
    three digits go. Articles stay if nothing else would be left: "A" is an answer.
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("\N{MINUS SIGN}", "-").replace("\N{FRACTION SLASH}", "/")
    text = _GROUPING.sub("", text)
    kept = "".join(character for position, character in enumerate(text) if _kept(text, position))
    without_articles = " ".join(_ARTICLES.sub(" ", kept).split())
    return without_articles or " ".join(kept.split())


def _kept(text: str, position: int) -> bool:
    character = text[position]
    category = unicodedata.category(character)
    if category[0] != "P" and category != "Sc":
        return True
    before = text[position - 1] if position else " "
    after = text[position + 1 : position + 2]
    if character == "%":
        return before.isdigit()
    if character == "-" and not before.isalnum():
        return after.isdigit() or after == "."
    if character == "." and not before.isalnum():
        return after.isdigit()
    return before.isdigit() and after.isdigit()


def exact(prompts: list[str], completions: list[str], **columns: list[object]) -> list[float | None]:
    """1.0 if the completion's answer equals the column `answer` after `normalised`, else 0.0.

    The completion's answer follows its last `####`, or stands in its last `\\boxed{…}` or `<answer>` tags, or is
    all of it; the reference is read the same way. None where there is no reference to compare with.
    """
    return [
        _equal(completion, reference)
        for completion, reference in zip(completions, references(columns, "exact"), strict=True)
    ]


def f1(prompts: list[str], completions: list[str], **columns: list[object]) -> list[float | None]:
    """2PR/(P+R) over the words that both answers have, counted as often as both have them, after `normalised`.

    P is their share of the completion's words, R of the reference's; answers are found as in `exact`. 0.0 where they
    share none, None where there is no reference (https://arxiv.org/abs/1606.05250).
    """
    return [
        _overlap(completion, reference)
        for completion, reference in zip(completions, references(columns, "f1"), strict=True)
    ]


def _overlap(completion: str, reference: str | None) -> float | None:
    wanted = Counter(normalised(_answer(reference)).split()) if reference is not None else Counter()
    if not wanted:
        return None
    given = Counter(normalised(_answer(completion)).split())
    shared = (wanted & given).total()
    return 2 * shared / (wanted.total() + given.total())


def _equal(completion: str, reference: str | None) -> float | None:
    wanted = normalised(_answer(reference)) if reference is not None else ""
    if not wanted:
        return None
    return float(normalised(_answer(completion)) == wanted)


def _answer(text: str) -> str:
    marked = marked_answer(text)
    return text if marked is None else marked
