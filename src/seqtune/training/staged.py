"""What every trainer adapter shares: an optimiser step cut into micro-batches of segment forests."""

from __future__ import annotations

import math
from abc import abstractmethod
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PrinterCallback
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from seqtune.errors import SeqtuneError
from seqtune.models.forest import refusal, use_forest
from seqtune.training.forest import MicroBatch, Scored, Tokens, token_scores
from seqtune.training.recorder import Recorder, diverged

if TYPE_CHECKING:
    from torch import Tensor

    from seqtune.training.audit import Proof
    from seqtune.training.stage import StageRun


class Measured(NamedTuple):
    """The objective on one micro-batch."""

    loss: Tensor
    """Sum over the micro-batch divided by the denominator that was asked for; scalar."""
    metrics: dict[str, Tensor]
    """Means over the micro-batch, keyed `area/name`."""
    weight: Tensor | int
    """What the means are over (trained tokens, pairs or completions)."""
    tokens: Tokens
    aux: Tensor | None = None
    """Load-balancing loss of a mixture-of-experts model, already weighted."""


class Staged:
    """Mixed into a TRL trainer: one batch of the Trainer is one optimiser step, and is cut into micro-batches here.

    The subclass lays the step out in `micro_batches` and says in `measure` what the objective is on each. The
    denominator is the count over the whole step, so a step does not depend on how it was cut into micro-batches and
    processes. A gradient that is not finite stops the run before it reaches the weights.
    """

    run: StageRun
    trainer: Any
    """This object as the TRL trainer it is mixed into."""
    shared: bool
    """Whether sequences of a micro-batch share their beginnings."""

    def __init__(self, run: StageRun, *, heldout: bool = False, **kwargs: Any) -> None:
        self.run = run
        self.objective = run.stage.objective.build()
        self._sums: dict[str, Tensor | float] = {}
        self.plain_attention: str = kwargs["model"].config._attn_implementation
        """What the model attends with outside forests, when it generates."""
        fault = refusal(kwargs["model"].config, shared=self.shared)
        if fault is not None:
            raise SeqtuneError(f"this model cannot be trained on segment forests: {fault}", "model.name")
        for model in (kwargs["model"], kwargs.get("ref_model")):
            if model is not None:
                self.attention = use_forest(model, run.stage.model.attention)
        self.trainer = self
        super().__init__(**kwargs)
        self.trainer.remove_callback(PrinterCallback)
        self.recorder = Recorder(run, heldout)
        self.trainer.add_callback(self.recorder)
        because: dict[str, list[str]] = {}
        for name, reason in self.attention.reasons.items():
            because.setdefault(reason, []).append(name)
        passed_over = "".join(f"; not {', '.join(names)}: {reason}" for reason, names in because.items())
        run.notice(f"attention over segment forests: {self.attention.name}{passed_over}")
        self._tokens = self.recorder.tokens
        """Tokens of the sequences trained on since the stage began, by all processes."""

    @abstractmethod
    def micro_batches(self, inputs: Any) -> list[Any]:
        """This process's part of an optimiser step, at least one."""

    @abstractmethod
    def count(self, batch: Any) -> float:
        """What a micro-batch adds to the denominator of the step."""

    @abstractmethod
    def measure(self, model: Any, batch: Any, denominator: Tensor | float) -> Measured:
        """The objective on one micro-batch."""

    # What `proofs` asks of a trainer.

    @abstractmethod
    def units(self) -> list[Any]:
        """What an optimiser step of this process is cut into: its rows, here of a first step."""

    @abstractmethod
    def lay(self, units: list[Any]) -> Any:
        """Units as one micro-batch."""

    @abstractmethod
    def sample(self, count: int) -> list[Scored]:
        """Up to `count` sequences of the kind the stage trains on."""

    def audit(self) -> list[Proof]:
        """Checks of which tokens are trained; none where completions are yet to be sampled."""
        return []

    def values(self, batch: MicroBatch) -> Tensor:
        """[B, L] what the model says of each scored token of a forest: its log-prob."""
        model = self.trainer.model
        return batch.by_sequence(token_scores(model, model, batch).logps)

    def plain_values(self, model: Any, sequences: list[Scored]) -> Tensor:
        """The same from the model called as transformers means it, one sequence at a time."""
        rows = []
        for sequence in sequences:
            ids = torch.from_numpy(sequence.ids)[None].to(self.trainer.accelerator.device)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            logps = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
            rows.append(logps.gather(1, ids[0, 1:, None])[:, 0])
        return pad_sequence(rows, batch_first=True)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Gradients of one optimiser step; returns its loss, made up for the averaging over processes."""
        accelerator = self.trainer.accelerator
        model.train()
        batches = self.micro_batches(inputs)
        counts = torch.tensor([self.count(batch) for batch in batches], device=accelerator.device)
        denominator = accelerator.reduce(counts.sum(), reduction="sum")
        tokens = sum(batch.tokens.computed for batch in batches)
        total = torch.zeros((), device=accelerator.device)
        turns = self.turns(len(batches))
        for turn in range(turns):
            batch = batches[min(turn, len(batches) - 1)]
            with nullcontext() if turn == turns - 1 else accelerator.no_sync(model):
                with accelerator.autocast():
                    measured = self.measure(model, batch, denominator)
                loss = measured.loss * accelerator.num_processes  # gradients are averaged over the processes
                if measured.aux is not None:
                    loss = loss + measured.aux * (batch.tokens.computed / tokens)
                if turn >= len(batches):
                    loss = loss * 0.0
                else:
                    self._add(measured)
                accelerator.backward(loss)
            total += loss.detach()
        return total

    def turns(self, mine: int) -> int:
        """Micro-batches every process runs: sharded weights are gathered by all processes together, so one with fewer
        micro-batches runs its last one again, in vain.
        """
        if not self.trainer.is_fsdp_enabled:
            return mine
        everyone = self.trainer.accelerator.gather(torch.tensor([mine], device=self.trainer.accelerator.device))
        return int(everyone.max())

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> None:
        """Counted in `training_step`."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Not estimated; the Trainer would look into `inputs` for it."""
        return 0

    def _add(self, measured: Measured) -> None:
        weight = measured.weight
        sums = {key: value * weight for key, value in measured.metrics.items()}
        counts = {"weight": weight, **measured.tokens._asdict()}
        for key, value in {**sums, **counts}.items():
            wide = value.detach().double() if isinstance(value, torch.Tensor) else float(value)
            self._sums[key] = self._sums.get(key, 0.0) + wide

    def _drain(self) -> dict[str, float]:
        """Means since the last call over all processes; under `num_tokens`, tokens read since the stage began."""
        accelerator, keys = self.trainer.accelerator, sorted(self._sums)
        values = [torch.as_tensor(self._sums[key], dtype=torch.double, device=accelerator.device) for key in keys]
        self._sums = {}
        totals = dict(zip(keys, accelerator.reduce(torch.stack(values), reduction="sum").tolist(), strict=True))
        read, computed, padded, weight = (totals.pop(key) for key in (*Tokens._fields, "weight"))
        self._tokens += int(read)
        means = {key: value / weight for key, value in totals.items()} if weight else {}
        return {
            **means,
            "num_tokens": self._tokens,
            "tokens/computed": computed,
            "tokens/padded": padded,
            "tokens/saving": 1 - computed / padded if padded else 0.0,
        }

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the objective's metrics to a row of training."""
        if "loss" in logs:
            logs.update(self._drain())
        super().log(logs, start_time)  # type: ignore[misc]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Checkpoints inside a run folder need no model card: the run's own report describes them."""

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[misc]
        if not math.isfinite(norm):
            raise diverged(self.run, self.trainer.state.global_step + 1, "the gradient")
        return norm


@torch.no_grad()
def reference_logps(trainer: Any, reference: Any, batch: MicroBatch) -> Tensor:
    """[M] log-probs of the frozen reference: a copy, or, where that is None, the model without its adapter."""
    unwrap = trainer.accelerator.unwrap_model
    if reference is not None:
        return token_scores(reference, unwrap(reference), batch).logps
    with (
        use_adapter(unwrap(trainer.model), adapter_name=None),
        disable_gradient_checkpointing(trainer.model, trainer.args.gradient_checkpointing_kwargs),
    ):
        return token_scores(trainer.model, unwrap(trainer.model), batch).logps
