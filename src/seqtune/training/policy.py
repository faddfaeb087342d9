"""Policy optimisation over groups of sampled completions (GRPO, GSPO and their relatives) on TRL's `GRPOTrainer`.

One rollout feeds `rollout.updates` optimiser steps of `train.accumulate` micro-batches each. TRL keeps that rollout in
memory between steps; a checkpoint that falls inside one carries it along (`rollout-<rank>.safetensors`), so a resumed
run goes on with the very completions it would have had.
"""

from __future__ import annotations

import copy
import importlib.util
import math
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import Sampler
from trl import GRPOConfig, GRPOTrainer
from trl.models import prepare_fsdp
from trl.trainer.utils import add_fused_lm_head

from seqtune.errors import SeqtuneError
from seqtune.objectives.reduce import masked_mean
from seqtune.rewards.score import score
from seqtune.rollout.noise import seed_of
from seqtune.rollout.transformers import generate
from seqtune.training.common import Staged, StageRun, Stream, optimiser_steps, read_marker, training_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

    from seqtune.objectives.specs import Policy as PolicySpec

RENAMED = {"reward": "reward/mean", "reward_std": "reward/std", "frac_reward_zero_std": "reward/equal_groups"}
DROPPED = ("step_time", "rewards/")
"""Beginnings of TRL's keys that are left out: a stopwatch, and the only reward under a second name."""


class Rollouts(Sampler[int]):
    """Row numbers as TRL wants them: each rollout's prompts `group_size` times over, and all that `repeats` times.

    TRL draws the rows of a rollout anew for each of its micro-batches but generates only at the first. Which prompts a
    rollout takes depends on the seed alone, not on processes, micro-batches or where a run was resumed.
    """

    def __init__(self, rows: int, *, rollouts: int, prompts: int, group_size: int, repeats: int, seed: int) -> None:
        self.stream = Stream(rows, rollouts * prompts, seed)
        self.rollouts, self.prompts, self.group_size, self.repeats = rollouts, prompts, group_size, repeats

    def __len__(self) -> int:
        return self.rollouts * self.prompts * self.group_size * self.repeats

    def __iter__(self) -> Iterator[int]:
        stream = iter(self.stream)
        for _ in range(self.rollouts):
            rows = list(islice(stream, self.prompts))
            for _ in range(self.repeats):
                for row in rows:
                    yield from repeat(row, self.group_size)


class Policy(Staged, GRPOTrainer):  # type: ignore[misc]  # TRL is untyped
    """`GRPOTrainer` with the plan's objective, advantages, reward and reproducible sampling."""

    args: Any
    objective: Any
    num_generations: int
    max_completion_length: int
    ref_model: Any
    _buffered_inputs: Any
    """Micro-batches of the current rollout, as TRL keeps them; None before the first."""

    def __init__(self, run: StageRun, *, reference: PreTrainedModel | None, **kwargs: Any) -> None:
        self.spec: PolicySpec = run.stage.objective  # type: ignore[assignment]
        self.objective = self.spec.build()
        self.advantage = self.spec.build_advantage()
        self._tokens_of_step: tuple[int, Tensor] | None = None
        super().__init__(run, **kwargs)
        # TRL would read the reference from a hub name or folder; ours is the model the stage starts from, wherever that
        # came from. With an adapter there is none: TRL switches the adapter off.
        self.beta = self.spec.beta
        if reference is not None:
            add_fused_lm_head(reference, temperature=self.temperature)
            self.ref_model = (
                prepare_fsdp(reference, self.accelerator)
                if self.is_fsdp_enabled
                else self.accelerator.prepare_model(reference, evaluation_mode=True)
            )
        if run.checkpoint is not None:
            self._step = read_marker(run.checkpoint)["step"] * self.args.gradient_accumulation_steps
            self._load_rollout(run.checkpoint)

    # Rollouts

    def _get_train_sampler(self, dataset: Any = None) -> Rollouts:
        args = self.args
        return Rollouts(
            len(dataset if dataset is not None else self.train_dataset),
            rollouts=math.ceil(args.max_steps * args.gradient_accumulation_steps / args.steps_per_generation),
            prompts=args.generation_batch_size // self.num_generations,
            group_size=self.num_generations,
            repeats=args.steps_per_generation,
            seed=args.seed,
        )

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """Our own sampling: what a completion is depends on its prompt and place in the rollout, not on its batch."""
        if self.use_vllm:
            return super()._generate_single_turn(  # type: ignore[no-any-return]
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images
            )
        rollout = self._step // self.args.steps_per_generation
        first = self.accelerator.process_index * len(prompt_ids)
        places = (divmod(first + row, num_generations) for row in range(len(prompt_ids)))
        completions = generate(
            self.accelerator.unwrap_model(self.model_wrapped),
            prompt_ids,
            max_new_tokens=self.max_completion_length,
            eos_token_id=self.eos_token_ids,
            pad_token_id=self._tokenizer.pad_token_id,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k or None,
            seeds=[seed_of(self.args.seed, rollout, prompt, completion) for prompt, completion in places],
            batch_size=len(prompt_ids),
        )
        return completions, None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's rollout with the plan's advantages. TRL shuffles afterwards: groups are whole only here."""
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        rewards = list(self._logs["rewards"][self.reward_func_names[0]])  # of all processes, NaN where there is none
        advantages = self.advantage(torch.tensor(rewards))
        mine = slice(self.accelerator.process_index * len(inputs), (self.accelerator.process_index + 1) * len(inputs))
        output["advantages"] = advantages[mine].to(output["advantages"].device)
        if self.accelerator.is_main_process:
            self._write_samples(rewards, advantages.tolist())
        return output

    def _write_samples(self, rewards: list[float], advantages: list[float]) -> None:
        """One group of every rollout, to read: `{stage, step, prompt, completion, reward, advantage}` a completion."""
        shown = zip(self._logs["prompt"], self._logs["completion"], rewards, advantages, strict=True)
        rows = [
            {
                "stage": self.run.stage.name,
                "step": self.state.global_step + 1,
                "prompt": plain(prompt),
                "completion": plain(completion),
                "reward": None if math.isnan(reward) else reward,
                "advantage": advantage,
            }
            for prompt, completion, reward, advantage in islice(shown, self.num_generations)
        ]
        self.run.folder.append_samples(rows)

    # The objective

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        mask = inputs["completion_mask"]  # [B, T]
        logps, entropies, aux = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
            torch.cat([inputs["prompt_mask"], mask], 1),
            mask.shape[1],
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
        )
        # Without old log-probs the rollout is taken whole in one step: the policy that sampled is the one trained.
        old_logps = inputs.get("old_per_token_logps", logps.detach())
        advantages = inputs["advantages"]  # [B]
        if "importance_sampling_ratio" in inputs:
            # vLLM's probabilities differ a little from the trainer's; a weight r >= 0 of the surrogate is one of A,
            # because min(w r A, clip(w) r A) = r min(w A, clip(w) A).
            advantages = advantages.unsqueeze(1) * inputs["importance_sampling_ratio"]
        loss, metrics = self.objective(
            logps, old_logps, advantages, mask, inputs.get("ref_per_token_logps"), denominator=self._denominator(mask)
        )
        self._note({**metrics, "policy/entropy": masked_mean(entropies, mask)})
        loss = loss * self.accelerator.num_processes  # the denominator spans the processes, gradients are averaged
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * aux / self.current_gradient_accumulation_steps
        return loss  # type: ignore[no-any-return]

    def _denominator(self, mask: Tensor) -> Tensor | float:
        """Completions, or tokens of the mask, of the whole optimiser step: its micro-batches on all processes."""
        accumulate = self.current_gradient_accumulation_steps
        if self.spec.denominator_unit == "sequences":
            return float(mask.shape[0] * accumulate * self.accelerator.num_processes)
        step = self._step // accumulate
        if self._tokens_of_step is None or self._tokens_of_step[0] != step:
            first = step * accumulate % self.args.steps_per_generation
            rows = self._buffered_inputs[first : first + accumulate]
            local = torch.stack([row["completion_mask"].sum() for row in rows]).sum()
            self._tokens_of_step = step, self.accelerator.reduce(local, reduction="sum")
        return self._tokens_of_step[1]

    # Records and checkpoints

    def _note(self, metrics: dict[str, Tensor]) -> None:
        """Average a micro-batch's metrics over the processes and keep them for the next row."""
        means = self.accelerator.reduce(torch.stack([value.detach().float() for value in metrics.values()]), "mean")
        for key, value in zip(metrics, means.tolist(), strict=True):
            self._metrics["train"][key].append(value)

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
        if self._step % self.args.steps_per_generation:
            folder = self.run.output / f"checkpoint-{self.state.global_step}"
            tensors = {
                f"{number}.{name}": tensor.detach().cpu().clone()
                for number, batch in enumerate(self._buffered_inputs)
                for name, tensor in batch.items()
            }
            save_file(tensors, folder / self._rollout_file)

    @property
    def _rollout_file(self) -> str:
        return f"rollout-{self.accelerator.process_index}.safetensors"

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


def plain(text: Any) -> str:
    """A prompt or completion as one string: as it is, or the contents of its messages, one a line."""
    return text if isinstance(text, str) else "\n".join(str(message["content"]) for message in text)


def scorer(run: StageRun) -> Callable[..., list[float | None]]:
    """The stage's reward as TRL calls it.

    Raises:
        SeqtuneError: When called: the reward fails or returns something unusable; names the row.
    """
    spec = run.stage.reward
    if spec is None:
        raise SeqtuneError(
            f"objective '{run.stage.objective.name}' needs a reward", "reward", "choose one: reward=math_equiv"
        )
    reward = spec.build()

    def reward_of_rows(
        prompts: list[Any],
        completions: list[Any],
        completion_ids: Any,
        trainer_state: Any,
        log_extra: Any,
        log_metric: Any,
        **columns: list[Any],
    ) -> list[float | None]:
        texts = [plain(prompt) for prompt in prompts], [plain(completion) for completion in completions]
        return score(reward, *texts, columns, name=spec.name)

    return reward_of_rows


def trainer(run: StageRun) -> Policy:
    """The trainer of a policy stage.

    Raises:
        SeqtuneError: There is no reward, no prompt to train on, or vLLM is asked for and not installed.
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
    group_size: int = spec.group_size  # type: ignore[attr-defined]
    adapter = stage.peft.build()
    beta: float = spec.beta  # type: ignore[attr-defined]
    needs_copy = beta > 0 and adapter is None
    steps = optimiser_steps(stage.train, len(run.examples.train) * group_size, stage.parallel.processes)
    return Policy(
        run,
        reference=copy.deepcopy(run.model).requires_grad_(False).eval() if needs_copy else None,
        model=run.model,
        reward_funcs=[scorer(run)],
        args=GRPOConfig(
            **training_arguments(run, steps=steps),
            num_generations=group_size,
            steps_per_generation=stage.train.accumulate * rollout.updates,
            num_iterations=1,
            max_completion_length=rollout.max_new_tokens,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k or 0,
            beta=0.0,  # `Policy` holds the reference itself
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
