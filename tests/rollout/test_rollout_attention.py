"""Prompts held once: the same samples as with the model's own cache, whatever the architecture limits attention by."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

import seqtune.rollout.attention as under_test
from seqtune.errors import SeqtuneError
from seqtune.models.forest import attention, refusal
from seqtune.rollout.attention import NAME, Shared
from seqtune.rollout.transformers import generate

V = 32
SIZES = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "initializer_range": 0.4,
    "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def window() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=5))


def softcap_and_window() -> PreTrainedModel:
    return Gemma2ForCausalLM(
        Gemma2Config(**SIZES, sliding_window=6, attn_logit_softcapping=2.0, query_pre_attn_scalar=8)
    )


def sinks_and_window() -> PreTrainedModel:
    model = GptOssForCausalLM(GptOssConfig(**SIZES, sliding_window=4, num_local_experts=4, num_experts_per_tok=2))
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.sinks, std=2.0)
    return model


BUILDERS = [llama, window, softcap_and_window, sinks_and_window]


@pytest.fixture(scope="module", params=BUILDERS, ids=lambda build: build.__name__)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    made: PreTrainedModel = request.param().eval()
    assert refusal(made.config, shared=True) is None
    return made


def prompts() -> list[list[int]]:
    """Lengths 1 to 17, two with a common beginning, and from one to five completions of each."""
    draw = torch.Generator().manual_seed(3)
    rows = [torch.randint(1, V, (n,), generator=draw).tolist() for n in (4, 17, 1, 9)]
    rows.append([*rows[1][:11], 5, 6])
    return [row for row, times in zip(rows, (2, 5, 1, 3, 2), strict=True) for _ in range(times)]


def sample(model: PreTrainedModel, name: str, asked: list[list[int]], **changes: object) -> list[list[int]]:
    values: dict[str, object] = {
        "max_new_tokens": 60, "eos_token_id": [3], "pad_token_id": 0, "batch_size": 64, "seeds": range(len(asked)),
    }  # fmt: skip
    with attention(model, name):
        return generate(model, asked, **(values | changes))  # type: ignore[arg-type]


def test_samples_are_those_of_the_models_own_cache(model: PreTrainedModel) -> None:
    """Rows end at different times (so they leave the batch, and prompts with them), and some outgrow the first room."""
    expected = sample(model, "eager", prompts())
    lengths = {len(row) for row in expected}
    assert min(lengths) < 8, "the test needs short completions"
    assert max(lengths) > under_test.ROOM, "and long ones"
    assert sample(model, NAME, prompts()) == expected
    assert sample(model, NAME, prompts(), batch_size=4) == expected


def test_reading_the_prompts_in_parts_changes_nothing(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = sample(model, NAME, prompts(), max_new_tokens=6)
    monkeypatch.setattr(under_test, "PREFILL_TOKENS", 12)
    passes = []
    hook = model.register_forward_pre_hook(lambda _, args, kwargs: passes.append(kwargs["input_ids"]), with_kwargs=True)
    try:
        assert sample(model, NAME, prompts(), max_new_tokens=6) == expected
    finally:
        hook.remove()
    read = [ids.shape[1] for ids in passes if len(ids) == 1 and ids.shape[1] > 1]
    assert len(read) > 2, "in parts"
    assert sum(read) <= 4 + 17 + 1 + 9 + 13, "and none twice"


def test_what_prompts_share_is_read_once() -> None:
    torch.manual_seed(0)
    model = llama().eval()
    common = list(range(1, 21))
    read = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        sample(model, NAME, [[*common, n] for n in (21, 22, 23)] * 4, max_new_tokens=2, eos_token_id=99)
    finally:
        hook.remove()
    assert read == [20 + 3, 12]


def test_sharded_weights_read_all_prompts_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every forward pass is collective there, and ranks have prompts of other lengths."""
    monkeypatch.setattr(under_test, "PREFILL_TOKENS", 4)
    prompts = [(1, 2, 3), (1, 5), (6,)]
    parts = [len(last) for _, last in Shared(prompts, torch.tensor([0, 1, 2])).readings(at_once=False)]
    whole = [len(last) for _, last in Shared(prompts, torch.tensor([0, 1, 2])).readings(at_once=True)]
    assert (parts, whole) == ([1, 2], [3])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=6), min_size=1, max_size=9), st.randoms())
def test_a_completion_depends_on_its_prompt_and_seed_alone(rows: list[list[int]], random: object) -> None:
    torch.manual_seed(0)
    model = llama().eval()
    seeds = list(range(len(rows)))
    expected = [
        sample(model, "sdpa", [row], seeds=[seed], max_new_tokens=8)[0] for row, seed in zip(rows, seeds, strict=True)
    ]
    random.shuffle(seeds)  # type: ignore[attr-defined]
    found = sample(model, NAME, [rows[i] for i in seeds], seeds=seeds, max_new_tokens=8)
    assert found == [expected[i] for i in seeds]


def test_half_precision_stays_near(model: PreTrainedModel) -> None:
    """bfloat16 runs through, and its first tokens are mostly those of float32 (by chance they would be one in 32)."""
    exact = sample(model, NAME, prompts(), max_new_tokens=1)
    half = model.to(torch.bfloat16)
    try:
        found = sample(half, NAME, prompts(), max_new_tokens=3)
    finally:
        model.to(torch.float32)
    assert sum(a[0] == b[0] for a, b in zip(found, exact, strict=True)) >= 8


def test_a_model_called_outside_a_rollout_says_so() -> None:
    model = llama().eval()
    with attention(model, NAME), pytest.raises(SeqtuneError, match="without a rollout"):
        model(torch.tensor([[1, 2]]))


def test_a_model_that_names_no_scale_has_the_usual_one() -> None:
    class Rollout:
        def attend(
            self, module: object, q: torch.Tensor, k: object, v: object, *, scale: float, **_: object
        ) -> torch.Tensor:
            assert scale == 0.25  # 1 / √16
            return q

    x = torch.zeros(1, 1, 1, 16)
    under_test._attend(torch.nn.Identity(), x, x, x, None, rollout=Rollout())


def test_a_layer_that_is_used_twice_is_refused() -> None:
    model = llama().eval()
    model.model.layers[1] = model.model.layers[0]
    with pytest.raises(SeqtuneError, match="more than once for a token"):
        sample(model, NAME, prompts(), max_new_tokens=2)
