"""What an example may hold: one entry per `data.format`. Imports nothing heavy: `seqtune list formats` reads it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """One data format.

    Args:
        name: What `data.format` says.
        fields: Fields every example has.
        optional: Fields an example may have.
        summary: One line.
    """

    name: str
    fields: tuple[str, ...]
    optional: tuple[str, ...]
    summary: str


FORMATS: dict[str, Format] = {
    entry.name: entry
    for entry in (
        Format("text", ("text",), (), "plain text; every token is trained, an end-of-sequence token is added"),
        Format(
            "prompt_completion",
            ("prompt", "completion"),
            ("answer",),
            "a prompt and what should follow it (strings or message lists); only the completion is trained",
        ),
        Format(
            "messages",
            ("messages",),
            (),
            "a conversation, a list of {role, content}; every assistant turn and its end-of-turn token is trained",
        ),
        Format(
            "preference",
            ("chosen", "rejected"),
            ("prompt", "answer"),
            "a better and a worse completion; without a prompt the part both share becomes the prompt",
        ),
        Format(
            "prompt_answer",
            ("prompt", "answer"),
            (),
            "a prompt and its reference answer, which rewards and evaluation compare with",
        ),
        Format(
            "groups",
            ("prompt", "completions", "scores"),
            ("answer",),
            "a prompt, a list of completions and one score for each",
        ),
    )
}
"""Every data format by name."""
