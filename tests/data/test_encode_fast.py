"""The short way to token ids gives what the tokenizer's own call gives."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from seqtune.data.tokenize import _ids, tokenize
from seqtune.models import tiny


def trained(**said: Any) -> PreTrainedTokenizerFast:
    """A byte-level BPE with special tokens, a normaliser and a token that eats the blank before it."""
    rules = Tokenizer(models.BPE(unk_token=None))
    rules.normalizer = normalizers.NFC()
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    rules.train_from_iterator(["the theme of these threads", "thirty three", "Ünïcödé straße"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=rules, eos_token="<end>", bos_token="<begin>", pad_token="<pad>", **said
    )
    tokenizer.add_tokens([AddedToken("<mark>", lstrip=True, special=True)])
    return tokenizer


TOKENIZERS = [tiny.tokenizer(), trained(), trained(split_special_tokens=True)]
TEXTS = st.lists(
    st.lists(
        st.one_of(
            st.text(max_size=8), st.sampled_from(["<end>", " <mark>", "<|im_end|>", "three", "  ", "\n", "e\u0301"])
        )
    ).map("".join),
    max_size=5,
)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@given(texts=TEXTS)
@settings(max_examples=80)
def test_ids_are_those_of_the_call(tokenizer: Any, texts: list[str]) -> None:
    expected = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    tokenizer("a b c d", truncation=True, max_length=2, padding="max_length")  # leaves its mark on the rules
    assert _ids(texts, tokenizer) == expected


def test_a_tokenizer_with_a_call_of_its_own_is_called() -> None:
    class Shouting(PreTrainedTokenizerFast):
        def __call__(self, text: Any, **said: Any) -> Any:
            return super().__call__([one.upper() for one in text], **said)

    shouting = Shouting(tokenizer_object=tiny.tokenizer().backend_tokenizer)
    assert _ids(["ab"], shouting) == [[65, 66]]
    assert _ids(["ab"], tiny.tokenizer()) == [[97, 98]]


@given(texts=st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=6))
@settings(max_examples=60)
def test_pairs_are_masked_up_to_their_completion(texts: list[tuple[str, str]]) -> None:
    import datasets

    tokenizer = TOKENIZERS[1]
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in texts]
    found = tokenize(datasets.Dataset.from_list(rows), tokenizer)
    for row, (prompt, completion) in zip(found, texts, strict=True):
        before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, completion))
        assert row["input_ids"] == [*before, *after, tokenizer.eos_token_id]
        assert row["loss_mask"] == [False] * len(before) + [True] * (len(after) + 1)
