"""What is trained of a conversation, for templates as different as those of common model families."""

from __future__ import annotations

import datasets
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tokenizers.decoders import ByteLevel
from transformers import PreTrainedTokenizerFast

from seqtune.data.rows import BadRows
from seqtune.data.tokenize import prompt_ids, tokenize
from seqtune.errors import SeqtuneError

SPECIAL = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>", "<think>", "</think>"]
TALK = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "if x:\n  y"},
    {"role": "user", "content": "more"},
    {"role": "assistant", "content": "naïve   42"},
]

CLOSING = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}<|endoftext|>{% endif %}"
)
"""Closes the conversation with a token that ends no turn, as Phi-3 does."""

THINKING = (
    "{% for m in messages %}<|{{ m.role }}|>\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""Writes the last answer otherwise than the earlier ones, as Qwen3 does."""

TRIMMING = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Trims contents, as Llama 3 does."""

MARKED = (
    "{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|end|>{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""Marks what the assistant says."""


def tokenizer_with(template: str, *, trim_offsets: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with two merged tokens of blanks."""
    alphabet = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE({**alphabet, "ĠĠ": len(alphabet)}, [("Ġ", "Ġ")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    core.decoder = ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|endoftext|>", extra_special_tokens=SPECIAL[1:], chat_template=template
    )
    return made


def trained(row: dict, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The text of each run of trained tokens."""
    runs: list[list[int]] = []
    before = False
    for token, flag in zip(row["input_ids"], row["loss_mask"], strict=True):
        if flag and not before:
            runs.append([])
        if flag:
            runs[-1].append(token)
        before = flag
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("trim_offsets", [False, True], ids=["offsets", "offsets-without-blanks"])
@pytest.mark.parametrize(
    ("template", "answers"),
    [
        pytest.param(CLOSING, ["if x:\n  y<|end|>", "naïve   42<|end|>"], id="closing"),
        pytest.param(THINKING, ["if x:\n  y<|end|>", "<think>\n\n</think>\n\nnaïve   42<|end|>"], id="thinking"),
        pytest.param(TRIMMING, ["if x:\n  y<|end|>", "naïve   42<|end|>"], id="trimming"),
        pytest.param(MARKED, ["if x:\n  y<|end|>", "naïve   42<|end|>"], id="marked"),
    ],
)
def test_answers_and_the_ends_of_their_turns_are_trained(template: str, answers: list[str], trim_offsets: bool) -> None:
    tokenizer = tokenizer_with(template, trim_offsets=trim_offsets)
    row = tokenize(datasets.Dataset.from_dict({"messages": [TALK]}), tokenizer)[0]
    assert trained(row, tokenizer) == answers
    assert tokenizer.decode(row["input_ids"]) == tokenizer.apply_chat_template(TALK, tokenize=False)


@pytest.mark.parametrize("template", [CLOSING, THINKING, TRIMMING, MARKED])
def test_of_a_prompt_and_completion_only_the_completion_is_trained_and_the_prompt_is_what_generation_gets(
    template: str,
) -> None:
    tokenizer = tokenizer_with(template)
    example = {"prompt": TALK[:3], "completion": TALK[3:]}
    row = tokenize(datasets.Dataset.from_list([example]), tokenizer)[0]
    prompt = prompt_ids([example], tokenizer)[0]
    assert row["input_ids"][: len(prompt)] == prompt
    assert not any(row["loss_mask"][: len(prompt)])
    assert [text.removeprefix("<think>\n\n</think>\n\n") for text in trained(row, tokenizer)] == ["naïve   42<|end|>"]


UNTRAINED_END = MARKED.replace("<|end|>{% endgeneration %}", "{% endgeneration %}<|end|>")
ALTERNATING = "{% if messages[0].role != 'user' %}{{ raise_exception('roles must alternate') }}{% endif %}" + CLOSING


def test_a_template_that_leaves_the_end_of_a_turn_untrained_is_refused_with_the_row() -> None:
    tokenizer = tokenizer_with(UNTRAINED_END)
    rows = datasets.Dataset.from_list([{"messages": TALK, "_where": f"talks.jsonl:{line}"} for line in (3, 5)])
    with pytest.raises(SeqtuneError) as caught:
        tokenize(rows, tokenizer)
    detail = (
        "no end-of-turn token: the chat template leaves the end of a turn untrained; "
        "its {% generation %} must reach to the token that ends the turn"
    )
    assert [(problem.problem, problem.where) for problem in caught.value.problems] == [
        (detail, "talks.jsonl:3"),
        (detail, "talks.jsonl:5"),
        ("2 bad rows (no end-of-turn token 2)", "data.path"),
    ]


def test_conversations_the_template_refuses_can_be_skipped() -> None:
    tokenizer = tokenizer_with(ALTERNATING)
    talks = [TALK, [{"role": "assistant", "content": "hello"}], TALK[:2]]
    rows = datasets.Dataset.from_list([{"messages": talk, "_where": f"t:{line}"} for line, talk in enumerate(talks, 1)])
    bad = BadRows("skip")
    kept = tokenize(rows, tokenizer, bad)
    assert kept["_where"][:] == ["t:1", "t:3"]
    assert bad.close() == {"chat template": 1}
    with pytest.raises(
        SeqtuneError, match="chat template: it refuses the conversation: roles must alternate"
    ) as caught:
        prompt_ids([{"prompt": talks[1], "_where": "t:2"}], tokenizer)
    assert caught.value.problems[0].where == "t:2"
