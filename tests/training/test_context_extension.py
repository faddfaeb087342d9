"""Stages that lengthen a model's context: short rows first, then longer ones on changed rotary positions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from tiny_plans import MODEL, create, plan_of, stage

from seqtune.config.axes import DataSpec
from seqtune.config.rope import Abf, PositionInterpolation
from seqtune.errors import SeqtuneError
from seqtune.packing.specs import BestFit
from seqtune.peft.specs import Full, Lora
from seqtune.training import ends
from seqtune.training.run import train

if TYPE_CHECKING:
    from pathlib import Path

    from seqtune.config.rope import Rope
    from seqtune.config.spec import PeftSpec
    from seqtune.report.run_folder import RunFolder

SHORT = MODEL.model_copy(update={"max_positions": 32})


def run(folder: Path, peft: PeftSpec, *ropes: Rope | None) -> RunFolder:
    source = folder / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": chr(97 + n) * 150}) + "\n" for n in range(8)))
    capacity = [32 if number == 0 else 128 for number in range(len(ropes))]
    stages = [
        stage(
            "sft",
            source,
            name=f"stage{number}",
            data=DataSpec(path=str(source)),
            model=SHORT.model_copy(update={"rope": rope}),
            packing=BestFit(capacity=capacity[number], on_overflow="split"),
            peft=peft,
            train={"max_steps": 2},
        )
        for number, rope in enumerate(ropes)
    ]
    made = create(folder / "run", *stages)
    train(plan_of(made), folder=made, watch=lambda event: None)
    return made


@pytest.mark.parametrize("peft", [Full(), Lora(rank=2)], ids=["full", "lora"])
def test_a_later_stage_reads_four_times_further(peft: PeftSpec, tmp_path: Path) -> None:
    made = run(tmp_path, peft, None, PositionInterpolation(name="pi", factor=4.0), None)
    inverse, positions = [], []
    for index in range(3):
        model, _ = ends.load_end(plan_of(made), made, index)
        inverse.append(model.model.rotary_emb.inv_freq)
        positions.append(model.config.max_position_embeddings)
    assert positions == [32, 128, 128]
    assert (inverse[1] * 4).tolist() == pytest.approx(inverse[0].tolist())
    assert inverse[2].tolist() == inverse[1].tolist(), "a stage that says nothing keeps what the one before had"


def test_without_it_the_longer_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SeqtuneError, match="the longest sequence has 128 tokens, but the model reads at most 32"):
        run(tmp_path, Full(), None, Abf(name="abf", base=1e6))
