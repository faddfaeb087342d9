"""`model=tiny`: a Qwen3-architecture model with seeded random weights and a byte-level tokenizer, made right here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from seqtune.errors import SeqtuneError
from seqtune.models import rope

if TYPE_CHECKING:
    from seqtune.config.axes import TinyModelSpec

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
"""Special tokens, ids 256, 257 and 258: padding, begin of a turn, end of a turn and of a text."""

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}{{- '\\n' -}}"
    "{%- else -%}"
    "{{- message['content'] + '<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""ChatML, with the assistant's turns (their end token included) marked for the loss."""


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte (id = byte value), then the special tokens."""
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = {character: value for value, character in _characters().items()}
    core = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = byte
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([PAD, START, END])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )


def _characters() -> dict[int, str]:
    """The printable character that stands for each byte in a byte-level vocabulary (the table of GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    table = {value: chr(value) for value in printable}
    others = (value for value in range(256) if value not in table)
    return table | {value: chr(256 + index) for index, value in enumerate(others)}


def config(spec: TinyModelSpec) -> Qwen3Config:
    """The Qwen3 configuration of a tiny model.

    Raises:
        SeqtuneError: The width is not a multiple of twice the heads, or the heads not of the key/value heads.
    """
    if spec.hidden_size % (2 * spec.heads):
        nearest = 2 * spec.heads * max(1, spec.hidden_size // (2 * spec.heads))
        raise SeqtuneError(
            f"hidden_size {spec.hidden_size} is not an even multiple of heads {spec.heads}",
            where="model.hidden_size and model.heads",
            hint=f"rotary positions need an even head size: hidden_size={nearest}",
        )
    if spec.heads % spec.kv_heads:
        raise SeqtuneError(
            f"heads {spec.heads} is not a multiple of kv_heads {spec.kv_heads}",
            where="model.heads and model.kv_heads",
            hint=f"kv_heads={spec.heads} gives every query head its own",
        )
    made = Qwen3Config(
        vocab_size=256 + 3,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        head_dim=spec.hidden_size // spec.heads,
        max_position_embeddings=spec.max_positions,
        tie_word_embeddings=False,
        bos_token_id=None,
        pad_token_id=256,
        eos_token_id=258,
    )
    if spec.rope is not None:
        rope.apply(made, spec.rope)
    return made


def model(spec: TinyModelSpec, dtype: torch.dtype, attention: str) -> Qwen3ForCausalLM:
    """Random weights that depend on `spec.seed` alone, drawn in float32; the global random state is left as it was."""
    settings = config(spec)
    settings._attn_implementation = attention
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        made = Qwen3ForCausalLM(settings)
    made.generation_config = GenerationConfig(eos_token_id=258, pad_token_id=256)
    return made.to(dtype).eval()
