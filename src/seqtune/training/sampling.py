"""Completions for policy objectives: sampled, begun from demonstrations, calling tools, scored, with their advantages.

Shapes: `B` rows of a process, `P` longest prompt, `T` longest completion.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from trl import GRPOTrainer

from seqtune.data.pieces import pieces
from seqtune.data.tokenize import prompt_ids
from seqtune.errors import SeqtuneError
from seqtune.evaluation.evaluate import plain
from seqtune.models.forest import attention
from seqtune.objectives.dapo import fill, informative
from seqtune.objectives.reduce import masked_mean
from seqtune.rollout.attention import NAME
from seqtune.rollout.noise import seed_of
from seqtune.rollout.transformers import generate
from seqtune.training.forest import body
from seqtune.training.rollouts import (
    LEFT,
    Anchor,
    Beginnings,
    Demonstrations,
    Place,
    Rollouts,
    Round,
    anchored,
    further,
    groups,
    side_by_side,
    together,
    token_texts,
)
from seqtune.training.staged import Staged
from seqtune.training.tools import ToolRollout, trained

if TYPE_CHECKING:
    from torch import Tensor

    from seqtune.objectives.specs.policy import Policy as PolicySpec
    from seqtune.rollout.tools import Turn
    from seqtune.training.stage import StageRun
    from seqtune.training.tools import Stop

OF_ROUNDS = (
    *("prefix_mask", "rank_rewards", "plan_rewards", "reward_columns", "calls"),
    *("format_scores", "judge_scores", "executions"),
)
"""What a round of prompts tells of its completions beside what TRL does."""


class Sampling(Staged, GRPOTrainer):  # type: ignore[misc]  # TRL is untyped
    """`GRPOTrainer` with reproducible sampling and the plan's reward and advantages."""

    args: Any
    num_generations: int
    max_completion_length: int
    reward_funcs: Any
    _round: int
    """Number of the round of prompts that is sampled, from 0."""
    _rows: list[dict[str, Any]]
    """The examples of this process's completions of it."""
    _given: list[list[int]]
    """Demonstration tokens each of them begins with."""

    def __init__(self, run: StageRun, **kwargs: Any) -> None:
        self.spec: PolicySpec = run.stage.objective  # type: ignore[assignment]  # of this family
        self.advantage = self.spec.build_advantage()
        self._round, self._rows, self._given = 0, [], []
        super().__init__(run, **kwargs)
        shares = self.spec.build_prefix_shares(self.args.max_steps)
        tools = run.stage.rollout.tools if run.stage.rollout is not None else {}
        self.calling = (
            ToolRollout(list(tools.values()), run.tokenizer, ends=self.eos_token_ids, limit=self.max_completion_length)
            if tools
            else None
        )
        self.demonstrations = None if self.spec.anchor_below is None else Demonstrations(run.tokenizer)
        self.beginnings = shares and Beginnings(
            run.tokenizer,
            shares,
            group_size=self.num_generations,
            limit=self.max_completion_length,
            seed=self.args.seed,
        )

    def _get_train_sampler(self, dataset: Any = None) -> Rollouts:
        args = self.args
        return Rollouts(
            len(dataset if dataset is not None else self.train_dataset),
            rollouts=math.ceil(args.max_steps / args.steps_per_generation),
            prompts=args.generation_batch_size // self.num_generations,
            group_size=self.num_generations,
            repeats=args.steps_per_generation,
            seed=args.seed,
        )

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """The ids supervised training and evaluation give the prompts: no token that ends a text is behind them."""
        return prompt_ids(self._rows, self._tokenizer), None, {}

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], list[list[float | None]] | None]:
        """Completions, those that go on from a demonstration with the tokens they were given."""
        if self.beginnings:
            places = self._places(len(prompt_ids))
            self._given = self.beginnings(self._rows, prompt_ids, places, self._step)
            for (_, _, completion), tokens in zip(places, self._given, strict=True):
                if completion == num_generations - 1:
                    self._log_metric("rollout/demonstrations", float(bool(tokens)))
                    self._log_metric("rollout/prefix_tokens", float(len(tokens)))
        else:
            self._given = [[]] * len(prompt_ids)
        beginnings = [[*prompt, *tokens] for prompt, tokens in zip(prompt_ids, self._given, strict=True)]
        alike = 1 if self.beginnings else num_generations  # vLLM takes every n-th prompt for n completions
        completions, logprobs = self._sample(beginnings, images, multimodal_fields, alike, has_tool_images)
        whole, known = [], []
        for row, (tokens, more) in enumerate(zip(self._given, completions, strict=True)):
            # No engine should, but one that answers with nothing has ended: every completion has a token.
            ids = [*tokens, *(more or self.eos_token_ids[:1])][: self.max_completion_length]
            own = logprobs[row] if logprobs is not None and more else []
            whole.append(ids)
            known.append(([None] * len(tokens) + [*own, None])[: len(ids)])
        return whole, None if logprobs is None else known

    def _sample(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """Our own sampling: what a completion is depends on its prompt and place in the rollout, not on its batch."""
        if self.use_vllm:
            return super()._generate_single_turn(  # type: ignore[no-any-return]  # TRL is untyped
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images
            )
        places = self._places(len(prompt_ids))
        if self.calling is not None:
            return self._conversed(self.calling, prompt_ids, places), None
        seeds = [seed_of(self.args.seed, *place) for place in places]
        return self._continued(prompt_ids, seeds, self.max_completion_length), None

    def _conversed(self, calling: ToolRollout, prompt_ids: list[list[int]], places: list[Place]) -> list[list[int]]:
        """Completions that may call tools; every turn has a seed of its own, the first that of a whole completion."""

        def generate(turns: list[Turn], stop: Stop) -> list[list[int]]:
            asked = [(*places[turn.row], *([turn.number] if turn.number else [])) for turn in turns]
            seeds = [seed_of(self.args.seed, *place) for place in asked]
            return self._continued([turn.context for turn in turns], seeds, max(turn.room for turn in turns), stop)

        found = calling(prompt_ids, generate)
        for one in found:
            self._log_metric("tools/calls", float(len(one.calls)))
            self._log_metric("tools/failures", float(one.failures))
            self._log_metric("tools/tokens", float(one.own.count(False)))
        self.reward_funcs[0].written = [
            [token for token, own in zip(one.ids, one.own, strict=True) if own] for one in found
        ]
        return [one.ids for one in found]

    def _continued(
        self, prompt_ids: list[list[int]], seeds: list[int], most: int, stop: Stop | None = None
    ) -> list[list[int]]:
        """At most `most` tokens after each prompt."""
        model = self.accelerator.unwrap_model(self.model_wrapped)
        with attention(body(model), NAME):  # a model that trains here reads forests
            return generate(
                model,
                prompt_ids,
                max_new_tokens=most,
                eos_token_id=self.eos_token_ids,
                pad_token_id=self._tokenizer.pad_token_id,
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k or None,
                seeds=seeds,
                batch_size=len(prompt_ids),
                watch=stop,
            )

    def _places(self, rows: int) -> list[Place]:
        """Where each of this process's rows stands; prompts of further rounds are counted on."""
        rollout = self._step // self.args.steps_per_generation
        first = (self._round * self.accelerator.num_processes + self.accelerator.process_index) * rows
        return [(rollout, *divmod(first + row, self.num_generations)) for row in range(rows)]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's rollout with the plan's advantages. TRL shuffles afterwards: groups are whole only here.

        Raises:
            SeqtuneError: The reward fails, or scores nothing of the first rollout.
        """
        output, rewards, texts = self._informative(inputs)
        if self._step == 0 and all(math.isnan(reward) for reward in rewards):
            raise SeqtuneError(
                f"the reward scored none of the {len(rewards)} completions of the first rollout",
                where="reward",
                hint="None leaves a completion out: check the reward, and the columns it reads",
            )
        own = self._described(output)
        known = {name: self._of_all(own[name]) for name in sorted(self.spec.advantage_inputs)}
        advantages = self.advantage(torch.tensor(rewards), **known)
        columns = output["completion_ids"].shape[1]
        mine = self._mine(len(inputs))
        own_advantages = advantages[mine] if advantages.dim() == 1 else advantages[mine, :columns]
        output["advantages"] = own_advantages.to(output["completion_ids"].device)
        output.update({name: own[name] for name in self.spec.loss_inputs if name in own})
        if "memory_mask" in output:
            right = torch.tensor(rewards[mine]) > self.spec.correct  # type: ignore[attr-defined]  # memories: searcher; NaN is not
            output["memory_mask"] &= right.unsqueeze(1).to(output["memory_mask"].device)
        ids = None
        if advantages.dim() == 2:
            ids = self._of_all(output["completion_ids"]), self._of_all(output["completion_mask"]).bool()
        if self.accelerator.is_main_process:
            self._write_samples(texts, rewards, advantages, ids, known)
        return output

    def _mine(self, rows: int) -> slice:
        """This process's `rows` among those of all."""
        return slice(self.accelerator.process_index * rows, (self.accelerator.process_index + 1) * rows)

    def _sampled(self, inputs: list[dict[str, Any]], number: int) -> Round:
        """A round of prompts, sampled and scored; its tensors hold the rows of this process."""
        self._round, self._rows = number, inputs
        # As text, messages too: TRL parses the completions of these where the tokenizer says how, and rewards would not
        # see all of them.
        asked = [{**row, "prompt": plain(row["prompt"])} for row in inputs]
        output: dict[str, Any] = super()._generate_and_score_completions(asked)
        tensors = {name: value for name, value in output.items() if isinstance(value, torch.Tensor) and value.ndim}
        device, width = output["completion_ids"].device, output["completion_ids"].shape[1]
        needs = self.spec.needs
        if self.beginnings:
            given = torch.tensor([len(tokens) for tokens in self._given], device=device)
            tensors["prefix_mask"] = torch.arange(width, device=device) < given.unsqueeze(1)
        if self.calling is not None:
            tensors |= self.calling.told(width, device, rewritten="memory_mask" in needs)
        scorer, rows = self.reward_funcs[0], len(inputs) * self.accelerator.num_processes
        told = {"rank_rewards": "by_rank", "reward_columns": "by_part", "plan_rewards": "by_plan"}
        for name, of_rows in told.items():
            if name in needs:
                tensors[name] = torch.tensor(getattr(scorer, of_rows), device=device)
        if "executions" in needs:
            form, judge, tries = torch.tensor(scorer.by_subgoal, device=device).tensor_split([1, 2], dim=1)
            tensors |= {"format_scores": form[:, 0], "judge_scores": judge[:, 0], "executions": tries}
        rewards, prompts, completions = (
            list(told)[-rows:]  # of all processes
            for told in (
                self._logs["rewards"][self.reward_func_names[0]],
                self._logs["prompt"],
                self._logs["completion"],
            )
        )
        one = Round(tensors, rewards, list(zip(prompts, completions, strict=True)))
        return one if self.demonstrations is None else self._anchored(one, inputs, self.demonstrations)

    def _anchored(self, one: Round, inputs: list[dict[str, Any]], demonstrations: Demonstrations) -> Round:
        """A round in which a group without a success has its last completion exchanged for the example's own, where
        the reward calls that a success and it is not too long.
        """
        size, limit, first = self.num_generations, self.max_completion_length, self._mine(len(inputs)).start
        success: float = self.spec.anchor_below  # type: ignore[assignment]  # there are demonstrations
        failed = [not any(reward > success for reward in group) for group in groups(one.rewards, size)]
        last = [row for row in range(len(inputs)) if (first + row) % size == size - 1 and failed[(first + row) // size]]
        live = one.tensors["prompt_mask"].bool()
        prompts = [one.tensors["prompt_ids"][row][live[row]].tolist() for row in last]
        wholes = demonstrations.tokens([inputs[row] for row in last], prompts)
        fitting = [Anchor(*pair) for pair in zip(last, wholes, strict=True) if 0 < len(pair[1]) <= limit]
        texts, scores = self._judged(inputs, fitting)
        good = [n for n, score in enumerate(scores) if score is not None and score > success]
        tensors = anchored(one.tensors, [fitting[n] for n in good])
        for n in good:
            if "reward_columns" in tensors:
                tensors["reward_columns"][fitting[n].row] = torch.tensor(self.reward_funcs[0].by_part[n])
        everyone = gather_object([(first + fitting[n].row, texts[n], scores[n]) for n in good])
        for row, text, score in everyone:
            one.rewards[row], one.texts[row] = score, (one.texts[row][0], text)
        self._metrics["train"]["rollout/anchors"].append(len(everyone) / len(failed))
        return one._replace(tensors=tensors)

    def _judged(self, inputs: list[dict[str, Any]], anchors: list[Anchor]) -> tuple[list[str], list[float | None]]:
        """Texts of demonstrations and what they would earn; nothing of it is recorded."""
        if not anchors:
            return [], []
        rows, ids = [inputs[anchor.row] for anchor in anchors], [anchor.tokens for anchor in anchors]
        texts: list[str] = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        scores: list[float | None] = self.reward_funcs[0](
            prompts=[row["prompt"] for row in rows],
            completions=texts,
            completion_ids=ids,
            trainer_state=self.state,
            log_extra=None,
            log_metric=lambda name, value: None,
            **{key: [row[key] for row in rows] for key in rows[0] if key not in ("prompt", "completion")},
        )
        return texts, scores

    def _informative(self, inputs: list[dict[str, Any]]) -> Round:
        """A rollout, its groups with equal rewards exchanged for others from further rounds of prompts as long as there
        are such groups and rounds are left.
        """
        size, mine = self.num_generations, self._mine(len(inputs))
        rounds = [self._sampled(inputs, 0)]
        wanted = len(rounds[0].rewards) // size
        kept = self._kept(rounds[0])
        while sum(kept) < wanted and len(rounds) < self.spec.sampling_rounds:
            key = (self.args.seed, self._step // self.args.steps_per_generation)
            more = further(len(self.train_dataset), wanted, len(rounds), key)
            prompts = [row for row in more for _ in range(size)][mine]
            rounds.append(self._sampled([self.train_dataset[row] for row in prompts], len(rounds)))
            kept += self._kept(rounds[-1])
        if self.spec.sampling_rounds > 1:
            told = self._metrics["train"]
            told["rollout/rounds"].append(len(rounds))
            told["rollout/dropped"].append(1 - 1 / len(rounds))
            told["rollout/filled"].append(max(1 - sum(kept) / wanted, 0.0))
        if len(rounds) == 1:
            return rounds[0]
        numbers = range(len(kept))
        chosen = fill([n for n in numbers if kept[n]], [n for n in numbers if not kept[n]], wanted)
        everyone = [
            one._replace(tensors={name: self._of_all(v, left=name in LEFT) for name, v in one.tensors.items()})
            for one in rounds
        ]
        found = together(everyone, chosen, size, mine)
        return found._replace(tensors={name: v.to(self.accelerator.device) for name, v in found.tensors.items()})

    def _kept(self, one: Round) -> list[bool]:
        """Whether each of its groups has rewards that differ."""
        return informative(groups(one.rewards, self.num_generations))

    def _described(self, output: dict[str, Any]) -> dict[str, Any]:
        """What the objective asks to know of this process's completions, by the names its spec uses."""
        asked = self.spec.needs
        ids, mask = output["completion_ids"], trained(output)
        places = torch.arange(ids.shape[1], device=ids.device)
        last = ids.gather(1, (places * mask).amax(1, keepdim=True)).squeeze(1)
        found: dict[str, Any] = {
            "mask": mask,
            "completion_ids": ids,
            "ended": torch.isin(last, torch.tensor(self.eos_token_ids, device=ids.device)),
            "limit": self.max_completion_length,
        }
        if "ref_per_token_logps" in output:
            found["ref_logps"] = output["ref_per_token_logps"]
        if "sampling_per_token_logps" in output:
            found["sampler_logps"] = output["sampling_per_token_logps"]
        if asked & {"old_logps", "entropies", "correction_scale"}:
            rows = side_by_side(output)
            with torch.no_grad():
                found["old_logps"], found["entropies"] = self._scores(self.model, *rows, ids.shape[1], entropy=True)
        if "reward_columns" in asked:
            found["reward_weights"] = self.reward_funcs[0].weights
        found |= {name: output[name] for name in OF_ROUNDS if name in output}
        if "correction_scale" in asked:
            gap = found["old_logps"] - found.get("sampler_logps", found["old_logps"])
            total, units = self.accelerator.reduce(self.spec.build_correction().total(gap, mask), reduction="sum")
            found["correction_scale"] = (total / units.clamp(min=1)).expand(len(ids)).contiguous()
        if "segments" in asked:
            found["segments"] = self._segments(ids, mask)
        return found

    def _segments(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Segment of each token, `[B, T]`; -1 outside the mask."""
        found = torch.full_like(ids, -1)
        segment, texts = self.spec.build_segments(), token_texts(ids[mask].tolist(), self._tokenizer)
        for row, (tokens, live) in enumerate(zip(ids.tolist(), mask, strict=True)):
            numbers = segment([texts[token] for token, keep in zip(tokens, live.tolist(), strict=True) if keep])
            found[row, live] = torch.tensor(numbers, dtype=ids.dtype, device=ids.device)
        return found

    def _of_all(self, value: Any, *, left: bool = False) -> Any:
        """Rows of all processes, in their order, padded to the same width (on the left); a number is everyone's."""
        if not isinstance(value, torch.Tensor):
            return value
        kind = value.dtype
        if value.dim() > 1:
            number = value.byte() if kind is torch.bool else value  # accelerate pads flags to integers
            value = self.accelerator.pad_across_processes(number, dim=1, pad_first=left)
        return self.accelerator.gather(value).cpu().to(kind)

    def _write_samples(
        self,
        texts: list[tuple[str, str]],
        rewards: list[float],
        advantages: Tensor,
        ids: tuple[Tensor, Tensor] | None,
        known: dict[str, Any],
    ) -> None:
        """One group of every rollout, to read: `{stage, step, prompt, completion, reward, advantage}` a completion.

        Where tokens have advantages of their own they stand in `advantages`, one a token, with the tokens' texts in
        `pieces`, and `advantage` is their mean. None is what the objective leaves out. The first
        `prefix_tokens` of a completion were given by a demonstration.
        """
        mask: Tensor | None = known.get("mask")
        by_token = []
        if mask is not None and ids is not None:
            values_shown = torch.where(mask.bool(), advantages, torch.nan)  # of what a tool gave: none
            for tokens, values, live in islice(zip(ids[0], values_shown, ids[1], strict=True), self.num_generations):
                by_token.append((values[live].tolist(), pieces(tokens[live].tolist(), self._tokenizer)))
            advantages = masked_mean(advantages, mask, dim=1)
        shown = zip(texts, rewards, advantages.tolist(), strict=True)
        rows = [
            {
                "stage": self.run.stage.name,
                "step": self.state.global_step + 1,
                "prompt": prompt,
                "completion": completion,
                "reward": None if math.isnan(reward) else reward,
                "advantage": None if math.isnan(advantage) else advantage,
            }
            for (prompt, completion), reward, advantage in islice(shown, self.num_generations)
        ]
        for row, (values, told) in zip(rows, by_token, strict=False):
            row["advantages"] = [None if math.isnan(value) else value for value in values]
            row["pieces"] = told
        if "prefix_mask" in known:
            for row, given in zip(rows, known["prefix_mask"].sum(1).tolist(), strict=False):
                row["prefix_tokens"] = given
        self.run.folder.append_samples(rows)

    @abstractmethod
    def _scores(
        self, model: Any, ids: Tensor, present: Tensor, completion: int, *, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        """Log-probs of the last `completion` columns of padded rows, `[B, T]`, and, if asked for, entropies."""
