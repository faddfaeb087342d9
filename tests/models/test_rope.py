"""Rotary positions changed by a recipe: frequencies and attention scaling against hand-computed ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from seqtune.config.axes import ModelSpec, TinyModelSpec
from seqtune.config.rope import Abf, NtkAware, PositionInterpolation, Yarn
from seqtune.errors import SeqtuneError
from seqtune.models import rope
from seqtune.models.load import load_model

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedConfig

    from seqtune.config.rope import Rope

BASE, SIZE, POSITIONS = 10_000.0, 8, 64


def llama(**given: Any) -> PreTrainedConfig:
    return LlamaConfig(
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        intermediate_size=16,
        vocab_size=32,
        max_position_embeddings=POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": BASE, **given},
    )


def rotary(config: PreTrainedConfig) -> tuple[list[float], float]:
    """Inverse frequencies and what cosines are multiplied by, as the model computes them."""
    made = LlamaRotaryEmbedding(config)
    return made.inv_freq.tolist(), made.attention_scaling


def plain(base: float = BASE) -> list[float]:
    return [base ** (-2 * i / SIZE) for i in range(SIZE // 2)]


def test_abf_changes_the_base_only() -> None:
    config = llama()
    rope.apply(config, Abf(name="abf", base=500_000.0, max_positions=256))
    frequencies, scaling = rotary(config)
    assert frequencies == pytest.approx(plain(500_000.0), rel=1e-6)
    assert scaling == 1.0
    assert config.max_position_embeddings == 256


def test_abf_keeps_the_positions_unless_told() -> None:
    config = llama()
    rope.apply(config, Abf(name="abf", base=1e6))
    assert config.max_position_embeddings == POSITIONS


def test_position_interpolation_divides_every_frequency() -> None:
    config = llama()
    rope.apply(config, PositionInterpolation(name="pi", factor=4.0))
    frequencies, scaling = rotary(config)
    assert frequencies == pytest.approx([frequency / 4 for frequency in plain()], rel=1e-6)
    assert scaling == 1.0
    assert config.max_position_embeddings == 256


def test_ntk_keeps_the_fastest_and_interpolates_the_slowest() -> None:
    config = llama()
    rope.apply(config, NtkAware(name="ntk", factor=4.0))
    frequencies, scaling = rotary(config)
    assert frequencies == pytest.approx(plain(BASE * 4 ** (8 / 6)), rel=1e-6)
    assert frequencies[0] == 1.0
    assert frequencies[-1] == pytest.approx(plain()[-1] / 4, rel=1e-6)
    assert scaling == 1.0
    assert config.max_position_embeddings == 256


def test_ntk_counts_only_the_rotated_part_of_a_head() -> None:
    config = llama(partial_rotary_factor=0.5)
    rope.apply(config, NtkAware(name="ntk", factor=4.0))
    assert config.rope_parameters["rope_theta"] == pytest.approx(BASE * 4 ** (4 / 2))


def test_yarn_by_hand() -> None:
    """d = 8, base 10^4, 64 positions, factor 4. The dimension that turns r times is 8 ln(64 / 2 pi r) / (2 ln 10^4):

    r = 8 gives 0.1050 (floor 0), r = 1 gives 1.0081 (ceiling 2), so the ramp over i = 0..3 is 0, 1/2, 1, 1: the share
    of a frequency that is interpolated. Frequencies are 1, 0.1, 0.01, 0.001, hence
    1, 0.1 (1/2 + 1/8) = 0.0625, 0.01 / 4, 0.001 / 4. Attention: 0.1 ln 4 + 1 = 1.138629.
    """
    config = llama()
    rope.apply(config, Yarn(name="yarn", factor=4.0, beta_fast=8.0))
    frequencies, scaling = rotary(config)
    assert frequencies == pytest.approx([1.0, 0.0625, 0.0025, 0.00025], rel=1e-5)
    assert scaling == pytest.approx(1.1386294)
    assert scaling == pytest.approx(0.1 * math.log(4) + 1)
    assert config.max_position_embeddings == 256


def test_yarn_takes_a_given_attention_factor() -> None:
    config = llama()
    rope.apply(config, Yarn(name="yarn", factor=2.0, attention_factor=1.5))
    assert rotary(config)[1] == 1.5


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (PositionInterpolation(name="pi", factor=2.0), PositionInterpolation(name="pi", factor=2.0)),
        (Yarn(name="yarn", factor=2.0), PositionInterpolation(name="pi", factor=8.0)),
        (NtkAware(name="ntk", factor=2.0), NtkAware(name="ntk", factor=4.0)),
        (Abf(name="abf", base=1e6), Yarn(name="yarn", factor=2.0)),
    ],
    ids=["same", "yarn-pi", "ntk-ntk", "abf-yarn"],
)
def test_a_change_counts_from_the_published_positions(first: Rope, then: Rope) -> None:
    twice, once = llama(), llama()
    rope.apply(twice, first)
    rope.apply(twice, then)
    rope.apply(once, then)
    assert rotary(twice) == rotary(once)
    assert twice.max_position_embeddings == once.max_position_embeddings


def test_a_scaled_model_is_not_scaled_again_but_its_base_can_change() -> None:
    scaled = {"rope_type": "linear", "factor": 2.0}
    with pytest.raises(SeqtuneError, match=r"already scaled \(linear\)"):
        rope.apply(llama(**scaled), Yarn(name="yarn", factor=2.0))
    config = llama(**scaled)
    rope.apply(config, Abf(name="abf", base=1e6))
    assert rotary(config)[0] == pytest.approx([frequency / 2 for frequency in plain(1e6)], rel=1e-6)


def test_a_model_without_rotary_positions_is_refused() -> None:
    with pytest.raises(SeqtuneError, match="type 'gpt2' has no rotary positions"):
        rope.apply(GPT2Config(), Abf(name="abf"))


def test_of_layers_that_differ_those_with_full_attention_are_changed() -> None:
    config = Gemma3TextConfig()
    before = config.rope_parameters
    rope.apply(config, Abf(name="abf", base=7e6))
    assert config.rope_parameters["full_attention"]["rope_theta"] == 7e6
    assert config.rope_parameters["sliding_attention"] == before["sliding_attention"]


def test_a_saved_model_is_loaded_with_the_change_and_keeps_it(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(llama()).save_pretrained(tmp_path / "published")
    spec = ModelSpec(name=str(tmp_path / "published"), rope=PositionInterpolation(name="pi", factor=4.0))
    changed = load_model(spec, device="cpu")
    expected = [frequency / 4 for frequency in plain()]
    assert changed.model.rotary_emb.inv_freq.tolist() == pytest.approx(expected, rel=1e-6)
    changed.save_pretrained(tmp_path / "trained")
    for again in (
        ModelSpec(name=str(tmp_path / "trained")),
        spec.model_copy(update={"name": str(tmp_path / "trained")}),
    ):
        assert load_model(again, device="cpu").model.rotary_emb.inv_freq.tolist() == pytest.approx(expected, rel=1e-6)


def test_the_tiny_model_reads_further() -> None:
    shape = {"hidden_size": 32, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate_size": 32, "max_positions": 64}
    short = load_model(TinyModelSpec(name="tiny", **shape), device="cpu")
    long = load_model(TinyModelSpec(name="tiny", **shape, rope=Yarn(name="yarn", factor=2.0)), device="cpu")
    assert long.config.max_position_embeddings == 128
    assert torch.equal(short.lm_head.weight, long.lm_head.weight)
    ids = torch.arange(100).unsqueeze(0)
    assert not torch.allclose(short(ids).logits, long(ids).logits)
