"""Setting a model to read forests, what it is called with, and which models are refused."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers as hf
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from seqtune.config.axes import ModelSpec
from seqtune.errors import SeqtuneError
from seqtune.forest import flatten_documents, flatten_groups
from seqtune.models.forest import NAME, NAMES, attention, forest_inputs, refusal, use_forest
from seqtune.models.load import load_model
from seqtune_kernels.forest_attention import function

if TYPE_CHECKING:
    from pathlib import Path

SHAPE: dict[str, Any] = {
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FLAT = flatten_groups([[3, 4, 5]], [[[6, 7], [8]]])


def llama(**fields: Any) -> hf.LlamaForCausalLM:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SHAPE, **fields)).eval()


def test_what_a_model_is_called_with() -> None:
    inputs = forest_inputs(FLAT, "cpu")
    assert inputs["input_ids"].tolist() == [[3, 4, 5, 6, 7, 8]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4, 3]]
    assert inputs["use_cache"] is False
    assert inputs["forest"].longest == 5


def test_use_forest_says_what_runs_and_why_nothing_else() -> None:
    model = llama()
    choice = use_forest(model)
    assert choice.name == "sdpa"
    assert set(choice.reasons) == {"flash_attention_3", "flash_attention_2", "flex_attention"}
    assert model.config._attn_implementation == NAME
    assert use_forest(model, "eager").name == "eager"
    assert model.config._attn_implementation == NAMES["eager"]


def test_a_backend_that_cannot_read_forests_here_is_an_error() -> None:
    with pytest.raises(
        SeqtuneError, match=r"'flash_attention_2' cannot compute forests here.*nearest.*'sdpa'"
    ) as caught:
        use_forest(llama(), "flash_attention_2")
    assert caught.value.problems[0].where == "model.attention"
    with pytest.raises(SeqtuneError, match="no attention backend 'sdpaa'; did you mean 'sdpa'"):
        use_forest(llama(), "sdpaa")


def test_every_backend_is_registered_under_a_name_models_do_not_take_for_another() -> None:
    assert set(NAMES.values()) <= set(ALL_ATTENTION_FUNCTIONS.valid_keys())
    assert not any("flash" in name for name in NAMES.values())


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_backends_on_cpu_agree(backend: str) -> None:
    model = llama()
    with attention(model, "sdpa"):
        expected = [model(input_ids=torch.from_numpy(FLAT.input_ids[row])[None]).logits[0] for row in FLAT.rows]
    use_forest(model, backend)
    logits = model(**forest_inputs(FLAT, "cpu")).logits[0]
    for row, one in zip(FLAT.rows, expected, strict=True):
        torch.testing.assert_close(logits[torch.from_numpy(row)], one)


def test_an_architecture_without_fused_attention_loads_and_reads_forests(tmp_path: Path) -> None:
    """Gemma 2 caps its scores, which fused attention of PyTorch cannot: transformers generates with eager."""
    config = hf.Gemma2Config(**SHAPE, head_dim=8, attn_implementation="eager")
    hf.Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    model = load_model(ModelSpec(name=str(tmp_path)), device="cpu")
    assert model.config._attn_implementation == "eager"
    assert use_forest(model).name == "sdpa"
    model(**forest_inputs(FLAT, "cpu"))


def test_attention_is_put_back_whatever_happens() -> None:
    model = llama()
    use_forest(model)
    inside = []

    def fail() -> None:
        with attention(model, "eager"):
            inside.append(model.config._attn_implementation)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert inside == ["eager"]
    assert model.config._attn_implementation == NAME


def test_attention_reaches_the_configurations_inside_others() -> None:
    text = hf.Gemma3TextConfig(**SHAPE, head_dim=8).to_dict()
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = hf.Gemma3ForConditionalGeneration(hf.Gemma3Config(text_config=text, vision_config=vision))
    inner = model.model.language_model.config
    before = inner._attn_implementation
    with attention(model, "eager"):
        assert inner._attn_implementation == "eager"
    assert inner._attn_implementation == before != "eager"


def test_an_adapter_is_seen_through() -> None:
    from peft import LoraConfig, get_peft_model

    model = llama()
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    with attention(wrapped, "eager"):
        assert model.config._attn_implementation == "eager"
    assert model.config._attn_implementation != "eager"


@pytest.mark.parametrize("name", ["Qwen3", "Gemma2"])
def test_autocast(name: str) -> None:
    """Weights in fp32, products in bf16: queries and keys come out of their norms in fp32, values do not."""
    config = getattr(hf, f"{name}Config")(**SHAPE, head_dim=8, sliding_window=3, attn_implementation="eager")
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    losses = []
    for forest in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            if forest:
                use_forest(model)
                logits = model(**forest_inputs(FLAT, "cpu")).logits[0]
                rows = [logits[torch.from_numpy(row)] for row in FLAT.rows]
            else:
                rows = [model(input_ids=torch.from_numpy(FLAT.input_ids[row])[None]).logits[0] for row in FLAT.rows]
        losses.append(sum(row.float().log_softmax(-1)[:, 3].sum() for row in rows))
        model.zero_grad()
        losses[-1].backward()
        losses.append(model.model.layers[0].self_attn.v_proj.weight.grad.clone())
    torch.testing.assert_close(losses[:2], losses[2:], atol=1e-2, rtol=1e-2)


def test_gradient_checkpointing_changes_nothing() -> None:
    model = llama()
    use_forest(model)
    gradients = []
    for checkpointing in (False, True):
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model(**forest_inputs(FLAT, "cpu")).logits.pow(2).sum().backward()
        gradients.append(model.model.layers[0].self_attn.q_proj.weight.grad.clone())
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forest": None}, "called without one"),
        ({"input_ids": torch.ones(2, 6, dtype=torch.long)}, "one row of 6 tokens, and attention got 2 rows"),
        ({"input_ids": torch.ones(1, 5, dtype=torch.long), "position_ids": torch.ones(1, 5)}, "5 queries"),
        ({"attention_mask": torch.ones(1, 1, 6, 6)}, "an attention mask of its own"),
    ],
    ids=["no forest", "two rows", "another row", "a mask"],
)
def test_calls_that_would_be_wrong_are_refused(change: dict[str, Any], message: str) -> None:
    model = llama()
    use_forest(model)
    with pytest.raises(SeqtuneError, match=message):
        model(**{**forest_inputs(FLAT, "cpu"), **change})


def test_dropout_is_refused_in_training_only() -> None:
    model = llama(attention_dropout=0.1)
    use_forest(model)
    model(**forest_inputs(FLAT, "cpu"))
    with pytest.raises(SeqtuneError, match=r"attention dropout is 0\.1"):
        model.train()(**forest_inputs(FLAT, "cpu"))


def test_what_is_not_causal_is_refused() -> None:
    model = llama()
    use_forest(model)
    model.model.layers[0].self_attn.is_causal = False
    with pytest.raises(SeqtuneError, match="not causal"):
        model(**forest_inputs(FLAT, "cpu"))


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rope_by_length_is_refused_beyond_the_first_length(kind: str) -> None:
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0}
    if kind == "longrope":
        rope |= {"original_max_position_embeddings": 8, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    model = llama(max_position_embeddings=16 if kind == "longrope" else 8, rope_parameters=rope)
    use_forest(model)
    fits, exceeds = (flatten_documents([[3, 4], list(range(3, 3 + n))]) for n in (8, 9))
    short = model(**forest_inputs(fits, "cpu")).logits[0, :2]
    alone = model(**forest_inputs(flatten_documents([[3, 4]]), "cpu")).logits[0]
    torch.testing.assert_close(short, alone)
    with pytest.raises(SeqtuneError, match=rf"{kind}.*beyond 8 tokens, and one has 9"):
        model(**forest_inputs(exceeds, "cpu"))
    assert refusal(model.config, shared=True) is None
    assert refusal(model.config, shared=True, longest=8) is None
    assert "beyond 8" in str(refusal(model.config, shared=True, longest=9))


@pytest.mark.parametrize(
    ("config", "shared", "roots"),
    [
        (hf.LlamaConfig(), None, None),
        (hf.Qwen3MoeConfig(), None, None),
        (hf.MistralConfig(), None, None),
        (hf.Gemma3Config(), None, None),
        (hf.GptOssConfig(), None, None),
        (hf.GPT2Config(attn_pdrop=0.0), None, None),
        (hf.GPT2Config(), "dropout is 0.1", "dropout is 0.1"),
        (hf.LlamaConfig(attention_dropout=0.2), "dropout is 0.2", "dropout is 0.2"),
        (hf.MambaConfig(), "cannot branch", "ignores their borders"),
        (hf.Qwen3NextConfig(), "layers of type linear_attention.*cannot branch", "ignores their borders"),
        (hf.JambaConfig(), "cannot branch", "ignores their borders"),
        (hf.RwkvConfig(), "recurrent layers", "recurrent layers"),
        (hf.Llama4TextConfig(), "chunked_attention", "chunked_attention"),
        (hf.BloomConfig(), "AttentionInterface", "AttentionInterface"),
        (hf.Qwen2MoeConfig(use_sliding_window=True, sliding_window=64), "does not tell", "does not tell"),
        (hf.ViTConfig(), "nothing is known", "nothing is known"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, hf.PreTrainedConfig) else "",
)
def test_which_models_are_refused(config: hf.PreTrainedConfig, shared: str | None, roots: str | None) -> None:
    for found, expected in [(refusal(config, shared=True), shared), (refusal(config, shared=False), roots)]:
        if expected is None:
            assert found is None
        else:
            assert found is not None
            assert re.search(expected, found)


def test_softcaps_and_sinks_reach_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    kernel = function.attend

    def spy(*args: Any, **options: Any) -> Any:
        seen.append(options)
        return kernel(*args, **options)

    monkeypatch.setattr(function, "attend", spy)
    for config in (
        hf.Gemma2Config(**SHAPE, head_dim=8, sliding_window=4),
        hf.GptOssConfig(**SHAPE, head_dim=8, sliding_window=4),
    ):
        model = hf.AutoModelForCausalLM.from_config(config)
        use_forest(model)
        model(**forest_inputs(FLAT, "cpu"))
    capped, sunk = seen
    assert (capped["window"], capped["softcap"], capped["parts"]) == (4, 50.0, [])
    assert (sunk["window"], sunk["softcap"], len(sunk["parts"])) == (4, None, 1)
