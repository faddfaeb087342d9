"""What the adapters share whose rows are all known beforehand."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from seqtune.training.audit import Proof, mask_audit
from seqtune.training.forest import MicroBatch, Scored, Unit, lay_out, split
from seqtune.training.recorder import heldout_name
from seqtune.training.stage import Stream
from seqtune.training.staged import Staged

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from torch.utils.data import Sampler

    from seqtune.training.stage import StageRun


@dataclass(frozen=True)
class StepRows:
    """The rows of an optimiser step of this process, as the data loader hands them on: nothing in it is a tensor."""

    rows: list[dict[str, Any]]


class Supervised(Staged):
    """Mixed into a TRL trainer whose rows are all known beforehand (SFT, preference, reward)."""

    def __init__(self, run: StageRun, *, eval_rows: Dataset | None, **kwargs: Any) -> None:
        self.eval_rows = eval_rows
        super().__init__(run, heldout=eval_rows is not None, data_collator=StepRows, **kwargs)

    @abstractmethod
    def size(self, row: dict[str, Any]) -> int:
        """Tokens of a row, for the token budget of a micro-batch."""

    @abstractmethod
    def sequences(self, rows: list[dict[str, Any]]) -> list[Scored]:
        """What the model reads of some rows."""

    def lay(self, units: list[dict[str, Any]]) -> MicroBatch:
        return lay_out(self.sequences(units), self.trainer.accelerator.device, shared=self.shared)

    def units(self) -> list[dict[str, Any]]:
        rows = self.trainer.train_dataset
        taken = Stream(len(rows), min(len(rows), self.trainer.args.train_batch_size), self.run.stage.train.seed)
        return rows.select(list(taken)).to_list()  # type: ignore[no-any-return]  # datasets is untyped

    def sample(self, count: int) -> list[Scored]:
        found: list[Scored] = []
        for row in self.units():
            found += self.sequences([row])
            if len(found) >= count:
                break
        return found[:count]

    def audit(self) -> list[Proof]:
        return mask_audit([self.sequences([row]) for row in self.units()], self.run.tokenizer.eos_token_id)

    def micro_batches(self, inputs: StepRows) -> list[Any]:
        cuts = self._cut([Unit(self.size(row)) for row in inputs.rows])
        return [self.lay([inputs.rows[number] for number in cut]) for cut in cuts]

    def _cut(self, units: list[Unit]) -> list[range]:
        train = self.run.stage.train
        return split(units, rows=train.batch_size, tokens=train.tokens_per_batch)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        args, rows = self.trainer.args, len(train_dataset or self.trainer.train_dataset)
        return Stream(rows, args.max_steps * args.train_batch_size * args.world_size, self.run.stage.train.seed)

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss and metrics over all held-out rows: one exact mean, whatever the batches and processes.

        Draws no random number, so measuring more often does not change the run.
        """
        trainer, rows = self.trainer, self.eval_rows
        assert rows is not None  # the recorder asks for it only if there are rows
        rank, processes = trainer.args.process_index, trainer.args.world_size
        cuts = self._cut([Unit(self.size(row)) for row in rows])
        trainer.model.eval()
        total: dict[str, Tensor] = {}
        for turn in range(math.ceil(len(cuts) / processes)):
            number = turn * processes + rank
            mine = number < len(cuts)  # a process without a batch runs one in vain: sharded weights need all of them
            batch = self.lay(rows.select(cuts[number if mine else 0]).to_list())
            with trainer.accelerator.autocast():
                measured = self.measure(trainer.model, batch, 1.0)
            weight = torch.as_tensor(measured.weight, device=measured.loss.device)
            values = {key: value * weight for key, value in measured.metrics.items()}
            for key, value in {**values, "loss": measured.loss, "weight": weight}.items():
                total[key] = total.get(key, 0.0) + value.double() * mine
        trainer.model.train()
        keys = sorted(total)
        sums = trainer.accelerator.reduce(torch.stack([total[key] for key in keys]), reduction="sum")
        means = dict(zip(keys, sums.tolist(), strict=True))
        weight = means.pop("weight")
        metrics = {heldout_name(key): value / weight for key, value in means.items()}
        trainer.log(dict(metrics))
        trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
        return metrics
