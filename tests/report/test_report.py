"""The page of a run: complete, self-contained, and safe against what a model writes."""

from __future__ import annotations

import re
import subprocess
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
from fabricated_run import HOSTILE, fabricate

from seqtune.errors import SeqtuneError
from seqtune.report.charts import Line, curves, intervals
from seqtune.report.environment import describe
from seqtune.report.html import clock, contents, number, write_report
from seqtune.report.run_folder import RunFolder, encode

if TYPE_CHECKING:
    from pathlib import Path


class Page(HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return fabricate(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def text(folder: RunFolder) -> str:
    path = write_report(folder)
    assert path == folder.path / "report.html"
    return path.read_text()


def test_the_page_loads_nothing_and_runs_nothing(text: str) -> None:
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert all(link.startswith("#") for link in page.links)
    assert "url(http" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_what_a_model_writes_is_shown_and_not_obeyed(text: str) -> None:
    assert HOSTILE not in text
    assert HOSTILE in Page(text).text


def test_the_page_shows_stages_evaluations_plan_samples_notices_and_environment(text: str) -> None:
    words = Page(text).text
    for said in (
        "3 rows were left out: empty text 3",
        "seqtune train recipe=quickstart train.seed=3",
        "819,200 4,096 a step",  # 200 steps of 4096 tokens
        "20,429 tokens/s",  # 819200 / 40.1
        "30 of 40",
        "54.2 % 50.2 % to 58.2 % · n 500",
        "80.4 %",
        "Gus has 30 boxes of 4 cups",
        "train.learning_rate",
        "packages.torch",
    ):
        assert said in words, said


def test_values_have_their_origin_and_differences_are_marked(folder: RunFolder) -> None:
    axes = {axis["axis"]: {row["path"]: row for row in axis["rows"]} for axis in contents(folder)["plan"]}
    seed = axes["train"]["train.seed"]
    assert not seed["differs"]
    assert [(cell["value"], cell["origin"]) for cell in seed["cells"]] == [(3, "command line")] * 2
    steps = axes["train"]["train.max_steps"]
    assert steps["differs"]
    assert all(cell["origin"] for cell in steps["cells"])
    rate = axes["objective"]["objective.epsilon_low"]
    assert [cell["absent"] for cell in rate["cells"]] == [True, False]
    assert axes["train"]["train.adam_beta1"]["cells"][0]["origin"] == ""


def test_held_out_values_share_the_axes_of_what_they_belong_to(folder: RunFolder) -> None:
    sft, gspo = contents(folder)["stages"]
    assert "held-out" in sft["charts"][0]
    assert not any("eval/" in chart for chart in sft["charts"])
    assert "reward/mean" in gspo["charts"][0]
    assert not any("policy/clip_high" in chart for chart in gspo["charts"])  # constant
    assert not any("reward/std" in chart for chart in gspo["charts"])


def test_ids_inside_the_charts_are_not_shared(text: str) -> None:
    clips = re.findall(r'<clipPath id="([^"]+)"', text)
    assert len(clips) >= 8
    assert len(clips) == len(set(clips))


def test_a_run_that_has_only_just_begun_has_a_page(tmp_path: Path, folder: RunFolder) -> None:
    young = RunFolder(tmp_path / "young")
    young.create(folder.plan_text(), {}, {})
    words = Page(write_report(young).read_text()).text
    assert "quickstart" in words
    assert "Samples" not in words
    assert "Evaluation" not in words


def test_an_undefined_number_leaves_a_gap(tmp_path: Path, folder: RunFolder) -> None:
    run = RunFolder(tmp_path / "nan")
    run.create(folder.plan_text(), {}, {})
    for step, loss in enumerate([3.0, float("nan"), 2.0]):
        run.append_metrics({"stage": "sft", "step": step, "loss": loss, "tokens": step, "seconds": 1.0})
    run.append_samples(
        [{"stage": "sft", "step": 1, "prompt": "p", "completion": "c", "reward": None, "advantage": None}]
    )
    assert contents(run)["stages"][0]["loss"] == (3.0, 2.0)
    write_report(run)


def test_a_damaged_file_is_named(tmp_path: Path, folder: RunFolder) -> None:
    run = RunFolder(tmp_path / "bad")
    run.create(folder.plan_text(), {}, {})
    (run.path / "metrics.jsonl").write_text("oops\n{}\n")
    with pytest.raises(SeqtuneError) as caught:
        write_report(run)
    assert caught.value.problems[0].where.endswith("metrics.jsonl:1")
    assert not (run.path / "report.html").exists()


def test_long_lines_are_thinned_and_keep_their_mean() -> None:
    steps = list(range(10_000))
    chart = curves("loss", [Line("training", steps, [float(step % 2) for step in steps])], salt="x")
    assert len(chart) < 60_000


def test_charts_are_the_same_every_time_and_follow_the_ink_of_the_page() -> None:
    chart = intervals("accuracy", ["a <b>", "c"], [(0.5, 0.4, 0.6), (0.7, 0.6, 0.8)])
    assert chart == intervals("accuracy", ["a <b>", "c"], [(0.5, 0.4, 0.6), (0.7, 0.6, 0.8)])
    assert "currentColor" in chart
    assert "#010203" not in chart
    assert "a &lt;b&gt;" in chart


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "–"), (0.00012345, "0.0001234"), (3.0, "3"), (1234567, "1,234,567"), (1234.5, "1,234"), (-0.5, "-0.5")],
)
def test_numbers(value: float | None, said: str) -> None:
    assert number(value) == said


def test_shares_and_durations() -> None:
    assert number(0.5421, percent=True) == "54.2 %"
    assert [clock(s) for s in (0.25, 42.0, 200.0, 3600.0 * 5 + 60 * 7)] == [
        "0.25 s",
        "42 s",
        "3 min 20 s",
        "5 h 07 min",
    ]


def test_the_environment_is_json_and_knows_the_repository(workdir: Path) -> None:
    found = describe()
    encode(found)
    assert found["packages"]["torch"]
    assert found["packages"]["seqtune"]
    assert found["cpus"] >= 1
    assert found["git"] is None
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *words], check=True)
    state = describe()["git"]
    assert re.fullmatch(r"[0-9a-f]{40}", state["commit"])
    assert state["changed"] is False
    (workdir / "file").write_text("x")
    subprocess.run([*git, "add", "file"], check=True)
    assert describe()["git"]["changed"] is True


def test_the_page_says_what_sharing_saved(folder: RunFolder) -> None:
    page = Page(write_report(folder).read_text())
    stage = contents(folder)["stages"][1]
    steps = sum(row["stage"] == stage["name"] for row in folder.metrics() if "tokens/computed" in row)
    assert (stage["computed"], stage["padded"]) == (1000 * steps, 4000 * steps)
    assert f"75.0 % less than {4000 * steps:,} padded" in page.text


def test_the_page_shows_what_was_proven(folder: RunFolder) -> None:
    assert "Checks" not in Page(write_report(folder).read_text()).text
    proof = {"name": "isolation", "passed": True, "found": 0.0, "limit": 0.0, "detail": "none moved", "hint": ""}
    stage = contents(folder)["names"][0]
    folder.write_json(f"proofs/{stage}.json", [proof])
    text = Page(write_report(folder).read_text()).text
    assert "on this model and data, before the first step" in text
    assert "isolation 0 0 none moved" in text
