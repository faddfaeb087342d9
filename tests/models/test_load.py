"""Models by name and folder, and what is said when one cannot be had."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch

from seqtune.config.axes import ModelSpec, TinyModelSpec
from seqtune.errors import SeqtuneError
from seqtune.models import tiny
from seqtune.models.load import check_vocabulary, count_parameters, load_model, load_tokenizer, resolve_dtype

if TYPE_CHECKING:
    from pathlib import Path

TINY = TinyModelSpec(name="tiny", hidden_size=16, layers=1, heads=2, kv_heads=1, intermediate_size=24)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a model and its tokenizer, as a hub model has them."""
    load_model(TINY).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_gives_back_the_model_that_was_saved(saved: Path) -> None:
    spec = ModelSpec(name=str(saved))
    model, made = load_model(spec), load_model(TINY)
    assert all(torch.equal(weight, made.state_dict()[name]) for name, weight in model.state_dict().items())
    assert not model.training
    assert load_tokenizer(spec)("abc")["input_ids"] == [97, 98, 99]
    assert count_parameters(spec) == count_parameters(TINY)


def test_a_hub_name_that_cannot_be_reached_says_how_to_go_on() -> None:
    with pytest.raises(SeqtuneError) as caught:
        load_model(ModelSpec(name="nobody/no-such-model"))
    problem = caught.value.problems[0]
    assert "'nobody/no-such-model' is neither a local folder nor reachable" in problem.problem
    assert problem.where == "model.name"
    for way in ("local folder", "HF_HUB_OFFLINE", "model=tiny"):
        assert way in problem.hint


@pytest.mark.parametrize("name", ["./missing", "/missing/model", "~/missing", "a/b/c"])
def test_a_folder_that_is_not_there_is_named_without_asking_the_hub(name: str) -> None:
    with pytest.raises(SeqtuneError, match="there is no folder"):
        load_tokenizer(ModelSpec(name=name))


def test_pickled_weights_are_not_read(saved: Path) -> None:
    torch.save(load_model(TINY).state_dict(), saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    with pytest.raises(SeqtuneError, match="safetensors"):
        load_model(ModelSpec(name=str(saved)))


def test_code_of_a_model_is_not_run(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (saved / "config.json").write_text(json.dumps(config))
    (saved / "evil.py").write_text("raise SystemExit('this code ran')\n")
    with pytest.raises(SeqtuneError, match="Python code of its own"):
        load_model(ModelSpec(name=str(saved)))


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["one", "two"])
    with pytest.raises(SeqtuneError, match="261 tokens but the model only 259"):
        check_vocabulary(load_model(TINY), tokenizer)


def test_a_tokenizer_without_an_end_is_refused(saved: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(saved)
    with pytest.raises(SeqtuneError, match="no end-of-text token"):
        load_tokenizer(ModelSpec(name=str(saved)))


def test_padding_is_the_end_token_where_there_is_no_other(saved: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(saved)
    assert load_tokenizer(ModelSpec(name=str(saved))).pad_token_id == 258


def test_an_attention_backend_that_cannot_run_is_refused() -> None:
    with pytest.raises(SeqtuneError) as caught:
        load_model(TINY.model_copy(update={"attention": "flash_attention_2"}), device="cpu")
    assert caught.value.problems[0].where == "model.attention"


def test_auto_is_float32_on_a_cpu() -> None:
    assert resolve_dtype("auto", torch.device("cpu")) is torch.float32
    assert resolve_dtype("bfloat16", torch.device("cpu")) is torch.bfloat16
