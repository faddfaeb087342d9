"""Preference optimisation (DPO, KTO) on TRL's `DPOTrainer`."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from trl import DPOConfig, DPOTrainer

from seqtune.training.forest import MicroBatch, Unit, lay_out, token_scores
from seqtune.training.pairs import pair_tokens, pairs, sequences
from seqtune.training.stage import StageRun, at_start, optimiser_steps, training_arguments
from seqtune.training.staged import Measured, reference_logps
from seqtune.training.supervised import StepRows, Supervised

if TYPE_CHECKING:
    from torch import Tensor

    from seqtune.training.forest import Scored


class Preference(Supervised, DPOTrainer):  # type: ignore[misc]  # TRL is untyped
    """`DPOTrainer` whose loss is the plan's objective on summed log-probs of the pair under model and reference."""

    shared = True
    _kl = torch.zeros(())
    """Mean log-ratio of completions of other prompts, over the rows of all processes that are measured together."""

    def micro_batches(self, inputs: StepRows) -> list[MicroBatch]:
        if self.run.stage.objective.needs_mismatched:
            firsts = gather_object([inputs.rows[0]])  # the last row of a process goes on at the first of the next
            following = firsts[(self.accelerator.process_index + 1) % len(firsts)]
            self._estimate(inputs.rows, [*inputs.rows[1:], following])
        return super().micro_batches(inputs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        if self.run.stage.objective.needs_mismatched:
            assert self.eval_rows is not None  # the recorder asks for it only if there are rows
            rows, mine = self.eval_rows.to_list(), slice(self.args.process_index, None, self.args.world_size)
            self._estimate(rows[mine], [*rows[1:], rows[0]][mine])
        return super().evaluate(*args, **kwargs)

    @torch.no_grad()
    def _estimate(self, rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
        """Set `_kl` from the prompts of `rows`, each with the chosen completion of the same place in `others`."""
        mismatched = [
            {"prompt_ids": one["prompt_ids"], "chosen_ids": two["chosen_ids"]}
            for one, two in zip(rows, others, strict=True)
        ]
        found = torch.zeros(2, device=self.accelerator.device, dtype=torch.double)  # Σ r, and completions
        cuts = self._cut([Unit(len(row["prompt_ids"]) + len(row["chosen_ids"])) for row in mismatched])
        turns = self.turns(len(cuts))
        for turn in range(turns):
            cut = cuts[min(turn, len(cuts) - 1)] if cuts else range(0)
            wanted = sequences([mismatched[number] for number in cut], sides=("chosen",))
            batch = lay_out(wanted, self.accelerator.device, shared=self.shared)
            with self.accelerator.autocast():
                ratios = token_scores(self.model, self.accelerator.unwrap_model(self.model), batch).logps
                ratios = batch.by_sequence(ratios - reference_logps(self, self.ref_model, batch)).sum(1)  # [B]
            if turn < len(cuts):
                found += torch.stack([ratios.double().sum(), torch.full_like(found[0], len(cut))])
        total = self.accelerator.reduce(found, reduction="sum")
        self._kl = (total[0] / total[1].clamp(min=1)).float()

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return dataset  # `pairs` has tokenised it; TRL would look for the text

    def size(self, row: dict[str, Any]) -> int:
        return pair_tokens(row)

    def sequences(self, rows: list[dict[str, Any]]) -> list[Scored]:
        return sequences(rows)

    def count(self, batch: MicroBatch) -> float:
        return len(batch.flat.rows) / 2

    def measure(self, model: Any, batch: MicroBatch, denominator: Tensor | float) -> Measured:
        scores = token_scores(
            model, self.accelerator.unwrap_model(model), batch, entropy=True, aux=self.aux_loss_enabled
        )
        chosen, rejected = batch.by_sequence(scores.logps).sum(1).chunk(2)  # [B]: the chosen come first
        ref_chosen, ref_rejected = batch.by_sequence(reference_logps(self, self.ref_model, batch)).sum(1).chunk(2)
        given = [chosen, rejected, ref_chosen, ref_rejected]
        if self.run.stage.objective.needs_mismatched:
            given.append(self._kl)
        loss, metrics = self.objective(*given, denominator=denominator)
        with torch.no_grad():
            metrics = {
                **metrics,
                "logps/chosen": chosen.mean(),
                "logps/rejected": rejected.mean(),
                "train/entropy": scores.entropy.mean(),  # type: ignore[union-attr]  # asked for
            }
        return Measured(
            loss,
            {key: value.detach() for key, value in metrics.items()},
            weight=chosen.numel(),
            tokens=batch.tokens,
            aux=self.router_aux_loss_coef * scores.aux if scores.aux is not None else None,
        )


def trainer(run: StageRun) -> Preference:
    """The trainer of a preference stage. The reference is the model the stage starts from.

    Raises:
        SeqtuneError: There is nothing to train on, or a pair is longer than allowed.
    """
    stage = run.stage
    train, heldout = pairs(run)
    adapter = stage.peft.build()
    return Preference(
        run,
        eval_rows=heldout,
        model=run.model,
        ref_model=None if adapter is not None else copy.deepcopy(run.model).requires_grad_(False).eval(),
        args=DPOConfig(
            **training_arguments(run, steps=optimiser_steps(stage.train, len(train), stage.parallel.processes)),
            **at_start(run, heldout),
            max_length=None,
        ),
        train_dataset=train,
        processing_class=run.tokenizer,
        peft_config=adapter,
    )
