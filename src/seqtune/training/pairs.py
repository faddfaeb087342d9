"""Preference pairs as token ids, tokenised as SFT tokenises a prompt and its completion."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datasets import Dataset

from seqtune.data.rows import WHERE
from seqtune.data.tokenize import tokenize
from seqtune.errors import SeqtuneError
from seqtune.training.common import check_length

if TYPE_CHECKING:
    from seqtune.training.common import StageRun

SIDES = ("chosen", "rejected")


def pairs(run: StageRun) -> tuple[Dataset, Dataset | None]:
    """The training and held-out pairs of a stage.

    Returns:
        Columns `prompt_ids`, `chosen_ids` and `rejected_ids`; None for the held-out ones if there are none. A prompt
        with one of its completions has at most `packing.capacity` tokens.

    Raises:
        SeqtuneError: The examples are no pairs, a pair is too long and `packing.on_overflow` is `error`, or none is left.
    """
    train = _pairs(run, run.examples.train)
    heldout = _pairs(run, run.examples.heldout) if len(run.examples.heldout) else None
    if not len(train):
        raise SeqtuneError(
            "no training pair is left", where="packing.capacity", hint="raise it, or packing.on_overflow=truncate"
        )
    longest = max(len(row["prompt_ids"]) + max(len(row[f"{side}_ids"]) for side in SIDES) for row in train)
    check_length(run, longest)
    return train, heldout if heldout is not None and len(heldout) else None


def _pairs(run: StageRun, examples: Dataset) -> Dataset:
    missing = {"prompt", *SIDES} - set(examples.column_names)
    if missing:
        raise SeqtuneError(
            f"preference training needs pairs, but the examples have no column {', '.join(sorted(missing))}",
            where="data.format",
            hint="data.format=preference",
        )
    sides = {side: _completions(run, examples, side) for side in SIDES}
    rows = []
    overlong: list[str] = []
    for where, (prompt, chosen) in sides["chosen"].items():
        if where not in sides["rejected"]:
            continue
        other, rejected = sides["rejected"][where]
        if len(other) < len(prompt):  # a template may end the two prompts differently: keep what they share
            prompt, chosen = other, [*prompt[len(other) :], *chosen]
        elif len(prompt) < len(other):
            rejected = [*other[len(prompt) :], *rejected]
        room = run.stage.packing.capacity - len(prompt)
        if max(len(chosen), len(rejected)) > room:
            overlong.append(where)
            if run.stage.packing.on_overflow != "truncate" or room < 1:
                continue
        rows.append({"prompt_ids": prompt, "chosen_ids": chosen[:room], "rejected_ids": rejected[:room]})
    _report(run, overlong)
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    return Dataset.from_dict({name: [row[name] for row in rows] for name in columns})


def _completions(run: StageRun, examples: Dataset, side: str) -> dict[str, tuple[list[int], list[int]]]:
    """Prompt and completion of one side by the place of its row."""
    columns = ["prompt", side, *({WHERE} & set(examples.column_names))]
    renamed = examples.select_columns(columns).rename_column(side, "completion")
    found = {}
    on_error = getattr(run.stage.data, "on_error", "error")
    for row in tokenize(renamed, run.tokenizer, on_error=on_error):
        ids, mask = row["input_ids"], row["loss_mask"]
        start, stop = mask.index(True), len(mask) - mask[::-1].index(True)
        if not all(mask[start:stop]):
            raise SeqtuneError(
                f"the {side} completion holds more than one assistant turn",
                where=row[WHERE],
                hint="move all turns but the last into the prompt",
            )
        found[row[WHERE]] = (ids[:start], ids[start:stop])
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
