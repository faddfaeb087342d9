"""Token ids and loss masks with the tiny byte-level tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtune.data.rows import WHERE
from seqtune.data.tokenize import fingerprints, prompt_ids, tokenize
from seqtune.errors import SeqtuneError
from seqtune.models import tiny

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END = 258
TALK = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "hé"},
    {"role": "assistant", "content": "yö"},
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "no\nmore"},
]
PLAIN_TEMPLATE = tiny.CHAT_TEMPLATE.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")


def coded(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    found: dict[str, Any] = tokenize(datasets.Dataset.from_list([row]), tokenizer)[0]
    assert len(found["input_ids"]) == len(found["loss_mask"])
    return found


def parts(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The trained runs of a row, as text."""
    runs: list[list[int]] = [[]]
    for token, trained in zip(row["input_ids"], row["loss_mask"], strict=True):
        if trained:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


@pytest.fixture(params=[tiny.CHAT_TEMPLATE, PLAIN_TEMPLATE], ids=["marked", "unmarked"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    made = tiny.tokenizer()
    made.chat_template = request.param
    return made


def test_text_is_trained_whole_and_ended() -> None:
    assert coded({"text": "hi"}, tiny.tokenizer()) == {"input_ids": [104, 105, END], "loss_mask": [True, True, True]}


def test_only_the_completion_is_trained() -> None:
    row = coded({"prompt": "ab", "completion": "cd", "answer": "x"}, tiny.tokenizer())
    assert row == {"input_ids": [97, 98, 99, 100, END], "loss_mask": [False, False, True, True, True]}


@given(st.text(min_size=1, max_size=30), st.text(min_size=1, max_size=30), st.booleans())
@settings(max_examples=100)
def test_a_prompt_is_what_generation_continues(prompt: str, completion: str, chat: bool) -> None:
    """Its ids are an exact prefix, untrained; what follows up to the end token is all trained and decodes back."""
    tokenizer = tiny.tokenizer()
    row: dict[str, Any] = {"prompt": prompt, "completion": completion}
    if chat:
        row = {
            "prompt": [{"role": "user", "content": prompt}],
            "completion": [{"role": "assistant", "content": completion}],
        }
    found = coded(row, tokenizer)
    (start,) = prompt_ids([row], tokenizer)
    ids, mask = found["input_ids"], found["loss_mask"]
    assert ids[: len(start)] == start
    assert not any(mask[: len(start)])
    trained = [token for token, keep in zip(ids, mask, strict=True) if keep]
    assert trained[-1] == END
    assert bytes(trained[:-1]).decode() == completion


def test_the_assistant_turns_of_a_conversation_are_trained(tokenizer: PreTrainedTokenizerBase) -> None:
    row = coded({"messages": TALK}, tokenizer)
    assert parts(row, tokenizer) == ["yö<|im_end|>", "no\nmore<|im_end|>"]
    assert tokenizer.decode(row["input_ids"]) == tokenizer.apply_chat_template(TALK, tokenize=False)


def test_turns_inside_a_prompt_are_not_trained(tokenizer: PreTrainedTokenizerBase) -> None:
    row = coded({"prompt": TALK[:4], "completion": TALK[4:]}, tokenizer)
    assert parts(row, tokenizer) == ["no\nmore<|im_end|>"]


def test_null_keys_that_arrow_adds_do_not_reach_the_template() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.name is defined %}{{ m.name }}:{% endif %}{{ m.content }}<|im_end|>{% endfor %}"
    )
    talk = [{"role": "user", "content": "a", "name": "Ann"}, {"role": "assistant", "content": "b"}]
    assert tokenizer.decode(coded({"messages": talk}, tokenizer)["input_ids"]) == "Ann:a<|im_end|>b<|im_end|>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "where the assistant's turn in message 2 stands"),
        (
            "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>{% endfor %}",
            "leaves the end of a turn untrained",
        ),
        (
            "{% for m in messages %}{{ m.content }}{% generation %}<|im_end|>{% endgeneration %}{% endfor %}",
            None,
        ),
        ("{{ raise_exception('roles must alternate') }}", "refuses the conversation: roles must alternate"),
        (None, "the tokenizer has no chat template"),
    ],
)
def test_templates_that_would_train_the_wrong_tokens(template: str | None, message: str | None) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    row = {"messages": TALK[1:3], WHERE: "a.jsonl:7"}
    if message is None:
        assert set(parts(coded(row, tokenizer), tokenizer)) == {"<|im_end|>"}
        return
    with pytest.raises(SeqtuneError, match=message):
        coded(row, tokenizer)


def test_an_error_names_file_and_line() -> None:
    tokenizer = tiny.tokenizer()
    row = {"messages": TALK[:2], WHERE: "a.jsonl:7"}
    with pytest.raises(SeqtuneError) as caught:
        coded(row, tokenizer)
    assert caught.value.problems[0].where == "a.jsonl:7"


def test_columns_that_are_no_sequences() -> None:
    with pytest.raises(SeqtuneError, match="examples with columns chosen, rejected cannot be trained on as sequences"):
        tokenize(datasets.Dataset.from_list([{"chosen": "a", "rejected": "b"}]), tiny.tokenizer())


def test_a_row_without_a_prompt_cannot_be_continued() -> None:
    with pytest.raises(SeqtuneError, match="no prompt to continue"):
        prompt_ids([{"text": "a"}], tiny.tokenizer())
    assert prompt_ids([], tiny.tokenizer()) == []


def test_many_rows_keep_their_order_and_place() -> None:
    data = datasets.Dataset.from_dict(
        {"text": [str(at) for at in range(2500)], WHERE: [f"a:{at}" for at in range(2500)]}
    )
    found = tokenize(data.select(range(2499, -1, -1)), tiny.tokenizer())
    assert bytes(found[3]["input_ids"][:-1]).decode() == "2496"
    assert found[3][WHERE] == "a:2496"
    assert len(found) == 2500
    assert len(tokenize(data.select([]), tiny.tokenizer())) == 0


def test_a_begin_token_stands_before_texts_and_prompts() -> None:
    """Llama's tokenizers put one before every text; a completion continues a text, so it gets none."""
    from tokenizers import processors

    tokenizer = tiny.tokenizer()
    tokenizer.bos_token = tiny.START
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{tiny.START} $A", special_tokens=[(tiny.START, 257)]
    )
    assert coded({"text": "a"}, tokenizer)["input_ids"] == [257, 97, END]
    assert coded({"prompt": "a", "completion": "b"}, tokenizer)["input_ids"] == [257, 97, 98, END]
    assert prompt_ids([{"prompt": "a"}], tokenizer) == [[257, 97]]


def test_fingerprints_follow_rules_and_template_only() -> None:
    first, second = tiny.tokenizer(), tiny.tokenizer()
    second(["a", "bc"], padding=True, truncation=True, max_length=1)
    assert fingerprints(first) == fingerprints(second)
    second.chat_template = PLAIN_TEMPLATE
    assert fingerprints(first)[0] == fingerprints(second)[0]
    assert fingerprints(first)[1] != fingerprints(second)[1]
    second.add_tokens(["new"])
    assert fingerprints(first)[0] != fingerprints(second)[0]
    second.chat_template = None
    assert fingerprints(second)[1] == ""
