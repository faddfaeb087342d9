"""A saved reward model as a reward."""

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
)

from seqtune.config.axes import TinyModelSpec
from seqtune.errors import SeqtuneError
from seqtune.models import tiny
from seqtune.rewards.score import score
from seqtune.rewards.specs import RewardModel

PROMPTS, COMPLETIONS = ["one", "a longer prompt", "two", ""], ["yes", "no", "a much longer completion", "x"]


def save(folder, labels: int = 1):
    spec = TinyModelSpec(name="tiny")
    config = tiny.config(spec)
    tokenizer = tiny.tokenizer()
    config.num_labels, config.pad_token_id = labels, tokenizer.pad_token_id
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(tmp_path_factory.mktemp("scorer"))


def test_it_scores_what_the_classifier_scores(saved) -> None:
    """Against transformers' own head, a row at a time: prompt, completion and the token that ends it."""
    tokenizer = AutoTokenizer.from_pretrained(saved)
    model = AutoModelForSequenceClassification.from_pretrained(saved).eval()
    wanted = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        ids = [*tokenizer(prompt)["input_ids"], *tokenizer(completion)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            hidden = model.base_model(torch.tensor([ids])).last_hidden_state[0, -1]
            wanted.append(float(model.score(hidden)))
    for batch_size in (1, 3):
        reward = RewardModel(path=str(saved), batch_size=batch_size).build()
        assert score(reward, PROMPTS, COMPLETIONS, {}) == pytest.approx(wanted, abs=1e-5)
    assert len(set(wanted)) == 4


def test_order_does_not_matter_and_prompts_do(saved) -> None:
    reward = RewardModel(path=str(saved), batch_size=2).build()
    straight = score(reward, PROMPTS, COMPLETIONS, {})
    assert score(reward, PROMPTS[::-1], COMPLETIONS[::-1], {})[::-1] == pytest.approx(straight, abs=1e-5)
    assert score(reward, ["other"] * 4, COMPLETIONS, {}) != pytest.approx(straight, abs=1e-5)


def test_the_beginning_of_what_is_too_long_is_cut(saved) -> None:
    reward = RewardModel(path=str(saved), max_length=3).build()
    first, second = score(reward, ["a" * 50, "b" * 50], ["xyz", "xyz"], {})
    assert first == pytest.approx(second, abs=1e-6)


def test_special_tokens_stand_at_the_beginning_only(saved, monkeypatch) -> None:
    """With a tokenizer that begins every text it is given with a token of its own, here 7."""
    reward = RewardModel(path=str(saved)).build()
    plain, end = reward._tokenizer, reward._tokenizer.eos_token_id

    class Beginning:
        eos_token_id = end

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": [7] * add_special_tokens + plain(text)["input_ids"]}

    monkeypatch.setattr(reward, "_tokenizer", Beginning())
    ids = reward._ids("ab", "c")
    assert ids == [7, *plain("abc")["input_ids"], end]
    assert not any(weight.requires_grad for weight in reward._model.parameters())


def test_a_model_without_a_pad_token_scores_batches_as_rows(saved, tmp_path) -> None:
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    model.config.pad_token_id = tokenizer.pad_token = None
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    one, all_ = (RewardModel(path=str(tmp_path), batch_size=size).build() for size in (1, 4))
    assert score(all_, PROMPTS, COMPLETIONS, {}) == pytest.approx(score(one, PROMPTS, COMPLETIONS, {}), abs=1e-5)


def encoder(folder):
    settings = BertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16, num_labels=1
    )
    BertForSequenceClassification(settings).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda folder: encoder(folder / "encoder"), "does not score the last token"),
        (lambda folder: folder / "nowhere", "neither a folder"),
        (lambda folder: save(folder / "many", labels=3), "has 3 outputs"),
        (lambda folder: adapter(folder / "adapter"), "holds an adapter"),
    ],
)
def test_what_is_no_reward_model_is_refused(tmp_path, make, problem: str, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SeqtuneError, match=problem):
        RewardModel(path=str(make(tmp_path))).build()


def adapter(folder):
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    return folder
