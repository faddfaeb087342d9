"""tiktoken in place of a tokenizer: the same ids or none."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from seqtune.data.byte_bpe import PATTERNS, ByteBpe, byte_bpe
from seqtune.data.tokenize import Encoder

WORDS = (
    "the there then other another mother 's 'll don't THEY'LL naïve café Straße 12 123 1234 x1 日本 日本語 한국 "
    "привет \t\n\n  \r\n ((()) == === <|x|> foo_bar fooBar"
)


@cache
def tokenizer(pattern: str | None, nfc: bool = False) -> PreTrainedTokenizerFast:
    rules = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    rules.pre_tokenizer = (
        level if pattern is None else pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), level])
    )
    if nfc:
        rules.normalizer = normalizers.NFC()
    rules.train_from_iterator(
        [WORDS] * 3,
        trainers.BpeTrainer(
            vocab_size=600,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<|end|>", "<|pad|>"],
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=rules, eos_token="<|end|>", pad_token="<|pad|>")


def altered(change: dict[str, Any] | None = None, **model: Any) -> PreTrainedTokenizerFast:
    """The tokenizer of the GPT-2 expression with other settings."""
    said = {**json.loads(tokenizer(None).backend_tokenizer.to_str()), **(change or {})}
    said["model"] = {**said["model"], **model}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(said)), eos_token="<|end|>")


def quick(of: PreTrainedTokenizerFast) -> ByteBpe:
    found = byte_bpe(of)
    assert found is not None
    return found


def ids(of: PreTrainedTokenizerFast, text: str) -> list[int]:
    found: list[int] = of.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return found


KINDS = [(None, False), *((pattern, nfc) for pattern in PATTERNS for nfc in (False, True))]


@pytest.mark.parametrize(("pattern", "nfc"), KINDS)
@given(text=st.text() | st.lists(st.sampled_from([*WORDS.split(" "), *WORDS])).map("".join))
@settings(max_examples=60, deadline=None)
def test_ids_are_those_of_the_tokenizer_or_it_is_asked(pattern: str | None, nfc: bool, text: str) -> None:
    of = tokenizer(pattern, nfc)
    found = quick(of)(text)
    assert found is None or found.tolist() == ids(of, text)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_characters_that_are_taken_are_of_the_same_kind_on_both_sides(pattern: str) -> None:
    of = tokenizer(pattern)
    found, blocks = quick(of), [range(0x530), range(0x2000, 0x2800), range(0x3000, 0x3100), range(0xFF00, 0x10000)]
    characters = [chr(code) for block in blocks for code in block] + [chr(code) for code in range(0x4E00, 0xD7A4, 97)]
    texts = [f"a{one}b {one} {one}{one}1{one}'{one} '{one}s\n{one}" for one in characters if one.isprintable()]
    texts += [f"a{one}b {one} {one}{one}\n{one}" for one in map(chr, (*range(32), 0x7F, 0x85, 0xA0, 0x2028, 0x3000))]
    taken = 0
    for text, coded in zip(texts, of.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True):
        ours = found(text)
        assert ours is None or ours.tolist() == coded.ids, ascii(text)
        taken += ours is not None
    assert taken > 3000


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("one<|end|>two", "an added token stands in it"),
        ("\u1c80", "a letter of Unicode 9 is of no settled block"),
        ("cafe\u0301", "it is not composed"),
        (" " * 10**6 + "x", "the expression cannot take so long a word"),
    ],
)
def test_texts_for_which_the_tokenizer_is_asked(text: str, why: str) -> None:
    of = tokenizer(PATTERNS[0], True)
    assert quick(of)(text) is None, why
    assert quick(of)("one <|en two") is not None  # the beginning of an added token is plain text
    coded = Encoder(of, ["text"])([{"text": text}, {"text": "the other"}])
    assert coded.ids.tolist() == [*ids(of, text), of.eos_token_id, *ids(of, "the other"), of.eos_token_id]


def test_the_tokenizer_is_not_asked_where_it_need_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    of = tokenizer(None)
    encoder, wanted = Encoder(of, ["prompt", "completion"]), [*ids(of, "the"), *ids(of, " other"), of.eos_token_id]

    def asked(texts: list[str], _: Any) -> list[list[int]]:
        assert not texts
        return []

    monkeypatch.setattr("seqtune.data.tokenize._ids", asked)
    assert encoder([{"prompt": "the", "completion": " other"}]).ids.tolist() == wanted


@pytest.mark.parametrize(
    "of",
    [
        altered({"normalizer": {"type": "Lowercase"}}),
        altered(
            {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}}
        ),
        altered({"pre_tokenizer": {"type": "Whitespace"}}),
        altered(dropout=0.1),
        tokenizer(r"\p{N}|\P{N}+"),
    ],
    ids=["lower case", "prefix space", "other words", "dropout", "another expression"],
)
def test_tokenizers_that_are_not_known_to_be_the_same(of: PreTrainedTokenizerFast) -> None:
    assert byte_bpe(of) is None


def test_a_token_that_its_merges_do_not_make_rules_tiktoken_out() -> None:
    letters = dict(json.loads(tokenizer(None).backend_tokenizer.to_str())["model"]["vocab"])
    vocabulary = {one: number for number, one in enumerate([one for one in letters if len(one) == 1])}
    size = len(vocabulary)
    vocabulary |= {"ab": size, "bc": size + 1, "abc": size + 2}
    # "abc" is made of "a" and "bc", but "ab" is merged first: the tokenizer leaves "ab", "c"; tiktoken would join them.
    of = altered({"added_tokens": []}, vocab=vocabulary, merges=[["a", "b"], ["b", "c"], ["a", "bc"]])
    assert ids(of, "abc") == [size, vocabulary["c"]]
    assert byte_bpe(of) is None
    whole = altered({"added_tokens": []}, vocab=vocabulary, merges=[["a", "b"], ["b", "c"], ["ab", "c"]])
    assert quick(whole)("abc").tolist() == ids(whole, "abc") == [size + 2]  # type: ignore[union-attr]
    assert byte_bpe(altered({"added_tokens": []}, vocab={**vocabulary, "zz": size + 3}, merges=[])) is None


def test_a_tokenizer_that_takes_whole_words_first() -> None:
    of = altered(ignore_merges=True)
    assert quick(of)("the mother").tolist() == ids(of, "the mother")  # type: ignore[union-attr]
