"""Rules between fields: each refuses its combination, naming the fields and the way out, and lets neighbours by."""

from __future__ import annotations

import pytest

from seqtune.config.reading import read
from seqtune.config.rules.inputs import INPUTS
from seqtune.errors import SeqtuneError
from seqtune.objectives import OBJECTIVES
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
    ("gspo_tiny", ["objective=policy", "objective.ratio=sequence_sum", "objective.aggregation=constant"],
     "objective.ratio=sequence_sum with objective.aggregation=constant", "objective.aggregation: command line",
     "objective.aggregation=sequence_mean"),
    ("gspo_tiny", ["objective=rank_grpo"], "objective 'rank_grpo' needs a reward for each line of a completion: "
     "reward 'format' provides no such thing", "reward.name", "reward=list_ndcg reward.output=exp_inf"),
    ("gspo_tiny", ["objective=rank_grpo", "reward=list_ndcg", "reward.output=exp_inf", "reward.k=5"],
     "reward.k=5 ranks are scored, but objective.ranks=20", "reward.k: command line", "reward.k=20"),
    ("gspo_tiny", ["objective=rank_grpo", "reward=list_ndcg", "reward.output=log_decay"],
     "reward.output=log_decay is discounted already", "reward.output: command line", "objective.rank_reward=own"),
    ("gspo_tiny", ["objective=rank_grpo", "reward=list_ndcg"], "objective 'rank_grpo' needs a reward for each line",
     "reward.name", "reward=list_ndcg reward.output=exp_inf"),
    ("gspo_tiny", ["objective=foresight"], "objective 'foresight' needs scores of what a low-level", "reward.name",
     "reward=custom: a function that returns [format, judge, execution"),
    ("gspo_tiny", ["objective=searcher"], "objective 'searcher' needs completions that call tools", "rollout.name",
     "rollout=search rollout.tools.search.path=FILE"),
    ("gspo_tiny", ["rollout=python", "rollout.name=vllm"], "completions that call tools are sampled turn by turn, "
     "which rollout 'vllm' does not do", "rollout.name: command line", "rollout.name=transformers"),
    ("gspo_tiny", ["rollout=python", "parallel=fsdp2"], "with parallel=fsdp2 all processes sample in step",
     "parallel.name: ", "parallel=ddp"),
    ("gspo_tiny", ["rollout=python", "objective=prefix_rft"], "objective 'prefix_rft' puts demonstrations into "
     "completions", "rollout.tools", "another objective"),
    ("offline_tiny", ["objective=a_lol", "+rollout.tools.p.name=python"], "rollout.tools.p.name: nothing reads it",
     "command line", "leave"),
    ("gspo_tiny", ["+rollout.tools.mine.name=pyhton"], "rollout.tools.mine.name: unknown tool 'pyhton'",
     "command line", ""),
    ("gspo_tiny", ["objective=dagrpo", "objective.anchors=true", "objective.beta=0.1", "objective.kl_in=reward"],
     "objective.kl_in=reward takes the KL of a completion off its reward", "objective.anchors: command line",
     "objective.kl_in=loss"),
    ("gspo_tiny", ["objective=ts_grpo", "objective.plan_advantage=own"], "objective 'ts_grpo' needs a reward of the "
     "plan", "reward.name", "objective.plan_advantage=answer"),
    ("gspo_tiny", ["objective=policy", "objective.advantage=columns"], "objective 'policy' needs several rewards kept",
     "reward.name", "reward=combined has parts"),
    ("gspo_tiny", ["objective=grpo", "objective.ref_model_sync_steps=8", "peft=lora"],
     "objective.ref_model_sync_steps=8 moves the reference model towards the policy, but with peft 'lora'",
     "objective.ref_model_sync_steps: command line", "peft=full"),
    ("gspo_tiny", ["objective=gspo", "objective.ref_model_sync_steps=8"],
     "objective.ref_model_sync_steps: nothing reads it; objective.beta=0 keeps no reference", "command line", "leave"),
    ("gspo_tiny", ["objective=grpo", "objective.ref_model_mixup_alpha=0.5"],
     "objective.ref_model_mixup_alpha: nothing reads it; objective.ref_model_sync_steps=null never", "command line",
     "leave"),
    ("gspo_tiny", ["objective=policy", "objective.gradient=token"], "objective.gradient=token with "
     "objective.ratio=token", "objective.gradient: command line", "objective.ratio=sequence"),
    ("gspo_tiny", ["objective=policy", "objective.clip=cispo", "objective.bound=3"], "objective.bound with "
     "objective.clip=cispo", "objective.bound: command line", "objective.bound=null"),
    ("gspo_tiny", ["objective=grpo", "objective.bound=1.1"], "objective.bound=1.1 lies inside the clip range",
     "objective.bound: command line", "3 for the dual clip"),
    ("gspo_tiny", ["objective=rloo", "objective.kl_corrected=true"], "objective.kl_corrected weighs a KL by the ratio",
     "objective.kl_corrected: command line", "objective.kl_in=loss"),
    ("gspo_tiny", ["objective=reinforce_pp", "objective.credit=tree"], "objective.credit=tree starts from one",
     "objective.credit: command line", "objective.advantage=group"),
    ("gspo_tiny", ["objective=dapo", "objective.advantage=columns", "reward=combined", "+reward.parts.a.name=exact"],
     "objective.overlong=0.2 lowers the one reward", "objective.advantage: command line", "soft_overlong as a part"),
    ("gspo_tiny", ["objective=policy", "objective.advantage=columns", "reward=combined", "+reward.parts.a.name=exact",
     "objective.beta=0.1", "objective.kl_in=reward"], "objective.kl_in=reward takes the KL off the one reward",
     "objective.advantage: command line", "objective.kl_in=loss"),
    ("gspo_tiny", ["objective=rank_grpo", "objective.ranks=3", "reward=list_ndcg", "reward.output=exp_inf",
     "reward.k=3", "objective.overflow_penalty=0.2"], "objective.overflow_penalty: nothing reads it; "
     "objective.aggregation=rank leaves out", "command line", "leave"),
    ("gspo_tiny", ["peft=lora", "peft.dropout=0.1"], "peft.dropout: nothing reads it; objective 'gspo' compares with",
     "command line", "leave"),
    ("gspo_tiny", ["objective=dagrpo", "objective.anchor_gamma=0.2"], "objective.anchor_gamma: nothing reads it; "
     "objective.anchors=false", "command line", "leave"),
    ("gspo_tiny", ["objective=prefix_rft", "objective.share_schedule=constant", "objective.share_last=0.1"],
     "objective.share_last: nothing reads it; objective.share_schedule=constant", "command line", "leave"),
    ("gspo_tiny", ["objective=grpo", "objective.correction=mask", "objective.correction_over=sequence_sum"],
     "objective.correction=mask over the sum", "objective.correction_over: command line", "sequence_mean"),
    ("gspo_tiny", ["objective=grpo", "objective.tree_weight=0.5"],
     "objective.tree_weight: nothing reads it; objective.credit=sequence grows no tree", "command line", "leave"),
    ("gspo_tiny", ["objective=minirl", "objective.correction_high=3"], "objective.correction_high: nothing reads it; "
     "rollout 'transformers' samples with the model that trains", "command line", "leave"),
    ("gspo_tiny", ["rollout=vllm", "objective=grpo", "objective.correction_high=3"],
     "objective.correction_high: nothing reads it; objective.correction=none weighs nothing", "command line", "leave"),
    ("gspo_tiny", ["objective=grpo", "objective.gamma=0.9"], "objective.gamma: nothing reads it", "command line",
     "leave"),
    ("gspo_tiny", ["objective=policy", "objective.clip=soft", "objective.epsilon_low=0.1"],
     "objective.epsilon_low: nothing reads it; objective.clip=soft has no lower bound", "command line", "leave"),
    ("gspo_tiny", ["objective=espo_entropy", "objective.bins=3"], "objective.bins: nothing reads it", "command line",
     "leave"),
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
    ("sft_tiny", ["objective.aggregation=sequence_mean", "packing=wrapped"],
     "objective.aggregation=sequence_mean weighs whole documents, and packing 'wrapped' cuts them",
     "objective.aggregation", "packing=best_fit"),
    ("sft_tiny", ["objective.aggregation=sequence_mean", "packing.on_overflow=split"],
     "objective.aggregation=sequence_mean weighs whole documents, and packing.on_overflow=split",
     "packing.on_overflow", "packing.on_overflow=truncate"),
    ("sft_tiny", ["objective.aggregation=sequence_mean", "packing.attention=causal"],
     "objective.aggregation=sequence_mean weighs documents, and packing.attention=causal",
     "packing.attention", "packing.attention=document"),
    ("dpo_tiny", ["parallel=ddp", "parallel.row_cost=[1,2]"], "parallel.row_cost: nothing reads it; only packed rows",
     "command line", "leave"),
    ("gspo_tiny", ["packing=best_fit"],
     "objective 'gspo' batches padded pairs or completions; packing 'best_fit' "
     "would not be used", "packing.name", "packing=none"),
    ("gspo_tiny", ["packing.path=packs/x"],
     "packing.path holds packed rows of texts, which objective 'gspo' does not train on",
     "packing.path: command line", "packing.path=null"),
    ("sft_tiny", ["+rollout.tools.x.name=python"], "rollout.tools.x.name: nothing reads it; objective 'sft' samples no",
     "command line", "leave rollout.tools.x.name out"),
    ("dpo_tiny", ["packing.path=packs/x"],
     "packing.path holds packed rows of texts, which objective 'dpo' does not train on",
     "packing.path: command line", "packing.path=null"),
    ("gspo_tiny", ["train.eval_every=2"], "train.eval_every: nothing reads it; objective 'gspo' has no loss of",
     "command line", "leave"),
    ("gspo_tiny", ["data.careless=0.5"], "data.careless: nothing reads it; it spoils completions to imitate",
     "command line", "leave"),
    ("dpo_tiny", ["data.careless=0.5"], "data.careless: nothing reads it; it spoils completions to imitate",
     "command line", "leave"),
    ("gspo_tiny", ["parallel.processes=2"], "parallel.processes: 2 is refused: there is one process; parallel=ddp",
     "command line", ""),
    ("sft_tiny", ["eval=pass_at_k", "eval.samples=4"], "pass@8 needs at least 8 samples a prompt, eval.samples is 4",
     "eval.samples: command line", "eval.samples=8"),
    ("sft_tiny", ["eval.samples=4"], "eval 'greedy' takes one completion a prompt", "eval.samples: command line",
     "eval=pass_at_k"),
    ("sft_tiny", ["eval.temperature=0.5"], "eval 'greedy' samples nothing", "eval.temperature: command line",
     "eval=pass_at_k"),
    ("sft_tiny", ["eval=perplexity", "eval.stop_entropy=0.5"], "eval 'perplexity' makes no completions",
     "eval.stop_entropy: command line", "eval=greedy"),
    ("sft_tiny", ["eval=perplexity", "eval.entropy=true"], "eval 'perplexity' makes no completions",
     "eval.entropy: command line", "eval=greedy"),
    ("sft_tiny", ["eval.stop_text=x"], "eval.stop_text: nothing reads it; eval.stop_entropy=null stops no completion",
     "command line", "leave"),
    ("sft_tiny", ["eval.stop_segment=8"], "eval.stop_segment: nothing reads it; nothing takes entropies",
     "command line", "leave"),
    ("gspo_tiny", ["rollout.top_p=0.9", "rollout.updates=2", "train.batch_size=16"],
     "rollout.top_p=0.9 samples from what it keeps", "rollout.top_p: command line", "rollout.updates=1"),
    ("gspo_tiny", ["rollout.top_k=20", "rollout.updates=2", "train.batch_size=16"],
     "rollout.top_k=20 samples from what it keeps", "rollout.top_k: command line", "rollout.top_k=null"),
    ("gspo_tiny", ["rollout=vllm", "rollout.updates=1", "rollout.top_p=0.9"],
     "rollout.top_p=0.9 samples from what it keeps, while log-probs are of all tokens: the correction for rollout",
     "rollout.top_p: command line", "rollout.top_p=1"),
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
    ("offline_tiny", ["~reward"], "objective 'a_lol' samples completions and scores them, but there is no reward",
     "objective.value: default", "reward=math_equiv, or objective.value=group_mean"),
    ("offline_tiny", ["rollout=vllm"], "objective.value=fit samples with the model that is loaded", "rollout.name",
     "rollout=transformers"),
    ("offline_tiny", ["objective.value=group_mean", "objective.value_samples=2"],
     "objective.value_samples: nothing reads it; objective.value=group_mean samples nothing", "command line", "leave"),
    ("offline_tiny", ["rollout.updates=2"], "rollout.updates: nothing reads it; objective 'a_lol' samples once",
     "command line", "leave"),
    ("offline_tiny", ["objective=slic", "objective.calibration=reward", "objective.margin=2"],
     "objective.margin: nothing reads it; objective.calibration=reward has no margin", "command line", "leave"),
    ("offline_tiny", ["objective=tempo", "rollout.temperature=0.9"], "rollout.temperature: nothing reads it; objective "
     "'tempo' samples no completions; data of the format 'groups' holds them", "command line", "leave"),
    ("offline_tiny", ["objective=tempo", "objective.group_size=4"], "objective.group_size: nothing reads it",
     "command line", "leave"),
    ("offline_tiny", ["objective=tempo", "objective.advantage=batch_std"], "objective.advantage=batch_std compares "
     "with a whole batch", "objective.advantage: command line", "objective.advantage=group"),
    ("offline_tiny", ["data.pairs=all"], "data.pairs: nothing reads it", "command line", "leave"),
    ("dpo_tiny", ["data.pairs=all"], "data.pairs: nothing reads it", "command line", "leave"),
    ("sft_tiny", ["data=template_groups"], "objective 'sft' cannot use data of the format 'groups'", "data.format",
     "text or prompt_completion or messages"),
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
        ("gspo_tiny", ["objective=policy", "objective.ratio=sequence", "objective.gradient=token"]),
        ("gspo_tiny", ["objective=grpo", "objective.bound=3"]),
        ("gspo_tiny", ["objective=grpo", "objective.kl_corrected=true"]),
        ("gspo_tiny", ["objective=policy", "objective.advantage=reinforce_pp", "objective.gamma=0.9"]),
        ("gspo_tiny", ["objective=policy", "objective.credit=tree", "objective.tree_weight=0.5"]),
        ("gspo_tiny", ["objective=policy", "objective.clip=soft", "objective.tau_positive=2"]),
        ("gspo_tiny", ["objective=policy", "objective.ratio=segment"]),
        ("gspo_tiny", ["rollout=vllm", "objective=grpo", "objective.correction=mask", "objective.correction_low=0.2"]),
        ("gspo_tiny", ["rollout=vllm", "objective=minirl", "objective.correction_high=3"]),
        ("gspo_tiny", ["objective=rank_grpo", "reward=list_ndcg", "reward.output=exp_inf"]),
        ("gspo_tiny", ["objective=espo_entropy", "objective.grouping=bins", "objective.bins=3"]),
        ("gspo_tiny", ["objective=prefix_rft"]),
        ("gspo_tiny", ["objective=dagrpo", "objective.anchors=true"]),
        (
            "gspo_tiny",
            ["objective=policy", "objective.advantage=columns", "reward=combined", "+reward.parts.a.name=exact"],
        ),
        ("gspo_tiny", ["objective=grpo", "objective.ref_model_sync_steps=8", "objective.ref_model_mixup_alpha=0.5"]),
        ("gspo_tiny", ["objective=gspo", "objective.sampling_rounds=3"]),
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
        ("dpo_tiny", ["data=template_groups", "data.pairs=all"]),
        ("offline_tiny", ["~rollout", "~reward", "objective.value=group_mean"]),
        ("offline_tiny", ["rollout.temperature=0.9", "objective.value_samples=2"]),
        ("offline_tiny", ["objective=tempo", "packing.capacity=256", "packing.on_overflow=drop"]),
        ("offline_tiny", ["objective=slic", "objective.calibration=list", "objective.margin=2"]),
        ("offline_tiny", ["eval=greedy"]),
        ("quickstart", ["rollout.temperature=0.9"]),
        ("quickstart", ["stages.gspo.model.attention=eager"]),
    ],
)
def test_its_neighbours_are_allowed(recipe: str, words: list[str]) -> None:
    assert read(compose(words, recipe)).stages


@pytest.mark.parametrize("name", ["a_lol", "a_lol_ref_free", "a_lol_seq", "a_lol_kl", "slic"])
def test_an_offline_objective_learns_from_groups_alone(name: str) -> None:
    with pytest.raises(SeqtuneError, match=f"objective '{name}' cannot use data of the format 'prompt_completion'"):
        read(compose([f"objective={name}"], "gspo_tiny"))
    (stage,) = read(compose([f"objective={name}"], "offline_tiny")).stages
    assert (stage.rollout is not None) == (name != "slic")


GROUPED = [name for name in OBJECTIVES if OBJECTIVES.load(name)(name=name).family in ("policy", "preference", "reward")]


@pytest.mark.parametrize("name", GROUPED)
def test_groups_feed_every_objective_or_say_what_they_lack(name: str) -> None:
    """What takes rewards and token ids alone reads groups; the rest is refused for what only sampling gives."""
    lacking = {
        "dapo": "the most tokens a completion could have had",
        "rloo": "log-probs under the policy that sampled",
        "reinforce_pp": "log-probs under the policy that sampled",
        "minirl": "log-probs under the engine that sampled",
        "espo_entropy": "entropies of the policy that sampled",
        "rank_grpo": "a reward for each line of a completion",
        "prefix_rft": "completions that go on from a demonstration's beginning",
        "foresight": "scores of what a low-level model makes",
        "searcher": "completions that call tools",
    }
    words = [f"objective={name}", "data=template_groups"]
    if name not in lacking:
        (stage,) = read(compose(words, "offline_tiny")).stages
        assert stage.rollout is None
        return
    with pytest.raises(SeqtuneError) as caught:
        read(compose(words, "offline_tiny"))
    assert any(lacking[name] in one.problem for one in caught.value.problems), [str(caught.value)]


def test_every_input_an_objective_needs_is_known_to_the_rules() -> None:
    """With the fields that ask for the most; an input that no one lists would be refused without words."""
    most = {"dagrpo": {"anchors": True}, "ts_grpo": {"plan_advantage": "own"}, "policy": {"advantage": "columns"}}
    for name in OBJECTIVES:
        spec = OBJECTIVES.load(name)(name=name, **most.get(name, {}))
        assert spec.needs <= INPUTS.keys(), name


def test_a_reward_that_says_what_it_gives_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqtune.rewards.specs.Format.gives", frozenset({"rank_rewards"}))
    assert read(compose(["objective=rank_grpo"], "gspo_tiny")).stages


@pytest.mark.parametrize(
    "words",
    [
        ["objective=searcher", "rollout=search", "rollout.tools.search.path=x.jsonl"],
        ["objective=searcher", "objective.mu=0", "rollout=python"],
        ["objective=foresight", "reward=custom", "reward.name=mine.py:grid"],
    ],
)
def test_what_tools_and_functions_give_is_believed(words: list[str]) -> None:
    assert read(compose(words, "gspo_tiny")).stages


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
