"""The tiny model and its byte-level tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from seqtune.config.axes import TinyModelSpec
from seqtune.errors import SeqtuneError
from seqtune.models import tiny
from seqtune.models.load import count_parameters, load_model, load_tokenizer
from seqtune.peft.specs import Full, Lora

if TYPE_CHECKING:
    from pathlib import Path

SPEC = TinyModelSpec(name="tiny", hidden_size=16, layers=2, heads=2, kv_heads=1, intermediate_size=24)
TOKENIZER = tiny.tokenizer()


@given(st.text())
def test_a_token_is_a_byte_and_decoding_gives_the_text_back(text: str) -> None:
    for special in (tiny.PAD, tiny.START, tiny.END):
        text = text.replace(special, "")
    ids = TOKENIZER(text)["input_ids"]
    assert ids == list(text.encode())
    assert TOKENIZER.decode(ids) == text


def test_special_tokens_follow_the_bytes() -> None:
    assert [TOKENIZER.convert_tokens_to_ids(name) for name in (tiny.PAD, tiny.START, tiny.END)] == [256, 257, 258]
    assert (TOKENIZER.pad_token_id, TOKENIZER.eos_token_id, len(TOKENIZER)) == (256, 258, 259)
    assert TOKENIZER("a<|im_end|>b")["input_ids"] == [97, 258, 98]


def test_the_chat_template_marks_what_the_assistant_says_with_its_end() -> None:
    talk = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yo"},
        {"role": "user", "content": "more"},
        {"role": "assistant", "content": "no"},
    ]
    made = TOKENIZER.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
    marked = [token for token, kept in zip(made["input_ids"], made["assistant_masks"], strict=True) if kept]
    assert TOKENIZER.decode(marked) == "yo<|im_end|>no<|im_end|>"
    prompt = TOKENIZER.apply_chat_template(talk[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_a_saved_tokenizer_loads_without_this_package(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("3+4=7 é")["input_ids"] == TOKENIZER("3+4=7 é")["input_ids"]
    assert loaded.chat_template == TOKENIZER.chat_template


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = load_model(SPEC).state_dict()
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    second = load_model(SPEC).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    other = load_model(SPEC.model_copy(update={"seed": 1})).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


@pytest.mark.parametrize(("asked", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_weights_have_the_dtype_that_is_asked_for(asked: str, dtype: torch.dtype) -> None:
    model = load_model(SPEC.model_copy(update={"dtype": asked}))
    assert {weight.dtype for weight in model.parameters()} == {dtype}


def test_parameters_are_counted_without_making_them() -> None:
    model = load_model(SPEC)
    assert count_parameters(SPEC) == sum(weight.numel() for weight in model.parameters())
    assert count_parameters(SPEC, Full()) == count_parameters(SPEC)
    # A rank-2 adapter of a linear layer in -> out has 2 (in + out) weights. Width 16, two heads of 8, one of them for
    # keys and values: q 16->16, k and v 16->8, o 16->16, gate and up 16->24, down 24->16.
    a_block = 2 * ((16 + 16) + 2 * (16 + 8) + (16 + 16) + 2 * (16 + 24) + (24 + 16))
    assert count_parameters(SPEC, Lora(rank=2)) == 2 * a_block


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"hidden_size": 24, "heads": 8, "kv_heads": 8}, "hidden_size"),
        ({"heads": 2, "kv_heads": 3, "hidden_size": 16}, "kv_heads"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(fields: dict[str, int], named: str) -> None:
    with pytest.raises(SeqtuneError, match=named):
        load_model(SPEC.model_copy(update=fields))


def test_the_tokenizer_of_the_spec_fits_the_model() -> None:
    assert len(load_tokenizer(SPEC)) == load_model(SPEC).get_input_embeddings().num_embeddings
