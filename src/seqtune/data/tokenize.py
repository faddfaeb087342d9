"""Examples as token ids, with a mask of the tokens that are trained."""

from __future__ import annotations

import hashlib
import json
import re
from itertools import chain, takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
from jinja2 import TemplateError

from seqtune.data.byte_bpe import byte_bpe
from seqtune.data.rows import WHERE, BadRow, BadRows, clean
from seqtune.errors import SeqtuneError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from seqtune.data.byte_bpe import ByteBpe

Ids = list[int]
Span = tuple[int, int]

_BATCH = 1000
_PROBE = "seqtune"  # stands for an answer when a chat template is asked how it ends a turn


def tokenize(
    dataset: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, bad: BadRows | None = None
) -> datasets.Dataset:
    """Token ids of examples in the formats text, prompt_completion and messages.

    What is trained: of text every token; of a prompt and its completion the completion; of a conversation the turns of
    the assistant. The end-of-sequence token, or the one that ends a turn, is added and trained, or a model would not
    learn to stop. The ids of a prompt are those `prompt_ids` gives for generation, then those of the completion.

    Args:
        dataset: Columns `messages`, or `prompt` and `completion`, or `text`.
        tokenizer: Of the model; conversations need its chat template.
        bad: Takes the rows that cannot be trained, which are then left out; without it they are an error.

    Returns:
        Columns `input_ids` (int32) and `loss_mask` (bool), equally long, and `rows.WHERE` if the data has it.

    Raises:
        SeqtuneError: The columns are none of these, the tokenizer has no chat template, or (without `bad`) the chat
            template refuses conversations, or they have no token to train or no trained end of turn: the first five are
            named with file and line.
    """
    names = dataset.column_names
    wanted = ["messages", "prompt", "completion", "text", WHERE]
    plain = dataset.select_columns([name for name in wanted if name in names]).with_format("arrow")
    encode = Encoder(tokenizer, names)
    account = bad or BadRows("error")
    tables = [_table(batch, encode(batch), account) for batch in (part.to_pylist() for part in plain.iter(_BATCH))]
    if bad is None:
        account.close()
    return datasets.Dataset(pa.concat_tables(tables or [_table([], encode([]), account)]))


class Encoded(NamedTuple):
    """Examples as token ids. `D` examples of `T` tokens together."""

    ids: NDArray[np.int32]
    """Tokens of all examples, one after another. [T]"""
    mask: NDArray[np.uint8]
    """1 where a token is trained. [T]"""
    sizes: NDArray[np.int64]
    """Tokens of each example, 0 of one that cannot be trained on. [D]"""
    faults: list[BadRow | None]
    """Why it cannot. [D]"""


class Encoder:
    """Turns examples into token ids, as `tokenize` says.

    Args:
        tokenizer: Of the model.
        names: Columns of the examples.

    Raises:
        SeqtuneError: The columns are those of no format that is trained on as sequences.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, names: Iterable[str]) -> None:
        known = set(names)
        if not known & {"messages", "text"} and not {"prompt", "completion"} <= known:
            raise SeqtuneError(
                f"examples with columns {', '.join(sorted(known - {WHERE}))} cannot be trained on as sequences",
                "data.format",
                "use data.format=text, prompt_completion or messages",
            )
        self._tokenizer = tokenizer
        self._format = "messages" if "messages" in known else "pairs" if "prompt" in known else "text"
        self._chat: _Chat | None = None
        self._words = byte_bpe(tokenizer) if _calls_its_rules(tokenizer) else None

    def __call__(self, batch: Sequence[Mapping[str, Any]]) -> Encoded:
        """The token ids of a batch.

        Raises:
            SeqtuneError: The tokenizer lacks the chat template or the end-of-sequence token that they need.
        """
        if not batch:
            return _encoded([], [])
        if self._format == "text":
            return _texts(batch, self._tokenizer, self._words)
        if self._format == "pairs" and isinstance(batch[0]["prompt"], str):
            return _completions(batch, self._tokenizer, self._words)
        self._chat = self._chat or _Chat(self._tokenizer)
        return self._chat.conversations(batch) if self._format == "messages" else self._chat.completions(batch)


def prompt_ids(rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[Ids]:
    """Token ids of the prompts, ready to be continued.

    Args:
        rows: Each with a `prompt`: a string, or messages, which get the chat template and the header of the answer.
        tokenizer: Of the model.

    Raises:
        SeqtuneError: A row has no prompt, or the chat template is missing or refuses a conversation.
    """
    batch = list(rows)
    _have_prompts(batch)
    if not batch:
        return []
    if isinstance(batch[0]["prompt"], list):
        chat = _Chat(tokenizer)
        texts = []
        for row in batch:
            try:
                texts.append(chat.render(row["prompt"], answer=True))
            except BadRow as fault:
                where = str(row.get(WHERE, ""))
                hint = "mend the order of its roles, or leave the row out"
                raise SeqtuneError(f"{fault.reason}: {fault.detail}", where, hint) from fault
        return _ids(texts, tokenizer)
    start = _start(tokenizer)
    return [start + ids for ids in _ids([row["prompt"] for row in batch], tokenizer)]


def _have_prompts(batch: Sequence[Mapping[str, Any]]) -> None:
    for row in batch:
        if not row.get("prompt"):
            raise SeqtuneError(
                "there is no prompt to continue", str(row.get(WHERE, "")), "use a data.format that has prompts"
            )


def _texts(batch: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, words: ByteBpe | None) -> Encoded:
    start, end = (np.array(ids, dtype=np.int32) for ids in (_start(tokenizer), [_end(tokenizer)]))
    coded = _arrays([row["text"] for row in batch], tokenizer, words)
    return _encoded([(start, ids, end) for ids in coded], [0] * len(coded))


def _completions(
    batch: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, words: ByteBpe | None
) -> Encoded:
    _have_prompts(batch)
    start, end = (np.array(ids, dtype=np.int32) for ids in (_start(tokenizer), [_end(tokenizer)]))
    prompts = _arrays([row["prompt"] for row in batch], tokenizer, words)
    completions = _arrays([row["completion"] for row in batch], tokenizer, words)
    coded = [(start, prompt, completion, end) for prompt, completion in zip(prompts, completions, strict=True)]
    return _encoded(coded, [len(start) + len(prompt) for prompt in prompts])


def _encoded(coded: Sequence[tuple[NDArray[np.int32], ...]], untrained: list[int]) -> Encoded:
    """Examples, each given in pieces, whose tokens are trained but for the first `untrained` of each."""
    sizes = np.fromiter((sum(map(len, pieces)) for pieces in coded), np.int64, len(coded))
    total = int(sizes.sum())
    within = np.arange(total) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    mask = (within >= np.repeat(np.asarray(untrained, dtype=np.int64), sizes)).astype(np.uint8)
    ids = np.concatenate([np.zeros(0, dtype=np.int32), *chain.from_iterable(coded)])
    return Encoded(ids, mask, sizes, [None] * len(coded))


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

    def render(self, messages: Sequence[Mapping[str, Any]], *, answer: bool = False) -> str:
        """The conversation as text; with `answer` up to where the assistant begins to speak.

        Raises:
            BadRow: The template refuses the conversation.
        """
        return self._render(messages, answer)[0]

    def conversations(self, batch: Sequence[Mapping[str, Any]]) -> Encoded:
        return self._tokenized([(row["messages"], 0) for row in batch])

    def completions(self, batch: Sequence[Mapping[str, Any]]) -> Encoded:
        return self._tokenized([([*row["prompt"], *row["completion"]], len(row["prompt"])) for row in batch])

    def _tokenized(self, batch: list[tuple[list[dict[str, Any]], int]]) -> Encoded:
        """Of each conversation and the message from which on the assistant's turns are trained."""
        rendered = [self._spans(messages, first) for messages, first in batch]
        texts = ["" if isinstance(made, BadRow) else made[0] for made in rendered]
        coded = self._tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids: list[tuple[NDArray[np.int32], ...]] = []
        masks = [np.zeros(0, dtype=bool)]
        faults: list[BadRow | None] = []
        for made, tokens, offsets in zip(rendered, coded["input_ids"], coded["offset_mapping"], strict=True):
            found = made if isinstance(made, BadRow) else self._masked(*made, offsets)
            faults.append(found if isinstance(found, BadRow) else None)
            ids.append(() if isinstance(found, BadRow) else (np.array(tokens, dtype=np.int32),))
            masks += [] if isinstance(found, BadRow) else [found]
        whole = _encoded(ids, [0] * len(ids))
        return whole._replace(mask=np.concatenate(masks).astype(np.uint8), faults=faults)

    def _masked(self, text: str, spans: list[Span], turns: int, offsets: list[Span]) -> NDArray[np.bool_] | BadRow:
        starts = np.array([start for start, _ in offsets], dtype=np.int64)
        ends = np.array([end for _, end in offsets], dtype=np.int64)
        mask = np.zeros(len(offsets), dtype=bool)
        ended = 0
        for start, end in spans:
            # Some tokenizers cut blanks off the offsets: a token of blanks alone then has an empty place.
            turn = (starts >= start) & (ends <= end) & ((ends > starts) | (starts > start))
            stop = text.rfind(self._stop, start, end) if self._stop else -1
            ended += stop >= 0 and bool(turn[(starts >= stop) & (starts < stop + len(self._stop))].any())
            mask |= turn
        if not mask.any():
            return BadRow("no trainable token", "the chat template writes no turn of the assistant")
        if ended < turns:
            marks = "; its {% generation %} must reach to the token that ends the turn" if self._marks else ""
            return BadRow("no end-of-turn token", f"the chat template leaves the end of a turn untrained{marks}")
        return mask

    def _spans(self, messages: Sequence[Mapping[str, Any]], first: int) -> tuple[str, list[Span], int] | BadRow:
        """The conversation as text, its trained parts `[start, end)` in characters, and how many turns they hold."""
        try:
            text, marked = self._render(messages, False, marks=self._marks)
            turns = [at for at in range(first, len(messages)) if messages[at]["role"] == "assistant"]
            if not self._marks:
                return text, [self._turn(messages, at, text) for at in turns], len(turns)
            prompt = len(self.render(messages[:first])) if first else 0
            return text, [span for span in marked if span[0] >= prompt], len(turns)
        except BadRow as fault:
            return fault

    def _turn(self, messages: Sequence[Mapping[str, Any]], at: int, text: str) -> Span:
        """Where the assistant's turn `at` stands: from the header of the answer to the end-of-turn token."""
        before = self.render(messages[:at], answer=True)
        stop = text.find(self._stop, len(before)) if self._stop else -1
        if not text.startswith(before) or stop < 0:
            raise BadRow(
                "chat template",
                f"it does not show where the assistant's turn in message {at + 1} stands; "
                "mark such turns in the template with {% generation %} … {% endgeneration %}",
            )
        return len(before), stop + len(self._stop)

    def _stop_text(self) -> str:
        """What the template writes after an answer, without blanks: the text of the end-of-turn token.

        Only the tokens it writes both at the end and before another turn: some templates close a talk with more.
        """
        question = {"role": "user", "content": "?"}
        talk = [question, {"role": "assistant", "content": _PROBE}]
        try:
            tails = [self.render(messages).rpartition(_PROBE)[2] for messages in (talk, [*talk, question])]
        except BadRow as fault:
            raise SeqtuneError(
                fault.detail, "model.tokenizer", "mend the template: it must take user and assistant"
            ) from fault
        coded = self._tokenizer(tails, add_special_tokens=False, return_offsets_mapping=True)
        both = zip(coded["offset_mapping"][0], *coded["input_ids"], strict=False)
        ends = [end for (_, end), _, _ in takewhile(lambda token: token[1] == token[2], both)]
        return tails[0][: ends[-1]].strip() if ends else ""

    def _render(
        self, messages: Sequence[Mapping[str, Any]], answer: bool, *, marks: bool = False
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
            raise BadRow("chat template", f"it refuses the conversation: {error}") from error
        texts, spans = rendered
        return texts[0], spans[0] if marks else []


def _arrays(texts: list[str], tokenizer: PreTrainedTokenizerBase, words: ByteBpe | None) -> list[NDArray[np.int32]]:
    """Token ids of texts, by `words` where it can."""
    quick = [words(text) if words else None for text in texts]
    slow = iter(_ids([text for text, ids in zip(texts, quick, strict=True) if ids is None], tokenizer))
    return [np.array(next(slow), dtype=np.int32) if ids is None else ids for ids in quick]


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[Ids]:
    if not texts:
        return []
    if _calls_its_rules(tokenizer):
        # What the tokenizer's own call does, without the offsets, masks and copies that nobody reads here.
        rules = tokenizer.backend_tokenizer
        rules.no_truncation()
        rules.no_padding()
        rules.encode_special_tokens = tokenizer.split_special_tokens
        return [coded.ids for coded in rules.encode_batch_fast(texts, add_special_tokens=False)]
    coded: list[Ids] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return coded


def _calls_its_rules(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a call of the tokenizer does nothing but to apply its rules."""
    from transformers import PreTrainedTokenizerFast

    kind, backend = type(tokenizer), PreTrainedTokenizerFast
    own = (kind.__call__, kind._encode_plus) == (backend.__call__, backend._encode_plus)
    return bool(tokenizer.is_fast and own)


def _start(tokenizer: PreTrainedTokenizerBase) -> Ids:
    """The begin-of-sequence token, where the tokenizer puts one before a text."""
    return [tokenizer.bos_token_id] if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else []


def _end(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise SeqtuneError("the tokenizer has no end-of-sequence token", "model.tokenizer", "take one that has")
    return int(tokenizer.eos_token_id)


def _table(batch: list[dict[str, Any]], coded: Encoded, bad: BadRows) -> pa.Table:
    for row, fault in zip(batch, coded.faults, strict=True):
        if fault is not None:
            bad.add(str(row.get(WHERE, "")), fault)
    good = [at for at, fault in enumerate(coded.faults) if fault is None]
    offsets = np.concatenate([[0], np.cumsum(coded.sizes[good])]).astype(np.int32)
    table = pa.table(
        {
            "input_ids": pa.ListArray.from_arrays(pa.array(offsets), pa.array(coded.ids)),
            "loss_mask": pa.ListArray.from_arrays(pa.array(offsets), pa.array(coded.mask.astype(bool))),
        }
    )
    if batch and WHERE in batch[0]:
        table = table.append_column(WHERE, pa.array([batch[at].get(WHERE) for at in good], type=pa.string()))
    return table


def fingerprints(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """sha256 of what decides a tokenizer's ids (vocabulary, rules, special tokens) and of its chat template ("")."""
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
