"""Generation: equal to `model.generate` when greedy, to the softmax when sampled, and independent of the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from seqtune.models.forest import attention
from seqtune.rollout.attention import NAME
from seqtune.rollout.noise import gumbel
from seqtune.rollout.transformers import generate, truncated

if TYPE_CHECKING:
    from collections.abc import Iterator

END, PAD, V = [30, 3, 11], 31, 32


@pytest.fixture(scope="module", params=[("qwen3", NAME), ("qwen3", "sdpa"), ("gpt2", NAME), ("gpt2", "sdpa")])
def model(request: pytest.FixtureRequest) -> Iterator[PreTrainedModel]:
    """Each with its own cache and with prompts held once (`NAME`)."""
    architecture, name = request.param
    made = build(architecture)
    with attention(made, name):
        yield made


def build(architecture: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if architecture == "gpt2":  # learnt absolute positions: wrong position ids change the output
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.4)
        )
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=V, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, max_position_embeddings=64, initializer_range=0.4,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    draw = torch.Generator().manual_seed(1)
    lengths = [3, 9, 1, 5, 5, 12, 2, 7]
    rows = [torch.randint(0, 30, (n,), generator=draw).tolist() for n in lengths]
    return [*rows, rows[1], rows[1]]  # equal prompts share a prefill


def sample(model: PreTrainedModel, prompts: list[list[int]], **changes: object) -> list[list[int]]:
    values: dict[str, object] = {"max_new_tokens": 12, "eos_token_id": END, "pad_token_id": PAD, "batch_size": 4}
    return generate(model, prompts, **(values | changes))  # type: ignore[arg-type]


def test_greedy_equals_generate_without_padding(model: PreTrainedModel, prompts: list[list[int]]) -> None:
    model.eval()
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with attention(model, "sdpa"):
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=12,
                do_sample=False,
                eos_token_id=END,
                pad_token_id=PAD,
            )
        expected.append(out[0, len(prompt) :].tolist())
    assert any(row[-1] in END for row in expected), "the test needs rows that end early"
    assert any(row[-1] not in END for row in expected), "and rows that do not"
    for batch_size in (1, 3, 64):
        assert sample(model, prompts, greedy=True, batch_size=batch_size) == expected


def test_a_sample_depends_on_its_seed_and_not_on_its_batch(model: PreTrainedModel, prompts: list[list[int]]) -> None:
    seeds = list(range(100, 100 + len(prompts)))
    together = sample(model, prompts, seeds=seeds, batch_size=64)
    assert sample(model, prompts, seeds=seeds, batch_size=3) == together
    order = [4, 9, 0, 2, 1, 8, 3, 7, 6, 5]
    assert sample(model, [prompts[i] for i in order], seeds=[seeds[i] for i in order]) == [together[i] for i in order]
    assert len({tuple(together[i]) for i in (1, 8, 9)}) == 3, "one prompt, three seeds"
    assert sample(model, prompts, seeds=[seed + 1 for seed in seeds]) != together


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.6}])
def test_frequencies_follow_the_softmax(model: PreTrainedModel, changes: dict[str, float]) -> None:
    """χ² of 4000 first tokens; its 99.9999 % bound is about df + 7 sqrt(2 df) for these df."""
    prompt = [4, 8, 15]
    with torch.no_grad(), attention(model, "sdpa"):
        logits = model.eval()(torch.tensor([prompt])).logits[0, -1].double()
    logits = logits / changes.get("temperature", 1.0)
    order = logits.argsort(descending=True)
    mass = logits.softmax(-1)[order].cumsum(0)
    kept = order[: changes.get("top_k", V)] if "top_p" not in changes else order[: int((mass < 0.6).sum()) + 1]
    target = torch.zeros(V, dtype=torch.float64)
    target[kept] = logits[kept].softmax(-1)
    n = 4000
    drawn = sample(model, [prompt] * n, seeds=list(range(n)), max_new_tokens=1, batch_size=n, **changes)
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=V).double()
    assert counts[target == 0].sum() == 0
    frequent = target * n >= 5
    expected, seen = target[frequent] * n, counts[frequent]
    df = max(int(frequent.sum()) - 1, 1)
    assert ((seen - expected) ** 2 / expected).sum() < df + 7 * (2 * df) ** 0.5


def test_truncation_keeps_exactly_the_nucleus() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert truncated(logits, top_p=0.8).isfinite().tolist() == [[True, True, False, False]]
    assert truncated(logits, top_p=0.81).isfinite().tolist() == [[True, True, True, False]]
    assert truncated(logits, top_p=0.01).isfinite().tolist() == [[True, False, False, False]]
    certain = torch.tensor([[0.0, -30.0, -60.0, -200.0]])  # in fp32 the first alone has mass 1
    assert truncated(certain, top_p=1.0, top_k=4).isfinite().all(), "without a filter every token can be drawn"
    assert truncated(logits, top_k=3).isfinite().tolist() == [[True, True, True, False]]
    assert truncated(logits, top_k=2, top_p=0.6).isfinite().tolist() == [
        [True, False, False, False]
    ]  # 0.5 / 0.8 >= 0.6


def test_tokens_after_the_end_are_never_returned(model: PreTrainedModel, prompts: list[list[int]]) -> None:
    rows = sample(model, prompts * 5, seeds=list(range(50)), temperature=2.0, max_new_tokens=20)
    assert all(not set(END) & set(row[:-1]) for row in rows)
    assert all(row[-1] in END or len(row) == 20 for row in rows)
    assert len({len(row) for row in rows}) > 3


def test_the_model_comes_back_in_the_mode_it_was_in(model: PreTrainedModel, prompts: list[list[int]]) -> None:
    model.train()
    sample(model, prompts[:1], greedy=True)
    assert model.training
    model.eval()
    sample(model, prompts[:1], greedy=True)
    assert not model.training


def test_misuse_is_refused(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        sample(model, [[1], []], greedy=True)
    with pytest.raises(ValueError, match="one seed a prompt"):
        sample(model, [[1], [2]], seeds=[1])


def test_adding_the_noise_is_the_gumbel_max_trick() -> None:
    """softmax(log 3, log 1) picks the first of two with probability 3/4: 9000 draws, 6 standard errors."""
    noise = gumbel(torch.arange(9000), 0, 2) + torch.tensor([3.0, 1.0]).log()
    share = (noise.argmax(-1) == 0).float().mean()
    assert abs(share - 0.75) < 6 * (0.75 * 0.25 / 9000) ** 0.5
