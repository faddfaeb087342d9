"""Training on groups of scored completions that exist already, without rollouts.

A row is a prompt with some of its completions: a whole group, or a single text where texts are drawn one by one. Its
completions share the prompt, and whatever else they begin with, in the segment forest.

Shapes: `B` completions of a micro-batch, `L` tokens of the longest, `P` rows, `K` completions of the largest.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from trl import SFTConfig, SFTTrainer
from trl.models import prepare_fsdp
from trl.trainer.utils import disable_dropout_in_model

from seqtune.data.rows import WHERE
from seqtune.errors import SeqtuneError
from seqtune.models.forest import use_forest
from seqtune.objectives.a_lol import priorities
from seqtune.objectives.reduce import sequence_mean
from seqtune.training.forest import MicroBatch, Scored, Tokens, lay_out, token_scores
from seqtune.training.pairs import completions
from seqtune.training.rollouts import token_texts
from seqtune.training.stage import StageRun, Stream, at_start, check_length, optimiser_steps, training_arguments
from seqtune.training.staged import Measured, reference_logps
from seqtune.training.supervised import StepRows, Supervised
from seqtune.training.values import values_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Groups:
    """A micro-batch: rows of the data, and the layout of their completions, row by row."""

    rows: list[dict[str, Any]]
    forest: MicroBatch
    advantages: Tensor | None = None
    """[B], or [B, L] where tokens differ; NaN for what is left out. None where the objective takes scores."""

    @property
    def tokens(self) -> Tokens:
        """What the layout saves."""
        return self.forest.tokens

    @property
    def mask(self) -> Tensor:
        """[B, L] which places hold a token of a completion."""
        return self.forest.index >= 0

    @property
    def sizes(self) -> list[int]:
        """Completions of each row. [P]"""
        return [len(row["completion_ids"]) for row in self.rows]

    def column(self, name: str, like: Tensor) -> Tensor:
        """[B] a number of each completion, on the device and in the dtype of `like`."""
        return like.new_tensor([value for row in self.rows for value in row[name]])


class Offline(Supervised, SFTTrainer):  # type: ignore[misc]  # TRL is untyped
    """`SFTTrainer` whose rows are groups of completions and whose loss is the plan's objective on their log-probs.

    Args:
        reference: A frozen copy of the model the stage starts from; None where no objective asks for it, or where the
            model without its adapter is the same.
    """

    shared = True

    def __init__(self, run: StageRun, *, reference: PreTrainedModel | None, **kwargs: Any) -> None:
        super().__init__(run, **kwargs)
        self.reference: Any = None
        if reference is not None:
            use_forest(reference, run.stage.model.attention)
            self.reference = (
                prepare_fsdp(reference, self.accelerator)
                if self.is_fsdp_enabled
                else self.accelerator.prepare_model(reference, evaluation_mode=True)
            )

    def size(self, row: dict[str, Any]) -> int:
        return len(row["prompt_ids"]) + sum(map(len, row["completion_ids"]))

    def sequences(self, rows: list[dict[str, Any]]) -> list[Scored]:
        found = []
        for row in rows:
            prompt = row["prompt_ids"]
            for completion in row["completion_ids"]:
                ids = np.array([*prompt, *completion], dtype=np.int64)
                found.append(Scored(ids, np.arange(len(ids)) >= max(len(prompt), 1)))
        return found

    def lay(self, units: list[dict[str, Any]]) -> Groups:  # type: ignore[override]  # the rows go along
        return Groups(units, lay_out(self.sequences(units), self.accelerator.device, shared=True))

    @abstractmethod
    def judge(self, batch: Groups, logps: Tensor, denominator: Tensor | float) -> tuple[Tensor, dict[str, Tensor]]:
        """The plan's objective on the log-probs `[B, L]` of a micro-batch."""

    def measure(self, model: Any, batch: Groups, denominator: Tensor | float) -> Measured:
        inner = self.accelerator.unwrap_model(model)
        scores = token_scores(model, inner, batch.forest, entropy=True, aux=self.aux_loss_enabled)
        logps = batch.forest.by_sequence(scores.logps)
        loss, metrics = self.judge(batch, logps, denominator)
        with torch.no_grad():
            entropies = batch.forest.by_sequence(scores.entropy)  # type: ignore[arg-type]  # asked for
            metrics = {**metrics, "train/entropy": sequence_mean(entropies, batch.mask)}
        return Measured(
            loss,
            {key: value.detach() for key, value in metrics.items()},
            weight=torch.tensor(self.count(batch), device=logps.device),
            tokens=batch.tokens,
            aux=self.router_aux_loss_coef * scores.aux if scores.aux is not None else None,
        )

    def of_reference(self, batch: Groups) -> Tensor:
        """[B, L] log-probs of the model the stage started from."""
        return batch.forest.by_sequence(reference_logps(self, self.reference, batch.forest))


class Texts(Offline):
    """Likelihood of texts, weighted by the advantage of each (A-LoL).

    Args:
        fit: Metrics of the fitted values of the prompts; a group's mean has none.
    """

    def __init__(self, run: StageRun, *, fit: dict[str, float], **kwargs: Any) -> None:
        self.fit = fit
        super().__init__(run, **kwargs)

    def micro_batches(self, inputs: StepRows) -> list[Groups]:
        """Texts of one prompt next to each other, where they share it."""
        rows = sorted(inputs.rows, key=lambda row: row["prompt_ids"])
        return super().micro_batches(StepRows(rows))

    def count(self, batch: Groups) -> float:
        return float(sum(batch.sizes))

    def judge(self, batch: Groups, logps: Tensor, denominator: Tensor | float) -> tuple[Tensor, dict[str, Tensor]]:
        reference = self.of_reference(batch) if self.run.stage.objective.needs_reference else logps.detach()
        advantages, scores = (batch.column(name, logps) for name in ("advantages", "scores"))
        loss, metrics = self.objective(logps, reference, advantages, batch.mask, denominator=denominator)
        return loss, {**metrics, "reward/mean": scores.mean()}

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        stream: Any = super()._get_train_sampler(train_dataset)
        if getattr(self.run.stage.objective, "sampling", "all") != "priority":
            return stream
        advantages = torch.tensor([row[0] for row in (train_dataset or self.train_dataset)["advantages"]]).double()
        return Drawn(stream.total, priorities(advantages).numpy(), self.run.stage.train.seed)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The first row of training also tells how good the fitted values are."""
        if "loss" in logs and not any("loss" in row for row in self.state.log_history):
            logs.update(self.fit)
        super().log(logs, start_time)


class Lists(Offline):
    """The likelihoods of the completions of a prompt, ordered by their scores (SLiC)."""

    def count(self, batch: Groups) -> float:
        return float(len(batch.rows))

    def judge(self, batch: Groups, logps: Tensor, denominator: Tensor | float) -> tuple[Tensor, dict[str, Tensor]]:
        sums = torch.split(logps.sum(1), batch.sizes)
        scores = torch.split(batch.column("scores", logps), batch.sizes)
        found: tuple[Tensor, dict[str, Tensor]] = self.objective(
            pad_sequence(list(sums), batch_first=True),
            pad_sequence(list(scores), batch_first=True, padding_value=torch.nan),
            denominator=denominator,
        )
        return found


class Recorded(Offline):
    """A policy objective on completions that somebody else sampled: the old policy is the model the stage starts from.

    Who sampled them is not known, so there is nothing to correct for; the clip bounds how far the policy moves away
    from its start on each of them.
    """

    def __init__(self, run: StageRun, **kwargs: Any) -> None:
        super().__init__(run, **kwargs)
        disable_dropout_in_model(self.model)  # the old policy has none: ratios would leave 1 before any update

    def lay(self, units: list[dict[str, Any]]) -> Groups:  # type: ignore[override]  # as above
        batch = super().lay(units)
        return replace(batch, advantages=self._advantages(batch))

    def count(self, batch: Groups) -> float:
        unit = self.run.stage.objective.denominator_unit
        if unit == "tokens":
            left_out = batch.advantages.isnan()  # type: ignore[union-attr]  # `lay` gave them
            return float((batch.mask & ~(left_out if left_out.dim() == 2 else left_out.unsqueeze(1))).sum())
        return float(sum(batch.sizes) * (self.run.stage.packing.capacity if unit == "slots" else 1))

    def judge(self, batch: Groups, logps: Tensor, denominator: Tensor | float) -> tuple[Tensor, dict[str, Tensor]]:
        spec: Any = self.run.stage.objective
        old = self.of_reference(batch)
        reference = old if spec.beta > 0 else None
        given = {"segments": self._segments(batch)} if "segments" in spec.loss_inputs else {}
        found: tuple[Tensor, dict[str, Tensor]] = self.objective(
            logps, old, batch.advantages, batch.mask, reference, **given, denominator=denominator
        )
        return found

    def _advantages(self, batch: Groups) -> Tensor:
        """[B] or [B, L]; groups need not be of one size."""
        spec: Any = self.run.stage.objective
        ids = torch.zeros(batch.mask.shape, dtype=torch.long)
        mask = batch.mask.cpu()
        ids[mask] = torch.tensor([token for row in batch.rows for own in row["completion_ids"] for token in own])
        known = {
            "mask": mask,
            "completion_ids": ids,
            "ended": torch.tensor([ended for row in batch.rows for ended in row["ended"]]),
        }
        if "segments" in spec.advantage_inputs:
            known["segments"] = self._segments(batch).cpu()
        parts, start = [], 0
        for row, size in zip(batch.rows, batch.sizes, strict=True):
            own = slice(start, start + size)
            assign = spec.model_copy(update={"group_size": size}).build_advantage()
            inputs = {name: known[name][own] for name in sorted(spec.advantage_inputs)}
            parts.append(assign(torch.tensor(row["scores"]), **inputs))
            start += size
        return torch.cat(parts).to(batch.mask.device)

    def _segments(self, batch: Groups) -> Tensor:
        """Segment of each token, `[B, L]`; -1 outside the mask."""
        spec: Any = self.run.stage.objective
        segment = spec.build_segments()
        found = torch.full(batch.mask.shape, -1)
        written = [own for row in batch.rows for own in row["completion_ids"]]
        texts = token_texts(chain.from_iterable(written), self.run.tokenizer)
        for number, ids in enumerate(written):
            found[number, : len(ids)] = torch.tensor(segment([texts[token] for token in ids]))
        return found.to(batch.mask.device)


class Drawn(Stream):
    """Row numbers drawn with replacement.

    Args:
        total: How many.
        shares: Probability of each row. [rows]
        seed: Of the draws.
    """

    def __init__(self, total: int, shares: NDArray[np.float64], seed: int) -> None:
        super().__init__(len(shares), total, seed)
        self.shares = shares

    def __iter__(self) -> Iterator[int]:
        for start in range(0, self.total, self.rows):
            draws = np.random.default_rng((self.seed, start // self.rows)).choice(self.rows, self.rows, p=self.shares)
            yield from draws[: self.total - start].tolist()


def groups(run: StageRun, examples: Dataset) -> Dataset:
    """Groups as token ids.

    Returns:
        Columns `prompt_ids`, `completion_ids` and `ended` (whether it is whole) and `scores` of each completion, and
        `example`, the number of the row it came from. A prompt with one of its completions has at most
        `packing.capacity` tokens; groups of fewer than two completions are left out.

    Raises:
        SeqtuneError: A completion is too long and `packing.on_overflow` is `error`.
    """
    places = examples[WHERE] if WHERE in examples.column_names else [f"group {n}" for n in range(1, len(examples) + 1)]
    flat = [
        {"prompt": row["prompt"], "given": text, WHERE: place}
        for row, place in zip(examples, places, strict=True)
        for text in row["completions"]
    ]
    coded = iter(completions(run, Dataset.from_list(flat), "given", [row[WHERE] for row in flat]) if flat else [])
    capacity, policy = run.stage.packing.capacity, run.stage.packing.on_overflow
    found: list[dict[str, Any]] = []
    overlong: list[str] = []
    for number, (row, place) in enumerate(zip(examples, places, strict=True)):
        sides = [next(coded) for _ in row["completions"]]
        start = min(side.start for side in sides)
        made: dict[str, Any] = {"completion_ids": [], "ended": [], "scores": []}
        for side, score in zip(sides, row["scores"], strict=True):
            fits = len(side.ids) <= capacity
            if not fits:
                overlong.append(place)
                if policy != "truncate" or start >= capacity:
                    continue
            for name, value in zip(made, (side.ids[start:capacity], fits, score), strict=True):
                made[name].append(value)
        if len(made["scores"]) > 1:
            found.append({"prompt_ids": sides[0].ids[:start], **made, "example": number})
    _report(run, overlong, len(examples) - len(found))
    return Dataset.from_list(found)


def _report(run: StageRun, overlong: list[str], lost: int) -> None:
    packing = run.stage.packing
    if not overlong:
        return
    longer = (
        f"{len(overlong)} completions with their prompts are longer than packing.capacity={packing.capacity} tokens"
    )
    if packing.on_overflow not in ("truncate", "drop"):
        raise SeqtuneError(
            longer,
            where=", ".join(dict.fromkeys(overlong[:5])),
            hint="raise packing.capacity, or packing.on_overflow=drop or truncate",
        )
    gone = f"; {lost} groups with fewer than two are left out" if lost else ""
    run.notice(f"{longer}: {'cut' if packing.on_overflow == 'truncate' else 'left out'}{gone}")


def untied(run: StageRun, rows: Dataset) -> Dataset:
    """The groups with two different scores: the others say nothing of which completion is better."""
    kept = [number for number, scores in enumerate(rows["scores"]) if max(scores) > min(scores)]
    if len(kept) < len(rows):
        run.notice(f"{len(rows) - len(kept)} of {len(rows)} groups have equal scores, which teach nothing: left out")
    return rows.select(kept)


def with_advantages(rows: Dataset, values: list[float]) -> Dataset:
    """The rows with A = max(score - V, 0) of each completion in the column `advantages`; `values` is V of each row."""
    found = [
        [max(score - value, 0.0) for score in scores] for scores, value in zip(rows["scores"], values, strict=True)
    ]
    return rows.add_column("advantages", found)


def one_by_one(rows: Dataset) -> Dataset:
    """Every completion with an advantage as a row of its own, those of a prompt next to each other."""
    listed = ("completion_ids", "ended", "scores", "advantages")
    return Dataset.from_list(
        [
            {**row, **{name: [row[name][number]] for name in listed}}
            for row in rows
            for number, advantage in enumerate(row["advantages"])
            if advantage > 0
        ]
    )


def trainer(run: StageRun) -> Offline:
    """The trainer of a stage that learns from groups. The reference is the model the stage starts from.

    Raises:
        SeqtuneError: There is nothing to train on, a completion is longer than allowed, or the values of the prompts
            cannot be fitted.
    """
    stage = run.stage
    spec: Any = stage.objective
    train, apart = (groups(run, part) for part in (run.examples.train, run.examples.heldout))
    heldout: Dataset | None = apart if len(apart) else None
    if not len(train):
        raise SeqtuneError("no group is left to train on", "packing.capacity", "raise it")
    check_length(run, max(len(row["prompt_ids"]) + max(map(len, row["completion_ids"])) for row in train))
    args = SFTConfig(
        **training_arguments(run, steps=1),
        packing=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    more: dict[str, Any] = {}
    kinds: dict[str, type[Offline]] = {"offline": Texts, "ranking": Lists, "policy": Recorded}
    if spec.family == "offline":
        values = values_of(run, args, train, heldout)
        more["fit"] = values.metrics
        train = with_advantages(train, values.train)
        heldout = with_advantages(heldout, values.heldout) if heldout is not None else None
        if spec.sampling != "all":
            train = one_by_one(train)
        if not len(train) or not any(map(max, train["advantages"])):
            raise SeqtuneError(
                "no completion scores more than its prompt is expected to: every advantage is 0",
                "objective.value",
                "objective.value=group_mean compares the completions of a prompt; or check that the scores of the data "
                "and the reward are on one scale",
            )
    else:
        train = untied(run, train)
        heldout = untied(run, heldout) if heldout is not None else None
        if not len(train):
            raise SeqtuneError("no group has two different scores", "data.columns.scores", "check the column")
    if heldout is not None and not len(heldout):
        heldout = None
    args.eval_on_start = at_start(run, heldout)["eval_on_start"]
    args.max_steps = optimiser_steps(stage.train, len(train), stage.parallel.processes)
    adapter = stage.peft.build()
    frozen = (spec.needs_reference or spec.family == "policy") and adapter is None
    return kinds[spec.family](
        run,
        eval_rows=heldout,
        reference=copy.deepcopy(run.model).requires_grad_(False).eval() if frozen else None,
        model=run.model,
        args=args,
        train_dataset=train,
        processing_class=run.tokenizer,
        peft_config=adapter,
        **more,
    )
