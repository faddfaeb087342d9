"""Policy optimisation over groups of sampled completions (GRPO, GSPO and their relatives), from `training.sampling`.

One rollout feeds `rollout.updates` optimiser steps of `train.accumulate` micro-batches each. TRL keeps that rollout in
memory between steps; a checkpoint that falls inside one carries it along (`rollout-<rank>.safetensors`), so a resumed
run goes on with the very completions it would have had.
"""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from trl import GRPOConfig
from trl.models import prepare_fsdp
from trl.trainer.callbacks import SyncRefModelCallback
from trl.trainer.utils import disable_dropout_in_model

from seqtune.data.tokenize import prompt_ids
from seqtune.errors import SeqtuneError
from seqtune.models.forest import use_forest
from seqtune.objectives.reduce import masked_mean
from seqtune.training.forest import MicroBatch, Scored, Tokens, Unit, lay_out, split, token_scores
from seqtune.training.places import check_columns
from seqtune.training.recorder import read_marker
from seqtune.training.rollouts import by_group, longest_prompt, side_by_side, take
from seqtune.training.sampling import Sampling
from seqtune.training.scorer import Scorer
from seqtune.training.stage import StageRun, check_room, optimiser_steps, training_arguments
from seqtune.training.staged import Measured
from seqtune.training.tools import trained, with_memories

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

RENAMED = {"reward": "reward/mean", "reward_std": "reward/std", "frac_reward_zero_std": "reward/equal_groups"}
DROPPED = ("step_time", "rewards/", "num_tokens")
"""Beginnings of TRL's keys that are left out: a stopwatch, the only reward under a second name, and tokens with prompts
counted once a completion."""


class Policy(Sampling):
    """The plan's objective on the completions of `Sampling`, its reference model, and rollouts in checkpoints."""

    objective: Any
    ref_model: Any
    _buffered_inputs: Any
    """Micro-batches of the current rollout, as TRL keeps them; None before the first."""

    def __init__(self, run: StageRun, *, reference: PreTrainedModel | None, **kwargs: Any) -> None:
        super().__init__(run, **kwargs)
        # The policy that samples has no dropout. With it in training alone, ratios would leave 1 before any update.
        disable_dropout_in_model(self.model)
        # TRL would read the reference from a hub name or folder; ours is the model the stage starts from, wherever that
        # came from. With an adapter there is none: TRL switches the adapter off.
        self.beta = self.spec.beta
        if reference is not None:
            use_forest(reference, run.stage.model.attention)
            self.ref_model = (
                prepare_fsdp(reference, self.accelerator)
                if self.is_fsdp_enabled
                else self.accelerator.prepare_model(reference, evaluation_mode=True)
            )
            if self.spec.ref_model_sync_steps is not None:
                self.add_callback(SyncRefModelCallback(self.ref_model, self.accelerator))
        if run.checkpoint is not None:
            self._step = read_marker(run.checkpoint)["step"]
            self._load_rollout(run.checkpoint)
            self._load_reference(run.checkpoint)

    # The objective

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._step += 1
        return loss

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Tensor]:
        """This process's completions of the optimiser step; TRL's own shuffle would tear groups apart."""
        updates = self.args.steps_per_generation
        if self._step % updates == 0 or self._buffered_inputs is None:
            output = self._generate_and_score_completions(generation_batch)
            rows = len(output["completion_ids"])
            first = self.accelerator.process_index * rows
            order = by_group(first, rows, self.num_generations, (self.args.seed, self._step // updates))
            self._buffered_inputs = [take(output, part) for part in order.chunk(updates)]
        inputs: dict[str, Tensor] = self._buffered_inputs[self._step % updates]
        return inputs

    shared = True

    def units(self) -> list[dict[str, Any]]:
        """The completions of a real rollout, with advantages that are not zero even where all rewards are equal."""
        wanted = len(self.train_dataset), self.args.generation_batch_size // self.num_generations
        rows = [row for row in self.train_dataset.select(range(min(wanted))) for _ in range(self.num_generations)]
        step = take(self._generate_and_score_completions(rows), torch.arange(len(rows)))
        step["advantages"] = torch.linspace(-1, 1, len(rows), device=step["advantages"].device)
        return [take(step, torch.tensor([row])) for row in range(len(rows))]

    def lay(self, units: list[dict[str, Any]]) -> Completions:
        step = {name: torch.cat([unit[name] for unit in units]) for name, value in units[0].items() if value.ndim}
        sequences, _ = self._sequences(*side_by_side(step), trained(step))
        return Completions(step, lay_out(sequences, self.accelerator.device, shared=True))

    def sample(self, count: int) -> list[Scored]:
        """Prompts with two made-up completions each: none are sampled yet."""
        rows = self.train_dataset.select(range(min(len(self.train_dataset), count // 2))).to_list()
        random = np.random.default_rng(0)
        found = []
        for prompt in prompt_ids(rows, self.run.tokenizer):
            for _ in range(2):
                ids = np.array([*prompt, *random.integers(0, len(self.run.tokenizer), 16)], dtype=np.int64)
                found.append(Scored(ids, np.arange(len(ids)) >= max(len(prompt), 1)))
        return found

    def micro_batches(self, inputs: Any) -> list[Completions]:
        step = self._prepare_inputs(inputs)
        if "memory_ids" not in step:
            return [
                Completions(take(step, rows), batch) for rows, batch in self._lay(*side_by_side(step), trained(step))
            ]
        # A rewritten answer goes with its completion: means over micro-batches are means over completions.
        _, units = self._sequences(*side_by_side(step), trained(step))
        more = step["memory_mask"].sum(1).tolist()
        units = [unit._replace(tokens=unit.tokens + n) for unit, n in zip(units, more, strict=True)]
        found = []
        for cut in self._cuts(units):
            rows = with_memories(take(step, torch.tensor(cut)))
            sequences, _ = self._sequences(*side_by_side(rows), trained(rows))
            found.append(Completions(rows, lay_out(sequences, self.accelerator.device, shared=True)))
        return found

    def _cuts(self, units: list[Unit]) -> list[range]:
        train = self.run.stage.train
        return split(units, rows=train.batch_size, tokens=train.tokens_per_batch)

    def _lay(self, ids: Tensor, present: Tensor, scored: Tensor) -> list[tuple[Tensor, MicroBatch]]:
        """Padded rows as micro-batches that share prompts: the numbers of the rows, and their layout."""
        sequences, units = self._sequences(ids, present, scored)
        device = self.accelerator.device
        return [
            (torch.tensor(cut, device=ids.device), lay_out([sequences[n] for n in cut], device, shared=True))
            for cut in self._cuts(units)
        ]

    def _sequences(self, ids: Tensor, present: Tensor, scored: Tensor) -> tuple[list[Scored], list[Unit]]:
        """The sequences in padded rows whose last columns are completions, `scored` [B, T], and what each weighs."""
        sequences, units = [], []
        prompts = ids.shape[1] - scored.shape[1]  # columns
        for row, mask, own in zip(*(x.cpu().numpy() for x in (ids, present.bool(), scored)), strict=True):
            prompt = row[:prompts][mask[:prompts]]
            sequences.append(Scored(row[mask], np.concatenate([np.zeros(prompts, bool), own])[mask]))
            units.append(Unit(int(mask[prompts:].sum()), prompt.tobytes(), len(prompt)))
        return sequences, units

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **multimodal: Any,
    ) -> tuple[Tensor, None, None]:
        """What TRL asks for the old and the reference policy: log-probs of the completions, `[B, T]`, no gradient."""
        return self._scores(model, input_ids, attention_mask, logits_to_keep, entropy=False)[0], None, None

    def _scores(
        self, model: Any, ids: Tensor, present: Tensor, completion: int, *, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        """Log-probs of the completions in padded rows, `[B, T]`, and, if asked for, entropies; else zeros."""
        mask = present[:, -completion:].bool()
        logps = torch.zeros(mask.shape, device=ids.device)
        entropies = torch.zeros(mask.shape, device=ids.device)
        batches = self._lay(ids, present, mask)
        inner = self.accelerator.unwrap_model(model)
        for turn in range(self.turns(len(batches))):
            rows, batch = batches[min(turn, len(batches) - 1)]
            with self.accelerator.autocast():
                scores = token_scores(model, inner, batch, temperature=self.temperature, entropy=entropy)
            logps[rows] = to_columns(batch, scores.logps, mask[rows])
            if scores.entropy is not None:
                entropies[rows] = to_columns(batch, scores.entropy, mask[rows])
        return logps, entropies

    def count(self, batch: Completions) -> float:
        mask = trained(batch.rows)  # [B, T]
        if self.spec.denominator_unit == "tokens":
            advantages = batch.rows["advantages"]
            left_out = advantages.isnan() if advantages.dim() == 2 else advantages.isnan().unsqueeze(1)
            return float((mask & ~left_out).sum())
        return float(len(mask) * (self.max_completion_length if self.spec.denominator_unit == "slots" else 1))

    def measure(self, model: Any, batch: Completions, denominator: Tensor | float) -> Measured:
        rows, mask = batch.rows, trained(batch.rows)  # [B, T]
        inner = self.accelerator.unwrap_model(model)
        scores = token_scores(
            model, inner, batch.forest, temperature=self.temperature, entropy=True, aux=self.aux_loss_enabled
        )
        logps = to_columns(batch.forest, scores.logps, mask)
        sampled = mask & ~rows["memory_mask"] if "memory_mask" in rows else mask
        entropies = to_columns(batch.forest, scores.entropy, mask)  # type: ignore[arg-type]  # asked for
        # Without old log-probs the rollout is taken whole in one step: the policy that sampled is the one trained.
        old_logps = rows.get("old_per_token_logps", logps.detach())
        advantages = rows["advantages"]  # [B] or [B, T]
        given = {name: rows[name] for name in self.spec.loss_inputs if name in rows}
        if "importance_sampling_ratio" in rows and self.spec.correction == "none":
            # vLLM's probabilities differ a little from the trainer's; a weight r >= 0 of the surrogate is one of A,
            # because min(w r A, clip(w) r A) = r min(w A, clip(w) A).
            weighed = advantages if advantages.dim() == 2 else advantages.unsqueeze(1)
            advantages = weighed * rows["importance_sampling_ratio"]
        loss, metrics = self.objective(
            logps, old_logps, advantages, mask, rows.get("ref_per_token_logps"), **given, denominator=denominator
        )
        return Measured(
            loss,
            {**metrics, "policy/entropy": masked_mean(entropies, sampled)},
            weight=len(mask) - int(rows["memory_mask"].any(1).sum()) if "memory_mask" in rows else len(mask),
            tokens=batch.tokens._replace(padded=mask.numel() + rows["prompt_mask"].numel()),
            aux=self.router_aux_loss_coef * scores.aux if scores.aux is not None else None,
        )

    # Records and checkpoints

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's averages under `area/name`; nothing in a row but `seconds` depends on a clock."""
        metrics = self._metrics["train"]
        for key in [key for key in metrics if key.startswith(DROPPED)]:
            del metrics[key]
        for key in [key for key in metrics if key in RENAMED]:
            metrics[RENAMED[key]] = metrics.pop(key)
        super().log(logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = self.run.output / f"checkpoint-{self.state.global_step}"
        if self._moving and (self.is_fsdp_enabled or self.accelerator.is_main_process):
            save_file({name: own.cpu() for name, own in self._reference()}, folder / self._reference_file)
        if self._step % self.args.steps_per_generation:
            tensors = {
                f"{number}.{name}": tensor.detach().cpu().clone()
                for number, batch in enumerate(self._buffered_inputs)
                for name, tensor in batch.items()
            }
            save_file(tensors, folder / self._rollout_file)

    @property
    def _rollout_file(self) -> str:
        return f"rollout-{self.accelerator.process_index}.safetensors"

    @property
    def _moving(self) -> bool:
        """Whether the reference model is not the model the stage starts from."""
        return self.ref_model is not None and self.spec.ref_model_sync_steps is not None

    @property
    def _reference_file(self) -> str:
        return f"reference-{self.accelerator.process_index if self.is_fsdp_enabled else 0}.safetensors"

    def _reference(self) -> Iterator[tuple[str, Tensor]]:
        """The weights of the reference model that this process holds."""
        for name, weight in self.ref_model.named_parameters():
            data = weight.detach()
            yield name, data.to_local() if isinstance(data, DTensor) else data

    def _load_reference(self, checkpoint: Path) -> None:
        """The reference model as it was at a checkpoint, if it moves."""
        if not self._moving:
            return
        saved = load_file(checkpoint / self._reference_file)
        for name, own in self._reference():
            own.copy_(saved[name])

    def _load_rollout(self, checkpoint: Path) -> None:
        """The rollout a checkpoint fell into, if it did."""
        if self._step % self.args.steps_per_generation == 0:
            return
        batches: list[dict[str, Tensor]] = [{} for _ in range(self.args.steps_per_generation)]
        saved = load_file(checkpoint / self._rollout_file, device=str(self.accelerator.device))
        for key, tensor in saved.items():
            number, _, name = key.partition(".")
            batches[int(number)][name] = tensor
        self._buffered_inputs = batches


@dataclass(frozen=True)
class Completions:
    """A micro-batch: rows of the step's tensors, and their layout."""

    rows: dict[str, Tensor]
    forest: MicroBatch

    @property
    def tokens(self) -> Tokens:
        """What the layout saves."""
        return self.forest.tokens


def to_columns(batch: MicroBatch, values: Tensor, mask: Tensor) -> Tensor:
    """[M] values of the scored tokens in the places `mask` [B, T] marks, row by row; 0 elsewhere."""
    flat = values[batch.index[batch.index >= 0]]
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, flat)


def trainer(run: StageRun) -> Policy:
    """The trainer of a policy stage.

    Raises:
        SeqtuneError: There is no reward, no prompt to train on, one that the model has no positions for, or vLLM is
            asked for and not installed.
    """
    stage = run.stage
    rollout, spec = stage.rollout, stage.objective
    if rollout is None:
        raise SeqtuneError(f"objective '{spec.name}' samples completions", "rollout", "choose: rollout=transformers")
    if rollout.name == "vllm" and importlib.util.find_spec("vllm") is None:
        raise SeqtuneError(
            "rollouts by vLLM are asked for, but vllm is not installed",
            "rollout.name",
            "pip install 'seqtune[vllm]', or rollout=transformers, which needs nothing more",
        )
    if not len(run.examples.train):
        raise SeqtuneError("there is no prompt to train on", "data", "give a data set with the column 'prompt'")
    if "prefix_mask" in spec.needs and "completion" not in run.examples.train.column_names:
        raise SeqtuneError(
            f"objective '{spec.name}' learns from demonstrations, and the data has no column 'completion'",
            "data.format",
            "data.format=prompt_completion, or a column 'completion' beside the prompt",
        )
    check_columns(stage, run.examples.train.column_names)
    check_room(run, longest_prompt(run.examples.train, run.tokenizer))
    if rollout.top_p < 1 or rollout.top_k is not None:
        run.notice(
            f"completions are sampled with top_p={rollout.top_p}, top_k={rollout.top_k}, while the gradient is that of "
            "all tokens: a biased estimate; rollout.top_p=1 rollout.top_k=null samples from the policy itself"
        )
    group_size: int = spec.group_size  # type: ignore[attr-defined]
    adapter = stage.peft.build()
    beta: float = spec.beta  # type: ignore[attr-defined]
    needs_copy = beta > 0 and adapter is None
    steps = optimiser_steps(stage.train, len(run.examples.train) * group_size, stage.parallel.processes)
    return Policy(
        run,
        reference=copy.deepcopy(run.model).requires_grad_(False).eval() if needs_copy else None,
        model=run.model,
        reward_funcs=[Scorer(run)],
        args=GRPOConfig(
            **training_arguments(run, steps=steps),
            num_generations=group_size,
            steps_per_generation=rollout.updates,
            num_iterations=1,
            max_completion_length=rollout.max_new_tokens,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k or 0,
            beta=0.0,  # `Policy` holds the reference itself, and moves it
            ref_model_sync_steps=spec.ref_model_sync_steps or 1,  # type: ignore[attr-defined]
            ref_model_mixup_alpha=spec.ref_model_mixup_alpha,  # type: ignore[attr-defined]
            loss_type="grpo",  # `Policy` has its own loss; this is the choice of TRL that warns about nothing
            use_vllm=rollout.name == "vllm",
            vllm_mode=rollout.vllm_mode,
            vllm_gpu_memory_utilization=rollout.vllm_memory,
            vllm_importance_sampling_mode="token_truncate",
        ),
        train_dataset=run.examples.train,
        processing_class=run.tokenizer,
        peft_config=adapter,
    )
