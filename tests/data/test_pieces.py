"""Texts of tokens: joined they are the decoded sequence, whatever bytes the tokens are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from seqtune.data.pieces import pieces
from seqtune.models import tiny


@pytest.fixture(scope="module")
def byte() -> PreTrainedTokenizerFast:
    return tiny.tokenizer()


def test_a_character_belongs_to_the_token_that_completes_it(byte: PreTrainedTokenizerFast) -> None:
    """é is two bytes, € three; the end token is shown."""
    ids = [*"aé€b".encode(), byte.eos_token_id]
    assert pieces(ids, byte) == ["a", "", "é", "", "", "€", "b", "<|im_end|>"]


def test_a_character_that_is_never_completed_is_not_lost(byte: PreTrainedTokenizerFast) -> None:
    assert pieces([ord("a"), 0xE2, 0x82], byte) == ["a", "", "\N{REPLACEMENT CHARACTER}"]


def test_leading_spaces_stay() -> None:
    """A sentencepiece tokenizer drops the space of the first token it decodes, so tokens alone have none."""
    core = Tokenizer(WordLevel({"▁to": 0, "▁be": 1, "fore": 2}, unk_token=None))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    words = PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False)
    assert words.decode([1]) == "be"
    assert pieces([0, 1, 2], words) == ["to", " be", "fore"]


@given(st.text(max_size=30))
def test_joined_they_are_the_text(text: str) -> None:
    byte = tiny.tokenizer()
    ids = list(text.encode("utf-8", "ignore"))
    found = pieces(ids, byte)
    assert "".join(found) == byte.decode(ids)
    assert len(found) == len(ids)


@given(st.lists(st.integers(0, 255), max_size=20))
def test_any_bytes_give_one_text_a_token(ids: list[int]) -> None:
    assert len(pieces(ids, tiny.tokenizer())) == len(ids)
