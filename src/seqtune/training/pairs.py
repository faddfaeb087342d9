"""Preference pairs as token ids, tokenised as SFT tokenises a prompt and its completion."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from datasets import Dataset

from seqtune.data import groups
from seqtune.data.rows import WHERE
from seqtune.data.tokenize import tokenize
from seqtune.errors import SeqtuneError
from seqtune.training.forest import Scored
from seqtune.training.stage import check_length

if TYPE_CHECKING:
    from seqtune.training.stage import StageRun

SIDES = ("chosen", "rejected")


def pairs(run: StageRun) -> tuple[Dataset, Dataset | None]:
    """The training and held-out pairs of a stage.

    Returns:
        Columns `prompt_ids`, `chosen_ids` and `rejected_ids`; None for the held-out ones if there are none. A prompt
        with one of its completions has at most `packing.capacity` tokens.

    Raises:
        SeqtuneError: A pair is too long and `packing.on_overflow` is `error`, or none is
            left.
    """
    train, heldout = (_pairs(run, _given(run, part)) for part in (run.examples.train, run.examples.heldout))
    if not len(train):
        raise SeqtuneError(
            "no training pair is left", where="packing.capacity", hint="raise it, or packing.on_overflow=truncate"
        )
    longest = max(len(row["prompt_ids"]) + max(len(row[f"{side}_ids"]) for side in SIDES) for row in train)
    check_length(run, longest)
    return train, heldout if len(heldout) else None


def pair_tokens(row: dict[str, list[int]]) -> int:
    """Tokens of a pair, the prompt counted once."""
    return sum(len(row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids"))


def sequences(rows: list[dict[str, list[int]]], sides: tuple[str, ...] = SIDES) -> list[Scored]:
    """The sequences of some pairs, all chosen ones and then all rejected ones; completions are scored."""
    found = []
    for side in sides:
        for row in rows:
            prompt, completion = row["prompt_ids"], row[f"{side}_ids"]
            ids = np.array([*prompt, *completion], dtype=np.int64)
            found.append(Scored(ids, np.arange(len(ids)) >= max(len(prompt), 1)))
    return found


def _given(run: StageRun, examples: Dataset) -> Dataset:
    """The examples as pairs: as they are, or made of groups as `data.pairs` says."""
    if run.stage.data.format != "groups":
        return examples
    found, silent = groups.pairs(examples, run.stage.data.pairs)
    if silent:
        run.notice(f"{silent} of {len(examples)} groups have no two completions with different scores: left out")
    return found


def _pairs(run: StageRun, examples: Dataset) -> Dataset:
    if not len(examples):
        return Dataset.from_dict({"prompt_ids": [], "chosen_ids": [], "rejected_ids": []})
    places = examples[WHERE] if WHERE in examples.column_names else [f"pair {n}" for n in range(1, len(examples) + 1)]
    sides = (completions(run, examples, side, places) for side in SIDES)
    found: dict[str, list[list[int]]] = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": []}
    overlong: list[str] = []
    for where, chosen, rejected in zip(places, *sides, strict=True):
        # A chat template may end the two prompts differently: what they share is the prompt.
        start = min(chosen.start, rejected.start)
        room = run.stage.packing.capacity - start
        ends = [side.ids[start:] for side in (chosen, rejected)]
        if max(map(len, ends)) > room:
            overlong.append(where)
            if run.stage.packing.on_overflow != "truncate" or room < 1:
                continue
        for name, ids in zip(found, (chosen.ids[:start], *ends), strict=True):
            found[name].append(ids[:room] if name != "prompt_ids" else ids)
    _report(run, overlong)
    return Dataset.from_dict(found)


class Side(NamedTuple):
    """A prompt with one of its completions."""

    ids: list[int]
    """Prompt and completion, up to the last token that is trained."""
    start: int
    """Where the completion starts."""


def completions(run: StageRun, examples: Dataset, side: str, places: list[str]) -> list[Side]:
    """The completions in column `side` with their prompts, tokenised as SFT tokenises a prompt and its completion.

    Args:
        run: Its tokenizer is used.
        examples: Columns `prompt` and `side`.
        side: Name of the column.
        places: Where each row is found, for messages.

    Raises:
        SeqtuneError: A completion holds more than one assistant turn, or the chat template refuses it.
    """
    renamed = examples.select_columns(["prompt", side, *({WHERE} & set(examples.column_names))])
    found = []
    for where, row in zip(places, tokenize(renamed.rename_column(side, "completion"), run.tokenizer), strict=True):
        ids, mask = row["input_ids"], row["loss_mask"]
        start, stop = mask.index(True), len(mask) - mask[::-1].index(True)
        if not all(mask[start:stop]):
            raise SeqtuneError(
                f"the {side} completion holds more than one assistant turn",
                where=where,
                hint="move all turns but the last into the prompt",
            )
        found.append(Side(ids[:stop], start))
    return found


def _report(run: StageRun, overlong: list[str]) -> None:
    packing = run.stage.packing
    if not overlong:
        return
    longer = f"{len(overlong)} pairs are longer than packing.capacity={packing.capacity} tokens"
    if packing.on_overflow in ("error", "split"):
        split = "; a pair cannot be split" if packing.on_overflow == "split" else ""
        raise SeqtuneError(
            f"{longer}{split}",
            where=", ".join(overlong[:5]),
            hint="raise packing.capacity, or packing.on_overflow=truncate or drop",
        )
    run.notice(f"{longer}: {'cut' if packing.on_overflow == 'truncate' else 'left out'}")
