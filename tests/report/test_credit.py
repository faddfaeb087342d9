"""Per-token credit in the table of samples: colours, numbers, what is left out, and hostile text."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from fabricated_run import HOSTILE

from seqtune.config.reading import dump, read
from seqtune.report.html import contents, credit, write_report
from seqtune.report.run_folder import RunFolder
from seqtune_cli.compose import compose

if TYPE_CHECKING:
    from pathlib import Path


class Spans(HTMLParser):
    """The coloured pieces of completions: `(class, style, title, text)`."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, str, str, str]] = []
        self.tags: set[str] = set()
        self.open: dict[str, str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = {key: value or "" for key, value in attrs}
        self.open = given if tag == "span" and "title" in given else None

    def handle_data(self, data: str) -> None:
        if self.open is not None:
            self.found.append((self.open["class"], self.open.get("style", ""), self.open["title"], data))
            self.open = None


def test_a_completion_is_cut_where_its_advantage_changes() -> None:
    """Scale 2: 1 is half, -2 full, -0.5 a quarter; two tokens with 1 are one stretch."""
    found = credit(["a", " b", "c", "d", "", "\n"], [1.0, 1.0, -2.0, None, 0.0, -0.5], 2.0)
    assert [tuple(one) for one in found] == [
        ("a b", "good", 0.5, "advantage +1, 2 tokens", False),
        ("c", "bad", 1.0, "advantage -2, 1 token", False),
        ("d", "out", 0.0, "left out of the loss, 1 token", False),
        ("▯", "nil", 0.0, "advantage +0, 1 token", False),
        ("↵\n", "bad", 0.25, "advantage -0.5, 1 token", False),
    ]


def test_what_a_demonstration_gave_is_cut_off_and_marked() -> None:
    """Equal advantages, but the first two tokens were given."""
    found = credit(["a", "b", "c"], [1.0, 1.0, 1.0], 1.0, given=2)
    assert [(one.text, one.title, one.given) for one in found] == [
        ("ab", "advantage +1, 2 tokens of a demonstration", True),
        ("c", "advantage +1, 1 token", False),
    ]


def test_the_page_tells_a_demonstration_from_what_was_sampled(folder: RunFolder) -> None:
    folder.append_samples([row(90, [0.5, 0.5], ["a", "b"]) | {"prefix_tokens": 1}])
    text = write_report(folder).read_text()
    assert [(kind, told) for kind, _, _, told in Spans(text).found] == [("good given", "a"), ("good", "b")]
    assert "given by a demonstration" in text


def test_a_group_without_advantages_has_no_colour() -> None:
    assert [one.strength for one in credit(["a", "b"], [0.0, -0.0], 0.0)] == [0.0]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Of a run that has samples only."""
    made = RunFolder(tmp_path / "run")
    made.create(dump(read(compose([], "gspo_tiny"))), {}, {})
    return made


def row(step: int, advantages: list[float | None], texts: list[str]) -> dict[str, Any]:
    about = {"stage": "gspo", "step": step, "prompt": "p", "completion": "".join(texts), "reward": 1.0}
    return about | {"advantage": 0.5, "advantages": advantages, "pieces": texts}


def test_colours_compare_within_a_group(folder: RunFolder) -> None:
    folder.append_samples([row(90, [4.0], ["a"]), row(90, [-1.0], ["b"]), row(91, [-1.0], ["c"])])
    strengths = [one["credit"][0].strength for one in contents(folder)["samples"] if "credit" in one]
    assert strengths == [1.0, 0.25, 1.0]


def test_the_page_shows_each_number_and_obeys_no_token(folder: RunFolder) -> None:
    folder.append_samples([row(90, [1.5, None, -0.75], ["ok", HOSTILE, '" onmouseover="x'])])
    text = write_report(folder).read_text()
    spans = Spans(text)
    assert "script" not in spans.tags
    assert HOSTILE not in text
    assert 'onmouseover="x' not in text
    assert spans.found == [
        ("good", "--a: 0.60", "advantage +1.5, 1 token", "ok"),
        ("out", "", "left out of the loss, 1 token", HOSTILE),
        ("bad", "--a: 0.30", "advantage -0.75, 1 token", '" onmouseover="x'),
    ]
    assert "Advantage of each token" in text
    assert "given by a demonstration" not in text


def test_control_characters_become_pictures(folder: RunFolder) -> None:
    """HTML allows none; tabs and newlines stay."""
    plain = {"stage": "gspo", "step": 1, "prompt": "\x00", "completion": "\x1b\t\x7f", "reward": 1.0, "advantage": 0.0}
    folder.append_samples([plain, row(90, [1.0], ["\x07\n"])])
    text = write_report(folder).read_text()
    assert not {chr(code) for code in range(32) if chr(code) not in "\t\n"} & set(text)
    assert "<div>␀</div>" in text
    assert "<div>␛\t␡</div>" in text
    assert [told for *_, told in Spans(text).found] == ["␇↵\n"]


def test_completions_with_one_advantage_stay_plain(folder: RunFolder) -> None:
    whole = row(90, [1.0], ["a"])
    folder.append_samples([{key: value for key, value in whole.items() if key not in ("advantages", "pieces")}])
    text = write_report(folder).read_text()
    assert Spans(text).found == []
    assert "Advantage of each token" not in text


@pytest.mark.parametrize("broken", [{"pieces": ["a"]}, {"pieces": []}, {"advantages": None}])
def test_pieces_that_do_not_fit_are_not_coloured(folder: RunFolder, broken: dict[str, Any]) -> None:
    folder.append_samples([row(90, [1.0, 2.0], ["a", "b"]) | broken])
    assert "credit" not in contents(folder)["samples"][-1]
