"""The text of each token of a sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase


def pieces(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts that joined are the decoded sequence, special tokens included.

    A token depends on what stands before it (a leading space, the first bytes of a character), so the few tokens before
    it are decoded with it. A token that does not complete a character has an empty text; the one that does has it.
    """
    found: list[str] = []
    start = read = 0  # tokens from `start` up to `read` are what the next text is decoded behind
    for end in range(1, len(ids) + 1):
        before, after = (
            tokenizer.decode(ids[start:stop], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            for stop in (read, end)
        )
        if after.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids):
            found.append("")
            continue
        found.append(after[len(before) :])
        start, read = read, end
    return found
