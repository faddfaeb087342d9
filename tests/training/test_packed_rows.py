"""A packed row trains exactly as its documents would alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from tiny_plans import MODEL, create, stage, write_data
from torch.nn.functional import log_softmax

from seqtune.data.sources import Examples
from seqtune.models.load import load_model, load_tokenizer
from seqtune.packing.specs import BestFit, Unpacked
from seqtune.training.common import StageRun
from seqtune.training.sft import PackedRows, Sft, trainer

TEXTS = [("ab", "cde"), ("f", "ghijk"), ("lmno", "p"), ("q", "rs"), ("tuvwx", "yz")]


def test_positions_restart_at_documents_and_padding_is_one_more() -> None:
    rows = [
        {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, 6, 7, -100, 9], "seq_lengths": [3, 2]},
        {"input_ids": [1, 2, 3], "labels": [1, 2, 3], "seq_lengths": [3]},
    ]
    batch = PackedRows(pad_token_id=0)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [1, 2, 3, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 0, 1]]
    # The first token of a document is no label even where the data says so.
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9], [-100, 2, 3, -100, -100]]
    assert batch["tokens"].tolist() == [5, 3]


@pytest.fixture
def made(tmp_path) -> Sft:
    one = stage("sft", write_data(tmp_path), packing=BestFit(capacity=16))
    rows = Dataset.from_list([{"prompt": prompt, "completion": completion} for prompt, completion in TEXTS])
    run = StageRun(
        stage=one,
        index=0,
        stages=1,
        folder=create(tmp_path / "run", one),
        watch=lambda event: None,
        model=load_model(MODEL),
        tokenizer=load_tokenizer(MODEL),
        examples=Examples(train=rows, heldout=rows, skipped={}),
        checkpoint=None,
    )
    return trainer(run)


def test_the_packed_loss_is_the_mean_over_documents_read_alone(made: Sft) -> None:
    model = load_model(MODEL)
    total, count = 0.0, 0
    for prompt, completion in TEXTS:
        ids = torch.tensor([[*prompt.encode(), *completion.encode(), 258]])
        logps = log_softmax(model(ids).logits, -1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        total -= logps[len(prompt) - 1 :].sum().item()
        count += len(completion) + 1
    assert len(made.train_dataset) < len(TEXTS)  # rows do hold several documents
    assert made.evaluate()["eval/loss"] == pytest.approx(total / count, abs=1e-6)


def test_a_document_does_not_see_its_neighbours(made: Sft) -> None:
    batch = made.data_collator(made.train_dataset.to_list())
    row = next(row for row in range(len(batch["input_ids"])) if batch["position_ids"][row, 1:].eq(0).any())
    second = int(batch["position_ids"][row, 1:].eq(0).nonzero()[0]) + 1
    given = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False}
    made.model.eval()
    before = made.model(**given).logits
    given["input_ids"] = given["input_ids"].clone()
    given["input_ids"][row, :second] = 65
    after = made.model(**given).logits
    assert torch.equal(before[row, second:], after[row, second:])
    assert not torch.allclose(before[row, :second], after[row, :second])


@pytest.mark.parametrize("packing", [BestFit(capacity=16), Unpacked(capacity=16)])
def test_every_packing_measures_the_same_held_out_loss(made: Sft, packing, tmp_path) -> None:
    one = stage("sft", tmp_path / "sums.jsonl", packing=packing, train={"batch_size": 3})
    run = SimpleNamespace(**{**vars(made.run), "stage": one, "notice": print, "output": made.run.output})
    run.model = load_model(MODEL)
    assert trainer(run).evaluate()["eval/loss"] == pytest.approx(made.evaluate()["eval/loss"], abs=1e-6)
