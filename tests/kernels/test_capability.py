"""Which attention backends can run, judged on pretended machines, and tried on this one."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from seqtune_kernels.capability import (
    AUTO,
    FOREST,
    NAMES,
    Unusable,
    attention_backends,
    choose_attention,
    choose_forest_attention,
)

Machine = Callable[[tuple[int, int], dict[str, str | None]], None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Pretend a GPU of a compute capability, and which packages are installed (with the error their import raises)."""

    def pretend(capability: tuple[int, int], packages: dict[str, str | None]) -> None:
        real_spec, real_import = importlib.util.find_spec, importlib.import_module

        def find_spec(name: str) -> object:
            if name.startswith("flash_attn"):
                return object() if name in packages else None
            return real_spec(name)

        def import_module(name: str) -> ModuleType:
            if name in packages:
                if packages[name] is not None:
                    raise ImportError(packages[name])
                return ModuleType(name)
            return real_import(name)

        monkeypatch.setattr(importlib.util, "find_spec", find_spec)
        monkeypatch.setattr(importlib, "import_module", import_module)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return pretend


def test_every_name_is_one_that_transformers_knows() -> None:
    assert set(NAMES) - {"eager"} <= set(ALL_ATTENTION_FUNCTIONS.valid_keys())
    assert set(AUTO) <= set(NAMES)
    assert set(FOREST) == set(NAMES)


def test_on_cpu_only_eager_and_sdpa_run_and_every_other_says_why() -> None:
    found = {backend.name: backend for backend in attention_backends("cpu")}
    assert {name for name, backend in found.items() if backend.usable} == {"eager", "sdpa"}
    assert all(backend.reason for backend in found.values())
    assert "CUDA" in found["flash_attention_2"].reason
    assert "no backward pass" in found["flex_attention"].reason


def test_auto_takes_sdpa_on_cpu_and_gives_the_reasons_against_the_faster_ones() -> None:
    choice = choose_attention("auto", "cpu", torch.float32)
    assert choice.name == "sdpa"
    assert set(choice.reasons) == {"flash_attention_3", "flash_attention_2"}


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3", "flex_attention"])
def test_asked_for_and_impossible_names_backend_reason_and_nearest(name: str) -> None:
    with pytest.raises(Unusable, match=f"'{name}' cannot run here: it needs a CUDA device.*'sdpa'"):
        choose_attention(name, "cpu", torch.float32)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="no attention backend 'flash_attention2'; did you mean 'flash_attention_2'"):
        choose_attention("flash_attention2", "cpu", torch.float32)
    with pytest.raises(ValueError, match="have: auto, flash_attention_3"):
        choose_attention("xyz", "cpu", torch.float32)


@pytest.mark.parametrize(
    ("capability", "packages", "dtype", "chosen", "against"),
    [
        ((9, 0), {"flash_attn": None, "flash_attn_interface": None}, torch.bfloat16, "flash_attention_3", ""),
        ((9, 0), {"flash_attn": None}, torch.bfloat16, "flash_attention_2", "not installed"),
        ((8, 0), {"flash_attn": None, "flash_attn_interface": None}, torch.float16, "flash_attention_2", "8.0"),
        ((10, 0), {"flash_attn": None, "flash_attn_interface": None}, torch.float16, "flash_attention_2", "10.0"),
        ((7, 5), {"flash_attn": None}, torch.float16, "sdpa", "this GPU has 7.5"),
        ((9, 0), {"flash_attn": None}, torch.float32, "sdpa", "the weights are float32"),
        ((9, 0), {"flash_attn": "undefined symbol: _ZN3c10"}, torch.bfloat16, "sdpa", "undefined symbol"),
        ((9, 0), {}, torch.bfloat16, "sdpa", "seqtune[flash]"),
    ],
)
def test_auto_on_a_gpu(
    capability: tuple[int, int],
    packages: dict[str, str | None],
    dtype: torch.dtype,
    chosen: str,
    against: str,
    machine: Machine,
) -> None:
    machine(capability, packages)
    choice = choose_attention("auto", "cuda:0", dtype)
    assert choice.name == chosen
    assert against in " ".join(choice.reasons.values())
    usable = {backend.name: backend.usable for backend in attention_backends("cuda:0", dtype)}
    assert usable[chosen]
    assert usable["flex_attention"]
    assert not any(usable[name] for name in choice.reasons)


def test_without_a_dtype_the_condition_is_the_reason(machine: Machine) -> None:
    machine((9, 0), {"flash_attn": None})
    found = {backend.name: backend for backend in attention_backends("cuda:0")}
    assert found["flash_attention_2"].usable
    assert found["flash_attention_2"].reason == "with weights in float16 or bfloat16"


@pytest.mark.parametrize(
    ("capability", "packages", "dtype", "softcap", "chosen", "against"),
    [
        ((9, 0), {"flash_attn": None, "flash_attn_interface": None}, torch.bfloat16, False, "flash_attention_2", "2"),
        ((9, 0), {"flash_attn": None}, torch.bfloat16, True, "flash_attention_2", ""),
        ((9, 0), {}, torch.bfloat16, False, "sdpa", "seqtune[flash]"),
        ((9, 0), {}, torch.bfloat16, True, "flex_attention", "have no soft-cap"),
        ((9, 0), {"flash_attn": None}, torch.float32, False, "flex_attention", "in float16 or bfloat16, not float32"),
        ((7, 5), {"flash_attn": None}, torch.float16, False, "flex_attention", "this GPU has 7.5"),
    ],
)
def test_auto_for_forests_on_a_gpu(
    capability: tuple[int, int],
    packages: dict[str, str | None],
    dtype: torch.dtype,
    softcap: bool,
    chosen: str,
    against: str,
    machine: Machine,
) -> None:
    machine(capability, packages)
    choice = choose_forest_attention("auto", "cuda:0", dtype, softcap=softcap)
    assert choice.name == chosen
    assert against in " ".join(choice.reasons.values())
    assert choose_forest_attention(chosen, "cuda:0", dtype, softcap=softcap).name == chosen
    for name in choice.reasons:
        with pytest.raises(Unusable, match=f"'{name}' cannot compute forests here.*the nearest that can is '{chosen}'"):
            choose_forest_attention(name, "cuda:0", dtype, softcap=softcap)


def test_forests_on_cpu_and_elsewhere() -> None:
    assert choose_forest_attention("auto", "cpu", torch.float32, softcap=True).name == "sdpa"
    elsewhere = choose_forest_attention("auto", "mps", torch.float32)
    assert elsewhere.name == "eager"
    assert "this is mps" in elsewhere.reasons["sdpa"]
    with pytest.raises(Unusable, match="no attention backend 'flash'"):
        choose_forest_attention("flash", "cpu", torch.float32)


@pytest.mark.parametrize("name", [backend.name for backend in attention_backends("cpu") if backend.usable])
def test_what_is_called_usable_here_trains(name: str) -> None:
    settings = Qwen3Config(
        vocab_size=11,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    settings._attn_implementation = choose_attention(name, "cpu", torch.float32).name
    model = Qwen3ForCausalLM(settings)
    model(torch.tensor([[2, 3, 4]])).logits.sum().backward()
    assert all(weight.grad is not None for weight in model.model.layers.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_is_called_usable_on_this_gpu_trains() -> None:
    for backend in attention_backends("cuda", torch.bfloat16):
        if backend.usable:
            settings = Qwen3Config(
                vocab_size=64,
                hidden_size=128,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=64,
                bos_token_id=None,
                eos_token_id=1,
                pad_token_id=0,
            )
            settings._attn_implementation = backend.name
            model = Qwen3ForCausalLM(settings).to("cuda", torch.bfloat16)
            model(torch.randint(2, 64, (1, 128), device="cuda")).logits.float().sum().backward()
