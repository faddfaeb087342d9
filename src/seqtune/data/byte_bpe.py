"""Token ids of byte-level BPE tokenizers by tiktoken: those of the tokenizer itself, several times as fast.

Both split a text into words by a regular expression and merge the bytes of each word. tiktoken merges the pair whose
bytes are the earliest token, the tokenizer the earliest pair of its list; `byte_bpe` takes only tokenizers for which
that is the same, and `ByteBpe` only texts whose words both find alike.
"""

from __future__ import annotations

import json
import re
import unicodedata
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import tiktoken
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

_GPT2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
PATTERNS = (_GPT2, _QWEN2, _LLAMA3)
"""Regular expressions of words for which tiktoken is known to agree. Each finds every character of a text."""
_UNSURE = re.compile(
    "[^\x00-\u052f\u2000-\u206f\u20a0-\u20bf\u2100-\u214f\u2190-\u23ff\u2500-\u27bf\u3000-\u30ff\u4e00-\u9fa5"
    "\uac00-\ud7a3\uff00-\uffef]"
)
"""Characters that two versions of Unicode may take for different kinds: all outside long settled blocks."""


class ByteBpe:
    """Words and merges of one tokenizer, in tiktoken.

    Args:
        encoding: Its tokens are numbered in the order of the merges.
        ids: Token id of each. [V]
        added: Texts that the tokenizer looks for before it splits into words.
        composed: Whether the tokenizer composes characters (NFC) first.
    """

    def __init__(
        self, encoding: tiktoken.Encoding, ids: NDArray[np.int32], added: Sequence[str], *, composed: bool
    ) -> None:
        self._encoding, self._ids, self._composed = encoding, ids, composed
        ends = zip(min(added), max(added), strict=False) if added else ()
        self._common = "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], ends))
        self._added = re.compile("|".join(map(re.escape, added))) if added else None

    def __call__(self, text: str) -> NDArray[np.int32] | None:
        """The ids of a text, or None where the tokenizer itself is to be asked. [T]"""
        if not text.isascii() and (
            _UNSURE.search(text) or (self._composed and not unicodedata.is_normalized("NFC", text))
        ):
            return None
        if self._added is not None and self._common in text and self._added.search(text):
            return None
        try:
            found = self._encoding.encode_to_numpy(text, disallowed_special=())
        except ValueError:  # a word too long for its regular expressions
            return None
        ids: NDArray[np.int32] = self._ids[found]
        return ids


def byte_bpe(tokenizer: PreTrainedTokenizerBase) -> ByteBpe | None:
    """The same tokenizer in tiktoken; None where it is not known to be the same.

    It is when words are split by a known expression, each merge makes a token of its own, and the merges make of every
    token's bytes that token again. Then no two neighbours whose bytes are a token are left without their merge: had
    they come about inside a longer word, they would have inside the token alone, which would not have become whole.
    """
    import tiktoken

    if not tokenizer.is_fast:
        return None
    rules = tokenizer.backend_tokenizer
    said = json.loads(rules.to_str())
    pattern, model, normalizer = _pattern(said["pre_tokenizer"]), said["model"], said["normalizer"]
    plain = model["type"] == "BPE" and not any(
        model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    )
    if pattern is None or not plain or normalizer not in (None, {"type": "NFC"}):
        return None
    vocabulary: dict[str, int] = model["vocab"]
    merged = [pair if isinstance(pair, str) else "".join(pair) for pair in model["merges"]]
    merged = [pair.replace(" ", "") for pair in merged]
    characters = _characters()
    added = [token["content"] for token in said["added_tokens"]]
    words = [*characters, *merged]  # in the order of the merges
    if len(set(words)) < len(words) or vocabulary.keys() - set(words) - set(added) or set(words) - vocabulary.keys():
        return None
    if model.get("ignore_merges"):
        from tokenizers import Tokenizer

        rules = Tokenizer.from_str(json.dumps({**said, "model": {**model, "ignore_merges": False}}))
    if any(len(rules.model.tokenize(word)) != 1 for word in merged):
        return None
    ranks = {bytes(characters[letter] for letter in word): rank for rank, word in enumerate(words)}
    ids = np.array([vocabulary[word] for word in words], dtype=np.int32)
    encoding = tiktoken.Encoding("seqtune", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return ByteBpe(encoding, ids, added, composed=normalizer is not None)


def _pattern(said: dict[str, Any] | None) -> str | None:
    """The expression by which words are split, if it is a known one."""
    parts = said.get("pretokenizers", [said]) if said else []
    split, level = parts if len(parts) == 2 else (None, *parts) if len(parts) == 1 else (None, None)
    if not level or level["type"] != "ByteLevel" or level["add_prefix_space"]:
        return None
    if split is None:
        return _GPT2 if level["use_regex"] else None
    known = split["type"] == "Split" and split["behavior"] == "Isolated" and not split["invert"]
    pattern: str | None = split["pattern"].get("Regex") if known and not level["use_regex"] else None
    return pattern if pattern in PATTERNS else None


def _characters() -> dict[str, int]:
    """The character that stands for each byte, as in GPT-2: itself where it can be seen, else one from U+0100 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + number): byte for number, byte in enumerate(unseen)}
