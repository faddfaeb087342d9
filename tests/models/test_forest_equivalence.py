"""Every supported architecture on forests: log-probs and gradients against padded sequences, and isolation."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from torch.overrides import TorchFunctionMode

from drawn_forests import forests
from seqtune.forest import Flattened, Piece, SegmentForest, flatten_documents, flatten_groups
from seqtune.models.forest import forest_inputs, use_forest
from seqtune_kernels.forest_attention import cpu

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedConfig, PreTrainedModel

VOCABULARY = 61
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = {"head_dim": 8}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT: dict[str, Any] = {
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
BOTH = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}

ARCHITECTURES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: hf.LlamaConfig(**SHAPE),
    "qwen2": lambda: hf.Qwen2Config(**SHAPE),
    "qwen3": lambda: hf.Qwen3Config(**SHAPE, **HEADS),
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(**SHAPE, **HEADS, **EXPERTS, num_experts=4),
    "mistral": lambda: hf.MistralConfig(**SHAPE, sliding_window=5),
    "gemma2": lambda: hf.Gemma2Config(**SHAPE, **HEADS, **BOTH, query_pre_attn_scalar=20, attn_logit_softcapping=2.0),
    "gemma3": lambda: hf.Gemma3TextConfig(**SHAPE, **HEADS, **BOTH, query_pre_attn_scalar=20),
    "phi3": lambda: hf.Phi3Config(**SHAPE),
    "olmo2": lambda: hf.Olmo2Config(**SHAPE),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**SHAPE),
    "gpt2": lambda: hf.GPT2Config(**SHAPE, attn_pdrop=0.0),
    "gpt_oss": lambda: hf.GptOssConfig(
        **SHAPE, **HEADS, **BOTH, num_local_experts=4, num_experts_per_tok=2, rope_parameters=ROPE
    ),
    "deepseek_v3": lambda: hf.DeepseekV3Config(**{**SHAPE, "num_key_value_heads": 4}, **EXPERTS, **LATENT),
}
"""Windows are shorter than the sequences; the soft-cap is low enough to bend the scores."""

LAYOUTS = {
    "documents": flatten_documents([[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15, 16, 17, 18, 19, 20, 21, 22]]),
    "pairs": flatten_groups([[5, 6, 7, 8, 9, 10, 11, 12], [13, 14]], [[[15, 16, 17], [18, 19]], [[20], [21, 22, 23]]]),
    "groups": flatten_groups([list(range(5, 16))], [[[20, 21], [22], [23, 24, 25, 26, 27, 28, 29], [20, 30]]]),
}

IMPLEMENTATIONS = {name: ("eager",) for name in ("gemma2", "gpt_oss")}
"""What computes the padded reference; fused attention of PyTorch has neither soft-cap nor sinks."""

DRAWS = 3
"""Random objectives per comparison: the error of one small vector, in one of them, may be small by luck."""

DTYPES = [torch.float32, torch.bfloat16]


class InFloat64(TorchFunctionMode):
    """Where a model asks for fp32 (norms, softmax, rotations), compute in fp64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        wide = [torch.float64 if x is torch.float32 else x for x in args]
        return func(*wide, **{k: torch.float64 if x is torch.float32 else x for k, x in (kwargs or {}).items()})


@cache
def build(name: str, dtype: torch.dtype, experts: int | None = None) -> PreTrainedModel:
    """The same weights in every dtype: all are bf16 numbers, large enough for attention to be far from uniform.

    Args:
        experts: Of a mixture, those each token goes to; None takes the configuration's.
    """
    config = ARCHITECTURES[name]()
    if experts is not None and hasattr(config, "num_experts_per_tok"):
        config.num_experts_per_tok = experts
    config._attn_implementation = config._experts_implementation = "eager"
    model = hf.AutoModelForCausalLM.from_config(config, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        # Norms begin at one (or at zero, as an offset from it), biases and sinks at zero.
        start, size = (parameter.data.float().mean().round(), 0.1) if parameter.ndim == 1 else (0.0, 0.2)
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = (start + size * noise).bfloat16().to(parameter.dtype)
    return model.eval()


class Outcome(NamedTuple):
    logps: torch.Tensor
    """[scored tokens of all sequences] log-probs, fp64."""
    gradients: dict[str, torch.Tensor]


def scored(flat: Flattened) -> list[np.ndarray]:
    """For each sequence, the row indices of its tokens that have one before them."""
    return [row[1:] for row in flat.rows]


def outcome(model: PreTrainedModel, logps: torch.Tensor) -> Outcome:
    """Gradients of sums over all scored tokens of all sequences, each with a weight of its own."""
    gradients: dict[str, list[torch.Tensor]] = {}
    for seed in range(DRAWS):
        weights = torch.randn(len(logps), generator=torch.Generator().manual_seed(seed)).to(logps.dtype)
        model.zero_grad()
        (logps * weights).sum().backward(retain_graph=seed < DRAWS - 1)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                gradients.setdefault(name, []).append(parameter.grad.double())
    return Outcome(logps.detach().double(), {name: torch.stack(found) for name, found in gradients.items()})


def set_attention(model: PreTrainedModel, implementation: str) -> None:
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = implementation


def padded(model: PreTrainedModel, flat: Flattened, implementation: str = "eager") -> Outcome:
    """One row per sequence, prompts repeated, padding on the right."""
    set_attention(model, implementation)
    index = flat.index()
    ids = torch.from_numpy(np.where(index >= 0, flat.input_ids[index], 0))
    logits = model(input_ids=ids, attention_mask=torch.from_numpy(index >= 0).long(), use_cache=False).logits
    wide = torch.promote_types(logits.dtype, torch.float32)
    logps = logits[:, :-1].to(wide).log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return outcome(model, logps[torch.from_numpy(index[:, 1:] >= 0)])


def as_forest(model: PreTrainedModel, flat: Flattened) -> Outcome:
    """One row, nothing repeated; each token is predicted by `forest.predictor`."""
    use_forest(model)
    logits = model(**forest_inputs(flat, "cpu")).logits[0]
    wide = torch.promote_types(logits.dtype, torch.float32)
    tokens = np.concatenate(scored(flat))
    before = flat.forest.predictor[tokens]
    targets = torch.from_numpy(flat.input_ids[tokens])[:, None]
    return outcome(model, logits[torch.from_numpy(before)].to(wide).log_softmax(-1).gather(-1, targets)[:, 0])


def exact(name: str, flat: Flattened) -> Outcome:
    with InFloat64():
        return padded(build(name, torch.float64), flat)


def check(name: str, flat: Flattened, dtype: torch.dtype) -> None:
    """Every error against fp64 is at most twice that of the padded sequences in the same dtype.

    Theirs is the larger of eager and of fused attention, where the model has it. What fp32 rounds is allowed besides:
    eager attention to one token alone is exact by luck.
    """
    model, true, rounding = build(name, dtype), exact(name, flat), torch.finfo(torch.float32).eps
    references = [padded(model, flat, one) for one in IMPLEMENTATIONS.get(name, ("eager", "sdpa"))]
    ours = as_forest(model, flat)
    allowed = max((one.logps - true.logps).norm() for one in references)
    assert (ours.logps - true.logps).norm() <= 2 * allowed + rounding * true.logps.norm()
    assert ours.gradients.keys() == references[0].gradients.keys() == true.gradients.keys()
    size = torch.stack([value.norm() for value in true.gradients.values()]).norm()
    for parameter, value in true.gradients.items():
        error = (ours.gradients[parameter] - value).norm()
        allowed = max((one.gradients[parameter] - value).norm() for one in references)
        assert error <= 2 * allowed + rounding * size, parameter


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equal_to_padded_sequences(name: str, layout: str, dtype: torch.dtype) -> None:
    check(name, LAYOUTS[layout], dtype)


def sequences(forest: SegmentForest) -> Flattened:
    """The root-to-leaf sequences of a forest, with random tokens."""
    leaves = sorted(set(range(len(forest))) - set(forest.parents.tolist()))
    ids = np.random.default_rng(0).integers(3, VOCABULARY, forest.tokens)
    rows = [forest.path_tokens(leaf) for leaf in leaves]
    return Flattened(forest, ids, tuple(row for row in rows if len(row)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
@settings(max_examples=6)
@given(forest=forests(depth=6))
def test_any_tree_equal_to_padded_sequences(name: str, dtype: torch.dtype, forest: SegmentForest) -> None:
    flat = sequences(forest)
    if any(len(row) > 1 for row in flat.rows):
        check(name, flat, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_isolation(name: str, layout: str) -> None:
    """Other tokens in one segment move the log-probs of its own sequences, and those of no other by any bit.

    Tokens of a mixture go to all experts: how many rows an expert's product has may turn the last bit of each.
    """
    flat = LAYOUTS[layout]
    model = build(name, torch.float32, experts=4)
    before = logps_by_sequence(model, flat)
    for segment in range(len(flat.forest)):
        start, end = flat.forest.cu_seqlens[segment : segment + 2]
        ids = flat.input_ids.copy()
        ids[start:end] = VOCABULARY - 1 - ids[start:end]
        after = logps_by_sequence(model, Flattened(flat.forest, ids, flat.rows))
        for row, old, new in zip(flat.rows, before, after, strict=True):
            if segment in flat.forest.segment_of[row]:
                assert len(row) == 1 or (old - new).abs().max().item() > 1e-3
            else:
                assert (old - new).abs().sum().item() == 0.0


def logps_by_sequence(model: PreTrainedModel, flat: Flattened) -> Sequence[torch.Tensor]:
    with torch.no_grad():
        use_forest(model)
        logps = model(**forest_inputs(flat, "cpu")).logits[0].log_softmax(-1)
    return [
        logps[torch.from_numpy(flat.forest.predictor[tokens]), torch.from_numpy(flat.input_ids[tokens])]
        for tokens in scored(flat)
    ]


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [("mistral", "sliding_window", None), ("gemma2", "attn_logit_softcapping", None), ("gemma3", "sliding_window", 64)],
)
def test_windows_and_caps_bite(name: str, field: str, value: int | None) -> None:
    """Without its window or its soft-cap the model gives other log-probs: the comparisons above would notice."""
    model, config = build(name, torch.float32), ARCHITECTURES[name]()
    setattr(config, field, value)
    other = hf.AutoModelForCausalLM.from_config(config)
    other.load_state_dict(model.state_dict())
    flat = LAYOUTS["groups"]
    assert (padded(other.eval(), flat).logps - padded(model, flat).logps).abs().max() > 1e-2


def drop_an_ancestor(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = SegmentForest.pieces.func  # type: ignore[attr-defined]  # functools.cached_property

    def pieces(forest: SegmentForest) -> tuple[Piece, ...]:
        found = whole(forest)
        first = next(i for i, piece in enumerate(found) if not piece.causal)
        return tuple(piece for i, piece in enumerate(found) if i != first)

    monkeypatch.setattr(SegmentForest, "pieces", property(pieces))


def do_not_restart_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SegmentForest, "position_ids", property(lambda forest: np.arange(forest.tokens)))


def take_each_piece_alone_in_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    backward = cpu._backward

    def alone(grad: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, *rest: Any, scale: float) -> Any:
        return backward(grad, q, k, v, *cpu._forward(q, k, v, *rest, scale=scale), *rest, scale=scale)

    monkeypatch.setattr(cpu, "_backward", alone)


def predict_from_the_token_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SegmentForest, "predictor", property(lambda forest: np.arange(forest.tokens) - 1))


@pytest.mark.parametrize(
    "mutate",
    [drop_an_ancestor, do_not_restart_positions, take_each_piece_alone_in_backward, predict_from_the_token_before],
)
def test_mutations_are_noticed(mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    layout = LAYOUTS["groups"]
    flat = Flattened(SegmentForest(layout.forest.lengths, layout.forest.parents), layout.input_ids, layout.rows)
    check("llama", flat, torch.float32)
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        check("llama", flat, torch.float32)
