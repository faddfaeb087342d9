"""Examples as token ids, with a mask of the tokens that are trained."""

from __future__ import annotations

import hashlib
import json
import re
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa
from jinja2 import TemplateError

from seqtune.data.rows import WHERE, clean
from seqtune.errors import SeqtuneError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

Ids = list[int]
Span = tuple[int, int]
Coded = tuple[Ids, list[bool]]
"""Token ids and, for each, whether it is trained."""

_BATCH = 1000
_PROBE = "seqtune"  # stands for an answer when a chat template is asked how it ends a turn


def tokenize(dataset: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
    """Token ids of examples in the formats text, prompt_completion and messages.

    What is trained: of text every token; of a prompt and its completion the completion; of a conversation the turns of
    the assistant. The end-of-sequence token, or the one that ends a turn, is added and trained, or a model would not
    learn to stop. The ids of a prompt are those `prompt_ids` gives for generation, then those of the completion.

    Args:
        dataset: Columns `messages`, or `prompt` and `completion`, or `text`.
        tokenizer: Of the model; conversations need its chat template.

    Returns:
        Columns `input_ids` (int32) and `loss_mask` (bool), equally long, and `rows.WHERE` if the data has it.

    Raises:
        SeqtuneError: The columns are none of these, the tokenizer has no chat template, or a conversation has no token
            to train or no trained end of turn (its file and line are named).
    """
    names = set(dataset.column_names)
    build: Callable[[list[dict[str, Any]]], list[Coded]]
    if "messages" in names:
        build = _Chat(tokenizer).conversations
    elif {"prompt", "completion"} <= names:
        chat = len(dataset) > 0 and isinstance(dataset[0]["prompt"], list)
        build = _Chat(tokenizer).completions if chat else lambda batch: _completions(batch, tokenizer)
    elif "text" in names:
        build = lambda batch: _texts(batch, tokenizer)  # noqa: E731 -- one of three builders, named by its use
    else:
        raise SeqtuneError(
            f"examples with columns {', '.join(sorted(names - {WHERE}))} cannot be trained on as sequences",
            "data.format",
            "use data.format=text, prompt_completion or messages",
        )
    wanted = ["messages", "prompt", "completion", "text", WHERE]
    plain = dataset.select_columns([name for name in wanted if name in names]).with_format("arrow")
    tables = [_table(batch, build(batch)) for batch in (part.to_pylist() for part in plain.iter(_BATCH))]
    return datasets.Dataset(pa.concat_tables(tables or [_table([], [])]))


def prompt_ids(rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[Ids]:
    """Token ids of the prompts, ready to be continued.

    Args:
        rows: Each with a `prompt`: a string, or messages, which get the chat template and the header of the answer.
        tokenizer: Of the model.

    Raises:
        SeqtuneError: A row has no prompt, or the chat template is missing or refuses a conversation.
    """
    batch = list(rows)
    for row in batch:
        if not row.get("prompt"):
            raise SeqtuneError("there is no prompt to continue", _place(row), "use a data.format that has prompts")
    if not batch:
        return []
    if isinstance(batch[0]["prompt"], list):
        chat = _Chat(tokenizer)
        texts = [chat.render(row["prompt"], row, answer=True) for row in batch]
        return _ids(texts, tokenizer)
    start = _start(tokenizer)
    return [start + ids for ids in _ids([row["prompt"] for row in batch], tokenizer)]


def _texts(batch: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[Coded]:
    start, end = _start(tokenizer), _end(tokenizer)
    found = []
    for ids in _ids([row["text"] for row in batch], tokenizer):
        whole = [*start, *ids, end]
        found.append((whole, [True] * len(whole)))
    return found


def _completions(batch: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[Coded]:
    end = _end(tokenizer)
    prompts = prompt_ids(batch, tokenizer)
    completions = _ids([row["completion"] for row in batch], tokenizer)
    return [
        ([*prompt, *completion, end], [False] * len(prompt) + [True] * (len(completion) + 1))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


class _Chat:
    """The chat template of one tokenizer: conversations as text, and which characters of it are trained."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise SeqtuneError(
                "the tokenizer has no chat template, so conversations cannot be written as text",
                "model.tokenizer",
                "take the tokenizer of a chat model, or set data.chat=false",
            )
        if not tokenizer.is_fast:
            raise SeqtuneError(
                "the tokenizer cannot tell which token stands for which character", "model.tokenizer", "take a fast one"
            )
        self._tokenizer = tokenizer
        self._template: str = tokenizer.get_chat_template()
        self._marks = re.search(r"\{%-?\s*generation\s*-?%\}", self._template) is not None
        self._stop = self._stop_text()

    def render(self, messages: Sequence[Mapping[str, Any]], row: Mapping[str, Any], *, answer: bool = False) -> str:
        """The conversation as text; with `answer` up to where the assistant begins to speak."""
        return self._render(messages, row, answer)[0]

    def conversations(self, batch: list[dict[str, Any]]) -> list[Coded]:
        return self._tokenized([(row, row["messages"], 0) for row in batch])

    def completions(self, batch: list[dict[str, Any]]) -> list[Coded]:
        return self._tokenized([(row, [*row["prompt"], *row["completion"]], len(row["prompt"])) for row in batch])

    def _tokenized(self, batch: list[tuple[dict[str, Any], list[dict[str, Any]], int]]) -> list[Coded]:
        rendered = [self._spans(row, messages, first) for row, messages, first in batch]
        coded = self._tokenizer(
            [text for text, _ in rendered], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        found: list[Coded] = []
        for (row, messages, first), (text, spans), ids, offsets in zip(
            batch, rendered, coded["input_ids"], coded["offset_mapping"], strict=True
        ):
            starts = np.array([start for start, _ in offsets], dtype=np.int64)
            ends = np.array([end for _, end in offsets], dtype=np.int64)
            mask = np.zeros(len(ids), dtype=bool)
            ended = 0
            for start, end in spans:
                # Some tokenizers cut blanks off the offsets: a token of blanks alone then has an empty place.
                mask |= (starts >= start) & (ends <= end) & ((ends > starts) | (starts > start))
                stops = [start + match.start() for match in re.finditer(re.escape(self._stop), text[start:end])]
                ended += sum(bool(mask[(starts >= stop) & (starts < stop + len(self._stop))].any()) for stop in stops)
            turns = sum(message["role"] == "assistant" for message in messages[first:])
            if not mask.any() or ended < turns:
                raise SeqtuneError(
                    "an assistant turn has no token to train, or its end is not trained",
                    _place(row),
                    "the chat template must write the turn and the token that ends it"
                    + (" inside {% generation %}" if self._marks else ""),
                )
            found.append((ids, mask.tolist()))
        return found

    def _spans(
        self, row: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], first: int
    ) -> tuple[str, list[Span]]:
        """The conversation as text and its trained parts `[start, end)` in characters, from message `first` on."""
        text, marked = self._render(messages, row, False, marks=self._marks)
        if self._marks:
            prompt = len(self.render(messages[:first], row)) if first else 0
            spans = [span for span in marked if span[0] >= prompt]
        else:
            turns = [at for at in range(first, len(messages)) if messages[at]["role"] == "assistant"]
            spans = [self._turn(row, messages, at, text) for at in turns]
        return text, spans

    def _turn(self, row: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], at: int, text: str) -> Span:
        """Where the assistant's turn `at` stands: from the header of the answer to the end-of-turn token."""
        before = self.render(messages[:at], row, answer=True)
        stop = text.find(self._stop, len(before)) if self._stop else -1
        if not text.startswith(before) or stop < 0:
            raise SeqtuneError(
                f"the chat template does not show where the assistant's turn in message {at + 1} stands",
                _place(row),
                "mark assistant turns in the template with {% generation %} … {% endgeneration %}",
            )
        return len(before), stop + len(self._stop)

    def _stop_text(self) -> str:
        """What the template writes after an answer, without blanks: the text of the end-of-turn token.

        Only the tokens it writes both at the end and before another turn: some templates close a talk with more.
        """
        question = {"role": "user", "content": "?"}
        talk = [question, {"role": "assistant", "content": _PROBE}]
        tails = [self.render(messages, {}).rpartition(_PROBE)[2] for messages in (talk, [*talk, question])]
        coded = self._tokenizer(tails, add_special_tokens=False, return_offsets_mapping=True)
        both = zip(coded["offset_mapping"][0], *coded["input_ids"], strict=False)
        ends = [end for (_, end), _, _ in takewhile(lambda token: token[1] == token[2], both)]
        return tails[0][: ends[-1]].strip() if ends else ""

    def _render(
        self, messages: Sequence[Mapping[str, Any]], row: Mapping[str, Any], answer: bool, *, marks: bool = False
    ) -> tuple[str, list[Span]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        settings: dict[str, Any] = {"add_generation_prompt": answer, **self._tokenizer.special_tokens_map}
        try:
            rendered: Any = render_jinja_template(
                conversations=[[clean(message) for message in messages]],
                chat_template=self._template,
                return_assistant_tokens_mask=marks,
                **settings,
            )
        except TemplateError as error:
            raise SeqtuneError(
                f"the chat template refuses the conversation: {error}",
                _place(row),
                "mend the order of its roles, or leave the row out",
            ) from error
        texts, spans = rendered
        return texts[0], spans[0] if marks else []


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[Ids]:
    coded: list[Ids] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    return coded


def _start(tokenizer: PreTrainedTokenizerBase) -> Ids:
    """The begin-of-sequence token, where the tokenizer puts one before a text."""
    return [tokenizer.bos_token_id] if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else []


def _end(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise SeqtuneError("the tokenizer has no end-of-sequence token", "model.tokenizer", "take one that has")
    return int(tokenizer.eos_token_id)


def _place(row: Mapping[str, Any]) -> str:
    return str(row.get(WHERE, ""))


def _table(batch: list[dict[str, Any]], coded: list[Coded]) -> pa.Table:
    table = pa.table(
        {
            "input_ids": pa.array([ids for ids, _ in coded], type=pa.list_(pa.int32())),
            "loss_mask": pa.array([mask for _, mask in coded], type=pa.list_(pa.bool_())),
        }
    )
    if batch and WHERE in batch[0]:
        table = table.append_column(WHERE, pa.array([row[WHERE] for row in batch], type=pa.string()))
    return table


def fingerprints(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """sha256 of what decides a tokenizer's ids (vocabulary, rules, special tokens), and of its chat template ("" without)."""
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        rules.pop("padding", None)  # state of the last call, not of the tokenizer
        rules.pop("truncation", None)
    else:
        rules = tokenizer.get_vocab()
    canonical = json.dumps([rules, tokenizer.special_tokens_map], sort_keys=True, default=str)
    template = tokenizer.get_chat_template() if tokenizer.chat_template else ""
    return _sha256(canonical), _sha256(template) if template else ""


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
