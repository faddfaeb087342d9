"""`pack_stage` and what training reads of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import datasets
import pytest
import tiny_plans

from seqtune.config.axes import DataSpec
from seqtune.data.sources import load
from seqtune.errors import SeqtuneError
from seqtune.models import tiny
from seqtune.packing.specs import BestFit
from seqtune.training.pack import pack_stage, packed_for

if TYPE_CHECKING:
    from pathlib import Path

    from seqtune.config.plan import Stage


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return tiny_plans.stage("sft", tiny_plans.write_data(tmp_path))


def packed_at(stage: Stage, folder: Path) -> Stage:
    return stage.model_copy(update={"packing": stage.packing.model_copy(update={"path": str(folder)})})


def test_a_pack_is_what_training_would_pack(stage: Stage, tmp_path: Path) -> None:
    pack_stage(stage, tmp_path / "pack")
    examples = load(stage.data)
    here = packed_for(stage, examples.train, tiny.tokenizer())
    there = packed_for(packed_at(stage, tmp_path / "pack"), examples.train, tiny.tokenizer())
    assert list(here.dataset) == list(there.dataset)
    assert here.counts["documents"] == there.counts["documents"] == 20


def test_a_pack_is_not_looked_at_for_held_out_examples(stage: Stage, tmp_path: Path) -> None:
    heldout = load(stage.data).heldout
    packed = packed_for(packed_at(stage, tmp_path / "absent"), heldout, tiny.tokenizer(), heldout=True)
    assert packed.counts["documents"] == 4


def test_changed_data_is_refused(stage: Stage, tmp_path: Path) -> None:
    pack_stage(stage, tmp_path / "pack")
    with (tmp_path / "sums.jsonl").open("a") as file:
        file.write('{"prompt": "1 + 1 = ", "completion": "2"}\n')
    with pytest.raises(SeqtuneError, match="its files have changed"):
        packed_for(packed_at(stage, tmp_path / "pack"), load(stage.data).train, tiny.tokenizer())


def test_another_tokenizer_is_refused(stage: Stage, tmp_path: Path) -> None:
    pack_stage(stage, tmp_path / "pack")
    other = tiny.tokenizer()
    other.add_tokens(["sum"])
    with pytest.raises(SeqtuneError, match="made with another tokenizer"):
        packed_for(packed_at(stage, tmp_path / "pack"), load(stage.data).train, other)


def test_rows_the_template_refuses_are_counted_or_named(stage: Stage) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0].content == 'no' %}{{ raise_exception('not that') }}{% endif %}" + tiny.CHAT_TEMPLATE
    )
    answer = {"role": "assistant", "content": "yes"}
    talks = [[{"role": "user", "content": word}, answer] for word in ("hi", "no", "ho")]
    examples = datasets.Dataset.from_dict({"messages": talks, "_where": ["a:1", "a:2", "a:3"]})
    for policy in ("skip", "error"):
        data = DataSpec(path="a.jsonl", format="messages", on_error=policy)
        asked = stage.model_copy(update={"data": data, "packing": BestFit(capacity=64)})
        if policy == "skip":
            assert packed_for(asked, examples, tokenizer).counts["skipped"] == {"chat template": 1}
        else:
            with pytest.raises(SeqtuneError, match=r"not that\n  where: a:2"):
                packed_for(asked, examples, tokenizer)
