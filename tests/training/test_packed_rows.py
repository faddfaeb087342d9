"""A packed row trains exactly as its documents would alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_plans import MODEL, create, stage, write_data
from torch.nn.functional import log_softmax

from seqtune.data.sources import Examples
from seqtune.models.load import load_model, load_tokenizer
from seqtune.objectives.specs.sft import Sft as Sft_
from seqtune.packing.specs import BestFit, Unpacked
from seqtune.training.forest import Scored, lay_out, token_scores
from seqtune.training.sft import Sft, documents, trainer
from seqtune.training.stage import StageRun

TEXTS = [("ab", "cde"), ("f", "ghijk"), ("lmno", "p"), ("q", "rs"), ("tuvwx", "yz")]


def test_a_row_comes_apart_into_its_documents() -> None:
    row = {"input_ids": [5, 6, 7, 8, 9], "loss_mask": [0, 1, 1, 1, 1], "seq_lengths": [3, 2]}
    first, second = documents(row)
    assert first.ids.tolist() == [5, 6, 7]
    assert first.mask.tolist() == [False, True, True]
    assert second.ids.tolist() == [8, 9]
    batch = lay_out([first, second], torch.device("cpu"), shared=False)
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    # The first token of a document is no target even where the data says so.
    assert batch.targets.tolist() == [6, 7, 9]
    assert batch.predictors.tolist() == [0, 1, 3]
    assert batch.index.tolist() == [[0, 1], [2, -1]]


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


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_packed_gradients_are_those_of_documents_read_alone(
    made: Sft, aggregation: Literal["token_mean", "sequence_mean"], tmp_path
) -> None:
    """Loss and every gradient, by name, whichever documents share a row and a micro-batch."""
    model, losses = load_model(MODEL), []
    for prompt, completion in TEXTS:
        ids = torch.tensor([[*prompt.encode(), *completion.encode(), 258]])
        logps = log_softmax(model(ids).logits, -1)[0, :-1].gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0]
        losses.append(-logps)
    alone = torch.cat(losses).mean() if aggregation == "token_mean" else torch.stack([x.mean() for x in losses]).mean()
    alone.backward()
    wanted = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    for packing, parts in ((BestFit(capacity=16), 1), (BestFit(capacity=32), 2), (Unpacked(capacity=16), 3)):
        one = stage("sft", tmp_path / "sums.jsonl", packing=packing, objective=Sft_(aggregation=aggregation))
        run = SimpleNamespace(**{**vars(made.run), "stage": one, "notice": print, "output": made.run.output})
        run.model = load_model(MODEL)
        packed = trainer(run)
        rows = packed.train_dataset.to_list()
        batches = [packed.lay(rows[part::parts]) for part in range(min(parts, len(rows)))]
        count = sum(packed.count(batch) for batch in batches)
        losses = [packed.measure(packed.model, batch, count).loss for batch in batches]
        sum(losses).backward()
        assert sum(losses).item() == pytest.approx(alone.item(), abs=2e-6)
        for name, weight in packed.model.named_parameters():
            torch.testing.assert_close(weight.grad, wanted[name], atol=1e-6, rtol=1e-5, msg=name)


def test_a_document_does_not_see_its_neighbours(made: Sft) -> None:
    made.model.eval()
    first, *others = (doc for row in made.train_dataset for doc in documents(row))
    changed = Scored(np.full_like(first.ids, 65), first.mask)
    logps = []
    for head in (first, changed):
        batch = lay_out([head, *others], torch.device("cpu"), shared=False)
        logps.append(batch.by_sequence(token_scores(made.model, made.model, batch).logps))
    assert torch.equal(logps[0][1:], logps[1][1:])
    assert not torch.allclose(logps[0][0], logps[1][0])


@pytest.mark.parametrize("packing", [BestFit(capacity=16), Unpacked(capacity=16)])
def test_every_packing_measures_the_same_held_out_loss(made: Sft, packing, tmp_path) -> None:
    one = stage("sft", tmp_path / "sums.jsonl", packing=packing, train={"batch_size": 3})
    run = SimpleNamespace(**{**vars(made.run), "stage": one, "notice": print, "output": made.run.output})
    run.model = load_model(MODEL)
    assert trainer(run).evaluate()["eval/loss"] == pytest.approx(made.evaluate()["eval/loss"], abs=1e-6)
