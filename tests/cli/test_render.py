"""What is drawn: the live panel, plain lines, sparklines and tables."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from seqtune.config.reading import read
from seqtune.report.events import Evaluated, Notice, RunFinished, RunStarted, StageStarted, Step
from seqtune_cli import render
from seqtune_cli.compose import compose
from seqtune_cli.explain import batch

RESULTS = {"accuracy": {"value": 0.5, "low": 0.456, "high": 0.544, "n": 500}}


def step(number: int, **values: float) -> Step:
    return Step({"stage": "gspo", "step": number, "tokens": number * 100, "seconds": number * 0.5, **values}, 300)


def story() -> list[object]:
    return [
        RunStarted("runs/quickstart/now", ("sft", "gspo")),
        StageStarted("gspo", 1, 2, 300),
        step(10, loss=0.5, **{"reward/mean": 0.1}),
        Notice("a checkpoint was written"),
        step(20, loss=0.25, **{"reward/mean": 0.3}),
        step(20, **{"eval/loss": 0.125}),
        Evaluated("gspo", "gspo", RESULTS),
        RunFinished("runs/quickstart/now", 75.0),
    ]


def told(capsys: pytest.CaptureFixture[str], *, quiet: bool = False, as_json: bool = False) -> list[str]:
    with render.watching(quiet=quiet, as_json=as_json) as watch:
        for event in story():
            watch(event)  # type: ignore[arg-type]  # a list of different events
    return capsys.readouterr().out.splitlines()


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    # after step 10 at 5 s: 1,000 tokens and 10 steps in 5 s, so 280 steps more take 140 s
    assert told(capsys) == [
        "runs/quickstart/now",
        "gspo: stage 2 of 2, 300 steps",
        "gspo 10/300  loss 0.5  reward/mean 0.1",
        "note: a checkpoint was written",
        "gspo 20/300  loss 0.25  reward/mean 0.3  200 tokens/s  2:20 left",
        "gspo 20/300  eval/loss 0.125  200 tokens/s  2:20 left",
        "gspo: accuracy 0.5 (0.456 to 0.544, n=500)",
        "done in 1:15: runs/quickstart/now",
    ]


def test_a_log_has_a_line_an_event_however_long(capsys: pytest.CaptureFixture[str]) -> None:
    with render.watching(quiet=False, as_json=False) as watch:
        watch(Notice(f"{'word ' * 60}end"))
    assert capsys.readouterr().out == f"note: {'word ' * 60}end\n"


def test_show_on_a_narrow_screen_folds_no_path(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {
        "train.gradient_checkpointing": {"value": True, "origin": "seqtune_recipes/train/full.yaml:6"},
        "train.seed": {"value": 0, "origin": "default"},
    }
    stage = {"stage": "sft", "values": values, "formula": "L", "source": "S", "batch": {}, "parameters": {}}
    for width, line in (
        (100, "train.gradient_checkpointing  true  seqtune_recipes/train/full.yaml:6"),
        (60, "train.gradient_checkpointing  true                          \n"),
    ):
        monkeypatch.setattr(render, "console", lambda width=width: Console(highlight=False, width=width))
        render.explained({"recipe": "r", "stages": [stage]})
        printed = capsys.readouterr().out
        assert line in printed
        assert "\ntrain.seed                    0" in printed
        assert ("(set by)" in printed) == (width == 60)


def test_stages_share_a_narrow_screen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(render, "console", lambda: Console(highlight=False, width=60))
    render.plan_table(read(compose([], "quickstart")))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["quickstart", "sft", "gspo"]
    assert max(map(len, lines)) <= 60
    assert any(
        line.split() == ["parallel", "single,", "processes:", "1", "single,", "processes:", "1"] for line in lines
    )


def test_quiet_tells_results_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, quiet=True) == [
        "gspo: accuracy 0.5 (0.456 to 0.544, n=500)",
        "done in 1:15: runs/quickstart/now",
    ]


def test_json_tells_every_event_on_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in told(capsys, as_json=True)]
    assert [line["event"] for line in lines] == [type(event).__name__ for event in story()]
    assert lines[2]["row"]["loss"] == 0.5


def panel(width: int) -> list[str]:
    progress = render.Progress()
    for event in story():
        progress.see(event)  # type: ignore[arg-type]
    out = Console(width=width, file=io.StringIO(), record=True)
    out.print(progress.panel(width))
    return out.export_text().splitlines()


@pytest.mark.parametrize("width", [40, 80])
def test_the_panel_has_stage_step_rate_time_left_and_curves(width: int) -> None:
    top, bar, facts, loss, reward, bottom = panel(width)
    assert all(len(line) == width for line in (top, bar, facts, loss, reward, bottom))
    assert "gspo, stage 2 of 2" in top
    assert bar.count("━") == (width - 4) * 20 // 300
    assert "20 of 300 steps   2:20 left" in facts
    assert width < 50 or "200 tokens/s" in facts
    assert loss.split()[1:4] == ["loss", "0.25", "█▁"]
    assert reward.split()[1:4] == ["reward", "0.3", "▁█"]
    assert "runs/quickstart/now" in bottom


def test_a_new_stage_begins_new_curves() -> None:
    progress = render.Progress()
    for event in story()[:5]:
        progress.see(event)  # type: ignore[arg-type]
    progress.see(StageStarted("last", 2, 3, 5))
    assert (progress.step, progress.steps, progress.rate, progress.left, progress.curves) == (0, 5, None, None, {})


def test_a_long_curve_is_averaged_over_equal_stretches() -> None:
    assert render.sparkline([0, 4, 2, 2, 3, 5], 3) == "▁▁█"  # means 2, 2 and 4


def test_a_line_says_what_sharing_saved() -> None:
    row = {"stage": "gspo", "step": 1, "loss": 0.5, "tokens": 10, "seconds": 1.0, "tokens/saving": 0.58}
    assert render.Progress(stage="gspo", steps=2, step=1).line(row) == "gspo 1/2  loss 0.5  58% saved"


def test_what_is_sampled_at_most_is_told_where_rounds_may_add() -> None:
    for rounds, told in ((1, None), (2, 128)):
        (stage,) = read(compose([f"objective.sampling_rounds={rounds}", "rollout.updates=2"], "gspo_tiny")).stages
        assert batch(stage).get("completions sampled for it, at most") == told  # 32 a step, two steps, rounds


def test_a_pair_is_two_rows_of_tokens() -> None:
    (stage,) = read(compose(["packing.capacity=100", "train.accumulate=2"], "dpo_tiny")).stages
    assert batch(stage) == {"pairs a step": 16, "pairs a micro-batch": 8, "tokens a step, at most": 3200}


def test_sparklines() -> None:
    assert render.sparkline([], 5) == ""
    assert render.sparkline([1.0, 1.0], 5) == "▁▁"
    assert render.sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    # 0 1 | 2 3 | 4 5 | 6 7 -> 0.5 2.5 4.5 6.5 -> thirds of seven: 0, 2.33, 4.67, 7
    assert render.sparkline([0, 1, 2, 3, 4, 5, 6, 7], 4) == "▁▃▆█"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (3723, "1:02:03"), (-5, "0:00")])
def test_clock(seconds: float, text: str) -> None:
    assert render.clock(seconds) == text


def test_a_live_panel_leaves_the_results_on_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(render, "console", lambda: Console(file=screen, force_terminal=True, width=80))
    with render.watching(quiet=False, as_json=False) as watch:
        for event in story():
            watch(event)  # type: ignore[arg-type]
    assert "gspo, stage 2 of 2" in screen.getvalue()
    assert "done in 1:15: runs/quickstart/now" in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[2K")  # the panel itself is wiped at the end


def test_evaluations_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    render.evaluation("greedy of tiny", RESULTS)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "greedy of tiny",
        "metric    value  interval        items",
        "accuracy    0.5  0.456 to 0.544    500",
    ]
