"""The policy trainer: its hooks in TRL, the gradient it takes, what it records and how it goes on after a crash."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import policy_stage
import pytest
import torch
from datasets import Dataset
from policy_stage import PROMPTS, stage, stage_run
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from trl import GRPOTrainer, chat_template_utils
from trl.chat_template_utils import add_response_schema

from seqtune.data.tokenize import prompt_ids
from seqtune.errors import SeqtuneError
from seqtune.evaluation.evaluate import plain
from seqtune.objectives.advantages import group
from seqtune.report.run_folder import RunFolder
from seqtune.rewards.score import score
from seqtune.training import policy
from seqtune.training.policy import Policy, trainer
from seqtune.training.rollouts import Rollouts, by_group
from seqtune.training.sampling import Sampling

ASCII_FIRST = r"(?s)[\x00-\x7f].*"
"""About half of an untrained byte model's completions match: rewards differ within groups."""


def scored(**changes: dict[str, Any]) -> Any:
    return stage(**{"reward": {"pattern": ASCII_FIRST}, **changes})


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def first_gradients(one: Policy, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The accumulated gradient of the first optimiser step, unclipped."""
    found: dict[str, torch.Tensor] = {}

    def keep(model: Any, grad_norm: Any = None) -> Any:
        found.update(gradients(model))
        raise StopIteration

    monkeypatch.setattr(one, "_clip_grad_norm", lambda model: torch.tensor(0.0))
    monkeypatch.setattr(one, "_get_grad_norm", keep)
    with pytest.raises(StopIteration):
        one.train()
    return found


PINNED = {
    "_get_train_sampler": (
        "(self, dataset: datasets.arrow_dataset.Dataset | None = None) -> torch.utils.data.sampler.Sampler"
    ),
    "_tokenize_prompts": "(self, prompts: list)",
    "_generate_single_turn": "(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False)",
    "_generate_and_score_completions": (
        "(self, inputs: list[dict[str, torch.Tensor | typing.Any]]) -> dict[str, torch.Tensor | typing.Any]"
    ),
    "_prepare_inputs": (
        "(self, generation_batch: dict[str, torch.Tensor | typing.Any]) -> dict[str, torch.Tensor | typing.Any]"
    ),
    "training_step": "(self, model, inputs, num_items_in_batch)",
    "log": "(self, logs: dict[str, float], start_time: float | None = None) -> None",
    "_save_checkpoint": "(self, model, trial)",
}


@pytest.mark.parametrize("name", sorted(PINNED))
def test_overridden_methods_have_the_signature_they_had(name: str) -> None:
    assert str(inspect.signature(getattr(GRPOTrainer, name))) == PINNED[name]
    ours, theirs = (inspect.signature(getattr(cls, name)).parameters for cls in (Policy, GRPOTrainer))
    assert list(ours) == list(theirs)


def test_log_probs_are_asked_for_as_they_were() -> None:
    """Ours takes the images and videos of TRL's signature together: there are none."""
    theirs = list(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    ours = list(inspect.signature(Policy._get_per_token_logps_and_entropies).parameters)
    assert ours[:-1] == theirs[: len(ours) - 1]
    assert theirs[len(ours) - 1] == "pixel_values"


def test_nothing_else_of_trl_is_overridden() -> None:
    ours = vars(Sampling) | vars(Policy)
    overridden = {name for name in ours if hasattr(GRPOTrainer, name) and not name.startswith("__")}
    assert overridden == {*PINNED, "_get_per_token_logps_and_entropies"}


def test_rows_of_the_metrics(tmp_path: Path) -> None:
    trainer(stage_run(tmp_path, scored(rollout={"updates": 2}, train={"max_steps": 4}))).train()
    rows = RunFolder(tmp_path).metrics()
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    needed = {"reward/mean", "reward/std", "completions/mean_length", "completions/clipped_ratio", "policy/clip_low"}
    assert needed <= set(rows[0])
    assert all("/" in key for key in rows[0] if key not in ("stage", "step", "loss", "tokens", "seconds"))
    assert not [key for key in rows[0] if "time" in key or key.startswith("rewards/")]
    assert rows[0]["policy/ratio_mean"] == pytest.approx(1, abs=1e-6), "the first update is on policy"
    assert abs(rows[1]["policy/ratio_mean"] - 1) > 1e-6, "the second is not"
    assert rows[0]["tokens"] < rows[1]["tokens"] < rows[2]["tokens"]
    assert rows[0]["tokens/computed"] < rows[0]["tokens"] <= rows[0]["tokens/padded"], "a group shares its prompt"
    assert rows[0]["tokens/saving"] == pytest.approx(1 - rows[0]["tokens/computed"] / rows[0]["tokens/padded"])
    samples = RunFolder(tmp_path).samples()
    assert [sample["step"] for sample in samples] == [1] * 4 + [3] * 4
    assert len({sample["prompt"] for sample in samples[:4]}) == 1
    expected = group(torch.tensor([sample["reward"] for sample in samples[:4]]), 4)
    assert [sample["advantage"] for sample in samples[:4]] == pytest.approx(expected.tolist())


def test_on_policy_gspo_is_the_policy_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """-(1/B) Σ A_i (1/n_i) Σ_t ∇log π, from the raw logits of an untouched copy of the model."""
    run = stage_run(tmp_path, scored(rollout={"temperature": 0.7}))
    one = trainer(run)
    batches: list[dict[str, torch.Tensor]] = []
    original = one.measure
    monkeypatch.setattr(
        one, "measure", lambda model, batch, n: (batches.append(batch.rows), original(model, batch, n))[1]
    )
    found = first_gradients(one, monkeypatch)
    assert len(batches) == 1
    inputs = batches[0]
    assert inputs["advantages"].abs().max() > 0.5

    model = policy_stage.load_model(run.stage.model)
    loss = torch.zeros(())
    for i in range(8):
        prompt = inputs["prompt_ids"][i][inputs["prompt_mask"][i].bool()]
        completion = inputs["completion_ids"][i][inputs["completion_mask"][i].bool()]
        logits = model(torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1] / 0.7
        logps = logits.log_softmax(-1).gather(1, completion[:, None])
        loss = loss - inputs["advantages"][i] * logps.mean() / 8
    loss.backward()
    for name, expected in gradients(model).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize(
    "objective", [{"name": "gspo"}, {"name": "grpo", "aggregation": "token_mean"}], ids=["sequences", "tokens"]
)
def test_the_gradient_does_not_depend_on_the_micro_batches(
    objective: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 x 16 == 4 x 4 == 16 x 1; unequal lengths, so tokens and completions weigh differently."""
    found = []
    for batch_size, accumulate in ((16, 1), (4, 4), (1, 16)):
        one = scored(
            objective={"group_size": 4, **objective},
            train={"batch_size": batch_size, "accumulate": accumulate},
            rollout={"temperature": 3.0, "max_new_tokens": 6},
        )
        run = stage_run(tmp_path / f"{batch_size}", one)
        with torch.no_grad():  # end-of-text likely enough that completions differ in length
            run.model.get_output_embeddings().weight[258] += 0.3
            run.model.model.norm.weight.fill_(1.0)
        one = trainer(run)
        one.eos_token_ids = [258, *range(0, 256, 4)]
        found.append(first_gradients(one, monkeypatch))
        lengths = torch.cat([row["completion_mask"].sum(1) for row in one._buffered_inputs])
        assert len(set(lengths.tolist())) > 2
    for other in found[1:]:
        for name, gradient in found[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-7, msg=name)


def test_gspo_and_grpo_part_ways_on_the_second_update(tmp_path: Path) -> None:
    """Equal on policy, with the same completions; different once the ratio has left 1."""
    losses = {}
    for name in ("gspo", "grpo"):
        objective = {"name": name, "beta": 0.0, "epsilon_low": 0.2, "epsilon_high": 0.2}
        one = scored(objective=objective, rollout={"updates": 2}, train={"max_steps": 2, "learning_rate": 0.01})
        trainer(stage_run(tmp_path / name, one)).train()
        losses[name] = [row["loss"] for row in RunFolder(tmp_path / name).metrics()]
    assert losses["gspo"][0] == pytest.approx(losses["grpo"][0], abs=1e-6)
    assert abs(losses["gspo"][1] - losses["grpo"][1]) > 1e-5


@pytest.mark.parametrize("peft", ["full", "lora"])
def test_the_reference_is_the_model_the_stage_starts_from(peft: str, tmp_path: Path) -> None:
    one = scored(objective={"name": "grpo", "beta": 0.5}, peft={"name": peft}, train={"learning_rate": 0.02})
    trainer(stage_run(tmp_path, one)).train()
    divergence = [row["policy/kl"] for row in RunFolder(tmp_path).metrics()]
    assert divergence[0] == pytest.approx(0, abs=1e-6)
    assert divergence[-1] > 1e-5


def test_sampling_does_not_depend_on_the_micro_batches(tmp_path: Path) -> None:
    completions = []
    for batch_size, accumulate in ((8, 1), (2, 4)):
        one = scored(train={"batch_size": batch_size, "accumulate": accumulate, "max_steps": 1})
        trainer(stage_run(tmp_path / f"{batch_size}", one)).train()
        completions.append([row["completion"] for row in RunFolder(tmp_path / f"{batch_size}").samples()])
    assert completions[0] == completions[1]
    assert len(set(completions[0])) == 4, "a group of four different completions"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise RuntimeError('no')", "raised RuntimeError: no"),
        ("return [float('nan') if i == 5 else 1.0 for i in range(len(completions))]", "nan"),
        ("return [1.0]", "1 values"),
    ],
)
def test_a_failing_reward_stops_the_run_and_names_the_row(body: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text(f"def bad(prompts, completions, **columns):\n    {body}\n")
    one = trainer(stage_run(tmp_path / "run", stage(reward={"name": "format", "pattern": "x"})))
    namespace: dict[str, Any] = {}
    exec(file.read_text(), namespace)
    one.reward_funcs = [
        lambda prompts, completions, completion_ids, trainer_state, log_extra, log_metric, **columns: score(
            namespace["bad"], prompts, completions, columns, name="bad"
        )
    ]
    with pytest.raises(SeqtuneError, match=message) as caught:
        one.train()
    assert "row " in str(caught.value)


def test_a_completion_without_a_score_gets_no_advantage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = trainer(stage_run(tmp_path, scored(train={"max_steps": 1})))

    def reward(completions: list[str], **others: Any) -> list[float | None]:
        return [None, 1.0, 0.0, 1.0, None, None, None, 1.0]

    one.reward_funcs = [reward]
    one.train()
    samples = RunFolder(tmp_path).samples()
    assert [sample["reward"] for sample in samples] == [None, 1.0, 0.0, 1.0]
    assert samples[0]["advantage"] == 0
    left = sorted(one._buffered_inputs[0]["advantages"].tolist())
    assert left[1:6] == [0, 0, 0, 0, 0], "one unscored row, and a group with a single score"


def test_a_reward_that_scores_nothing_stops_the_run_before_it_trains(tmp_path: Path) -> None:
    one = trainer(stage_run(tmp_path, scored(train={"max_steps": 2})))
    scores: list[list[float | None]] = [[None] * 8, [1.0, 0.0] * 4, [None] * 8]

    def reward(completions: list[str], **others: Any) -> list[float | None]:
        return scores.pop(0)

    one.reward_funcs = [reward]
    before = {name: weight.clone() for name, weight in one.model.named_parameters()}
    with pytest.raises(SeqtuneError, match="scored none of the 8 completions of the first rollout"):
        one.train()
    assert all(weight.equal(before[name]) for name, weight in one.model.named_parameters())
    again = trainer(stage_run(tmp_path / "later", scored(train={"max_steps": 2})))
    again.reward_funcs = [reward]
    again.train()  # later it may be the examples of a step
    assert [row["reward/mean"] for row in RunFolder(tmp_path / "later").metrics()][1:] == [None]


def test_the_advantages_are_those_of_the_plan(tmp_path: Path) -> None:
    one = trainer(stage_run(tmp_path, scored(objective={"advantage": "centered"}, train={"max_steps": 1})))
    one.reward_funcs = [lambda completions, **others: [1.0, 0, 0, 0, 1, 1, 0, 1]]
    one.train()
    used = sorted(one._buffered_inputs[0]["advantages"].tolist())
    assert used == [-0.75, -0.25, -0.25, -0.25, 0.25, 0.25, 0.25, 0.75]


def test_prompts_of_a_chat(tmp_path: Path) -> None:
    """Messages go through the chat template; the reward and the samples see their plain text."""
    run = stage_run(tmp_path, scored(train={"max_steps": 1}))
    turns = Dataset.from_list([{"prompt": [{"role": "user", "content": prompt}]} for prompt in PROMPTS])
    run = replace(run, examples=replace(run.examples, train=turns))
    one = trainer(run)
    one.train()
    sample = RunFolder(tmp_path).samples()[0]
    assert sample["prompt"] in PROMPTS
    assert isinstance(sample["completion"], str)
    inputs = one._buffered_inputs[0]
    text = run.tokenizer.decode(inputs["prompt_ids"][0][inputs["prompt_mask"][0].bool()])
    assert text.startswith("<|im_start|>user\n")
    assert text.endswith("<|im_start|>assistant\n")


def test_a_reward_sees_all_of_a_completion(tmp_path: Path) -> None:
    """Where a tokenizer says how to take a response apart, TRL would hand the reward its content alone."""
    run = stage_run(tmp_path, scored(rollout={"max_new_tokens": 40}, train={"max_steps": 1}))
    turns = Dataset.from_list([{"prompt": [{"role": "user", "content": prompt}]} for prompt in PROMPTS])
    run.tokenizer.chat_template = chat_template_utils.qwen3_chat_template
    add_response_schema(run.tokenizer)
    one = trainer(replace(run, examples=replace(run.examples, train=turns)))
    said = run.tokenizer("<think>why</think>because")["input_ids"]
    one._continued = lambda prompts, *others: [[*said, run.tokenizer.eos_token_id]] * len(prompts)
    seen: list[str] = []
    one.reward_funcs[0].reward = lambda prompts, completions, **others: seen.extend(completions) or [0.0] * len(prompts)
    one.train()
    assert set(seen) == {"<think>why</think>because"}
    assert {row["completion"] for row in RunFolder(tmp_path).samples()} == set(seen)


def test_prompts_are_those_of_supervised_training(tmp_path: Path) -> None:
    """A tokenizer that ends what it is called with, as some do, would end the prompts that completions go on from."""
    run = stage_run(tmp_path, scored(train={"max_steps": 1}))
    end = (run.tokenizer.eos_token, run.tokenizer.eos_token_id)
    run.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    assert run.tokenizer("a")["input_ids"][-1] == end[1]
    one = trainer(run)
    one.train()
    inputs = one._buffered_inputs[0]
    found = [
        tuple(ids[live.bool()].tolist()) for ids, live in zip(inputs["prompt_ids"], inputs["prompt_mask"], strict=True)
    ]
    assert set(found) <= set(map(tuple, prompt_ids(run.examples.train, run.tokenizer)))


@pytest.mark.parametrize(("more", "hint"), [(4090, "max_new_tokens=4086"), (4086, None)])
def test_prompts_and_completions_have_positions(more: int, hint: str | None, tmp_path: Path) -> None:
    """The longest prompt has 10 tokens and the tiny model 4096 positions."""
    run = stage_run(tmp_path, scored(rollout={"max_new_tokens": more}))
    if hint is None:
        trainer(run)
        return
    with pytest.raises(SeqtuneError, match="longest prompt has 10 tokens") as caught:
        trainer(run)
    assert hint in str(caught.value)


def test_ratios_are_1_before_an_update_whatever_the_dropout(tmp_path: Path) -> None:
    """The policy that samples has no dropout; an old policy with it would differ from itself."""
    peft = {"name": "lora", "rank": 4, "dropout": 0.5}
    one = trainer(
        stage_run(tmp_path, stage(peft=peft, rollout={"updates": 2}, train={"max_steps": 4, "learning_rate": 0.1}))
    )
    one.reward_funcs = [lambda completions, **others: [float(n % 3) for n in range(len(completions))]]
    one.train()
    moved = [row["policy/approx_kl"] for row in RunFolder(tmp_path).metrics()]
    assert moved[0] < 1e-9
    assert moved[2] < 1e-9
    assert moved[3] > 1e-5


def test_vllm_that_is_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SeqtuneError, match="vllm is not installed"):
        trainer(stage_run(tmp_path, stage(rollout={"name": "vllm"})))


def test_groups_stay_whole_when_a_rollout_is_shuffled() -> None:
    order = by_group(0, 24, 4, (1, 0))
    assert sorted(order.tolist()) == list(range(24))
    groups = (order // 4).reshape(6, 4)
    assert (groups == groups[:, :1]).all()
    assert groups[:, 0].tolist() != list(range(6))
    assert not torch.equal(order, by_group(0, 24, 4, (1, 1)))


def test_a_group_that_lies_on_two_processes_is_kept_together_on_each() -> None:
    order = by_group(6, 6, 4, (0,))  # rows 6 and 7 of a group whose first two are elsewhere, and a whole one
    assert sorted(order.tolist()) == list(range(6))
    assert abs(int((order == 0).nonzero()) - int((order == 1).nonzero())) == 1


def test_a_token_budget_cuts_the_step_and_changes_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, batches = [], []
    for budget in (None, 60):
        run = stage_run(tmp_path / f"{budget}", scored(train={"batch_size": 16, "tokens_per_batch": budget}))
        one = trainer(run)
        cut = one.micro_batches
        monkeypatch.setattr(one, "micro_batches", lambda inputs, cut=cut: batches.append(cut(inputs)) or batches[-1])
        found.append(first_gradients(one, monkeypatch))
    assert len(batches[0]) == 1 < len(batches[1])
    assert all(batch.tokens.computed <= 60 for batch in batches[1])
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-7, msg=name)


def test_prompts_of_a_rollout() -> None:
    rows = list(Rollouts(5, rollouts=3, prompts=2, group_size=2, repeats=2, seed=1))
    rollouts = [rows[i : i + 8] for i in range(0, 24, 8)]
    for rollout in rollouts:
        assert rollout[:4] == rollout[4:], "TRL draws the rows again for every micro-batch"
        assert rollout[0] == rollout[1] != rollout[2] == rollout[3]
    assert {row for rollout in rollouts for row in rollout[:4:2]} >= set(range(5)) - {rows[-2]}
    assert rows == list(Rollouts(5, rollouts=3, prompts=2, group_size=2, repeats=2, seed=1))
    assert rows != list(Rollouts(5, rollouts=3, prompts=2, group_size=2, repeats=2, seed=2))


CRASH = """
import sys, os, signal
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from policy_stage import stage_run
from test_policy import scored_for_crash
from seqtune.report.events import Step
from seqtune.training.policy import trainer

def watch(event):
    if isinstance(event, Step) and event.row["step"] == 4 and sys.argv[3] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)

run = stage_run(Path(sys.argv[1]), scored_for_crash(), watch=watch)
one = trainer(run)
one.train(resume_from_checkpoint=str(run.checkpoint) if run.checkpoint else None)
one.save_model(str(Path(sys.argv[1]) / "end"))
"""


def scored_for_crash() -> Any:
    """Two micro-batches a step, three steps a rollout, checkpoints inside the first rollout and the second."""
    return scored(
        rollout={"updates": 3},
        train={"batch_size": 4, "accumulate": 2, "max_steps": 7, "save_every": 2, "learning_rate": 0.01},
    )


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """SIGKILL after step 4 was recorded, before its checkpoint: steps 3 and 4 are done again, within one rollout."""

    def process(folder: Path, how: str) -> int:
        command = [sys.executable, "-c", CRASH, str(folder), str(Path(__file__).parent), how]
        return subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False).returncode

    assert process(tmp_path / "whole", "run") == 0
    assert process(tmp_path / "cut", "kill") == -signal.SIGKILL
    folder = RunFolder(tmp_path / "cut")
    checkpoint = policy_stage.complete_checkpoints(folder.path / "checkpoints" / "policy")[-1]
    assert checkpoint.name == "checkpoint-2"
    assert (checkpoint / "rollout-0.safetensors").is_file()
    marker = json.loads((checkpoint / "complete.json").read_text())
    assert marker["metrics"] == 2 < len(folder.metrics())
    folder.truncate_metrics(marker["metrics"])
    folder.truncate_samples(marker["samples"])
    assert process(tmp_path / "cut", "run") == 0

    whole, cut = (
        [{key: value for key, value in row.items() if key != "seconds"} for row in RunFolder(tmp_path / name).metrics()]
        for name in ("whole", "cut")
    )
    assert whole == cut
    assert len(whole) == 7
    assert RunFolder(tmp_path / "whole").samples() == folder.samples()
    weights = [load_file(tmp_path / name / "end" / "model.safetensors") for name in ("whole", "cut")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_plain_text_of_messages() -> None:
    assert plain("as it is") == "as it is"
    assert plain([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]) == "a\nb"
    assert len(PROMPTS) == 16
