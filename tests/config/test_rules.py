"""Rules between fields: each refuses its combination, naming the fields and the way out, and lets neighbours by."""

from __future__ import annotations

import pytest

from seqtune.config.reading import read
from seqtune.errors import SeqtuneError
from seqtune_cli.compose import compose

BROKEN = [
    ("gspo_tiny", ["objective=policy", "objective.ratio=sequence", "objective.aggregation=token_sum"],
     "objective.ratio=sequence with objective.aggregation=token_sum: summing over tokens would weigh each "
     "completion by its length, while the ratio that is clipped belongs to the whole completion",
     "objective.aggregation: command line, objective.ratio: command line",
     "objective.aggregation=sequence_mean, or objective=grpo"),
    ("gspo_tiny", ["objective.aggregation=token_mean"],
     "objective.ratio=sequence with objective.aggregation=token_mean",
     "objective.aggregation: command line, objective.ratio: default", "objective.aggregation=sequence_mean"),
    ("gspo_tiny", ["objective.group_size=5"],
     "train.batch_size × parallel.processes × train.accumulate × rollout.updates = 32 completions a rollout "
     "do not make whole groups of objective.group_size=5", "objective.group_size: command line", "train.batch_size=30"),
    ("gspo_tiny", ["~reward"], "objective 'gspo' samples completions and scores them, but there is no reward",
     "reward: not set", "reward=math_equiv"),
    ("gspo_tiny", ["data=messages", "data.path=x.jsonl"], "objective 'gspo' cannot use data of the format 'messages'",
     "data.format: seqtune_recipes/data/messages.yaml", "data of the format prompt_answer or prompt_completion"),
    ("sft_tiny", ["data=preference", "data.path=x.jsonl"], "objective 'sft' cannot use data of the format 'preference'",
     "data.format", "text or prompt_completion or messages"),
    ("dpo_tiny", ["data=text", "data.path=x.txt"], "objective 'dpo' cannot use data of the format 'text'",
     "data.format", "preference"),
    ("gspo_tiny", ["peft=lora", "peft.targets=[q_proj,lm_head]"],
     "objective 'gspo' reads log-probs through a fused LM head, which an adapter on lm_head bypasses",
     "peft.targets: command line", "leave lm_head out of peft.targets"),
    ("gspo_tiny", ["packing=best_fit"],
     "objective 'gspo' batches padded pairs or completions; packing 'best_fit' "
     "would not be used", "packing.name", "packing=none"),
    ("gspo_tiny", ["packing.path=packs/x"], "packing.path holds packed token rows, but objective 'gspo' needs prompts",
     "packing.path: command line", "packing.path=null"),
    ("sft_tiny", ["eval=pass_at_k", "eval.samples=4"], "pass@8 needs at least 8 samples a prompt, eval.samples is 4",
     "eval.samples: command line", "eval.samples=8"),
    ("sft_tiny", ["eval.samples=4"], "eval 'greedy' takes one completion a prompt", "eval.samples: command line",
     "eval=pass_at_k"),
    ("sft_tiny", ["eval.temperature=0.5"], "eval 'greedy' samples nothing", "eval.temperature: command line",
     "eval=pass_at_k"),
    ("sft_tiny", ["eval.between_stages=true", "~reward"], "eval 'greedy' needs a reward to judge completions",
     "eval.name", "reward=math_equiv"),
    ("sft_tiny", ["eval.between_stages=true", "data.eval_size=0"], "eval.between_stages needs held-out examples",
     "data.eval_size: command line", "data.eval_size=500"),
    ("sft_tiny", ["train.eval_every=5", "data.eval_size=0"], "train.eval_every needs held-out examples",
     "train.eval_every: command line", "data.eval_size=200"),
    ("sft_tiny", ["model.heads=3"], "model.hidden_size=128 is not an even multiple of model.heads=3",
     "model.heads: command line", "model.hidden_size=126"),
    ("sft_tiny", ["model.kv_heads=3"], "model.heads=4 is not a multiple of model.kv_heads=3",
     "model.kv_heads: command line", "model.kv_heads=1"),
    ("sft_tiny", ["data=text", "data.path=null"], "no data: neither data.path nor data.name is set",
     "data.path: command line", "data.path=FILE"),
    ("sft_tiny", ["data=gsm8k", "data.path=x.jsonl", "data.name=y"], "data.path and data.name both say where",
     "data.name: command line, data.path: command line", "leave one out"),
    ("sft_tiny", ["data=gsm8k", "data.eval_path=x.jsonl"], "held-out examples come from data.eval_path and from",
     "data.eval_size: seqtune_recipes/data/gsm8k.yaml", "data.eval_size=0"),
    ("sft_tiny", ["data=messages", "data.path=x.jsonl", "data.answer_pattern=a"], "data.answer_pattern finds an answer",
     "data.answer_pattern: command line", "data.answer_pattern=null"),
    ("sft_tiny", ["data=messages", "data.path=x.jsonl", "data.chat=true"], "data.chat renders prompts as chat turns",
     "data.chat: command line", "data.chat=false"),
    ("sft_tiny", ["data=messages", "data.path=x.jsonl", "data.columns.mesages=m"],
     "data.columns.mesages: data of the format 'messages' has no field 'mesages'", "command line",
     "did you mean 'messages'?"),
    ("sft_tiny", ["parallel=fsdp2", "model.dtype=float16"], "float16 needs loss scaling", "model.dtype: command line",
     "model.dtype=bfloat16"),
    ("sft_tiny", ["rollout=transformers", "rollout.temperature=0.9"],
     "rollout.temperature: nothing reads it; objective 'sft' samples no completions", "command line",
     "leave rollout.temperature out"),
    ("gspo_tiny", ["rollout.vllm_memory=0.5"],
     "rollout.vllm_memory: nothing reads it; rollout 'transformers' is not vllm",
     "command line", "leave"),
    ("gspo_tiny", ["packing.capacity=64"], "packing.capacity: nothing reads it; rollout.max_new_tokens bounds",
     "command line", "leave"),
    ("dpo_tiny", ["packing.attention=causal"], "packing.attention: nothing reads it; objective 'dpo' packs no rows",
     "command line", "leave"),
    ("gspo_tiny", ["objective.kl=k1"], "objective.kl: nothing reads it; objective.beta=0 keeps no reference model",
     "command line", "leave"),
    ("sft_tiny", ["train.epochs=2"],
     "train.epochs: nothing reads it; train.max_steps=60 decides", "command line", "leave"),
    ("quickstart", ["stages.gspo.model.layers=2"], "model.layers: stage 'gspo' names another model than 'sft'",
     "command line (stage gspo)", "leave the model of a later stage as it is"),
    ("quickstart", ["stages.sft=['objective=reward','data=template_pairs','packing=none']"],
     "stage 'gspo' cannot start from stage 'sft', which ends with a reward model", "(stage gspo)", "train the reward"),
]  # fmt: skip


@pytest.mark.parametrize(("recipe", "words", "problem", "where", "hint"), BROKEN, ids=lambda value: "")
def test_a_combination_that_cannot_run_is_refused(
    recipe: str, words: list[str], problem: str, where: str, hint: str
) -> None:
    with pytest.raises(SeqtuneError) as caught:
        read(compose(words, recipe))
    (told,) = (one for one in caught.value.problems if one.problem.startswith(problem))
    assert where in told.where
    assert told.hint.startswith(hint) or hint in told.hint


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("gspo_tiny", ["objective=grpo", "objective.aggregation=token_sum"]),
        ("gspo_tiny", ["objective=policy", "objective.ratio=sequence"]),
        ("gspo_tiny", ["objective.group_size=16"]),
        ("gspo_tiny", ["train.batch_size=4", "objective.group_size=8", "rollout.updates=2"]),
        ("gspo_tiny", ["objective.kl=k1", "objective.beta=0.1"]),
        ("gspo_tiny", ["rollout=vllm", "rollout.vllm_memory=0.5"]),
        ("sft_tiny", ["eval=pass_at_k"]),
        ("sft_tiny", ["train.epochs=2", "train.max_steps=null"]),
        ("sft_tiny", ["packing.attention=causal"]),
        ("sft_tiny", ["data=gsm8k", "data.path=x.jsonl"]),
        ("sft_tiny", ["data=gsm8k", "data.path=x.jsonl", "data.eval_size=0", "data.eval_path=y.jsonl"]),
        ("sft_tiny", ["reward.timeout=2"]),
        ("sft_tiny", ["model.heads=8", "model.kv_heads=8"]),
        ("dpo_tiny", ["packing.capacity=64"]),
        ("quickstart", ["rollout.temperature=0.9"]),
        ("quickstart", ["stages.gspo.model.attention=eager"]),
    ],
)
def test_its_neighbours_are_allowed(recipe: str, words: list[str]) -> None:
    assert read(compose(words, recipe)).stages


def test_evaluating_keeps_its_own_rules_only() -> None:
    words = ["data=prompt_answer", "data.path=x.jsonl"]
    with pytest.raises(SeqtuneError, match="objective 'sft' cannot use"):
        read(compose(words, "sft_tiny"))
    assert read(compose(words, "sft_tiny"), "eval").stages
    without = compose([*words, "~reward"], "sft_tiny")
    with pytest.raises(SeqtuneError, match="needs a reward"):
        read(without, "eval")
    assert read(compose([*words, "~reward", "eval=perplexity"], "sft_tiny"), "eval").stages


def test_a_rule_broken_in_one_of_two_stages_names_the_stage() -> None:
    composed = compose(["packing=best_fit"], "quickstart")
    with pytest.raises(SeqtuneError) as caught:
        read(composed)
    assert "(stage gspo)" in caught.value.problems[0].where
