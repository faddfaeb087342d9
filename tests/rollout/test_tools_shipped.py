"""The shipped tools: what they answer, and what becomes of queries that break them."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from seqtune.errors import SeqtuneError
from seqtune.rollout.programs import _answer
from seqtune.rollout.search import read
from seqtune.rollout.tool_specs import Custom, Python, Search
from seqtune.rollout.tools import Answer

if TYPE_CHECKING:
    from pathlib import Path

PASSAGES = [
    {"title": "Lisbon", "text": "Lisbon is the capital of Portugal, on the Tagus."},
    {"text": "Porto lies in the north of Portugal."},
    {"text": "Madrid is the capital of Spain.", "id": 3},
    {"text": "Key k7 has the value 42."},
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n\n" for row in PASSAGES))
    return path


def test_search_finds_what_shares_rare_words(corpus: Path) -> None:
    ask = Search(path=str(corpus), passages=2).build()
    assert ask(["capital of Spain?", "THE TAGUS", "k7", "zebra"]) == [
        Answer("Madrid is the capital of Spain.\nLisbon: Lisbon is the capital of Portugal, on the Tagus."),
        Answer("Lisbon: Lisbon is the capital of Portugal, on the Tagus.\nMadrid is the capital of Spain."),
        Answer("Key k7 has the value 42."),
        Answer("nothing found"),
    ]
    assert ask(["", " ?!"]) == [Answer("error: the query has no word", failed=True)] * 2


def test_equally_good_passages_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("one cat here\n\ntwo cat\nhere\n\nthree cat here\n\na dog\n")
    assert read(path) == ["one cat here", "two cat here", "three cat here", "a dog"]
    assert Search(path=str(path), passages=2).build()(["cat"]) == [Answer("one cat here\ntwo cat here")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, "the corpus cannot be read"),
        ("bad.jsonl", '{"text": "a"}\n{"text"', "not JSON"),
        ("bad.jsonl", '{"text": "a"}\n{"txt": "b"}', "a passage has a field 'text'"),
        ("bad.jsonl", '["a"]', "a passage has a field 'text'"),
        ("bad.txt", "\n \n\n", "the corpus has no passage"),
        ("bad.txt", b"\xff\xfe", "the corpus cannot be read"),
    ],
)
def test_a_corpus_that_is_none(tmp_path: Path, name: str, content: str | bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SeqtuneError, match=message) as caught:
        Search(path=str(path)).build()
    assert name in caught.value.problems[0].where


def test_a_line_that_is_no_passage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": 3}\n')
    with pytest.raises(SeqtuneError) as caught:
        read(path)
    assert caught.value.problems[0].where == f"{path}:3"


def test_a_separator_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(json.dumps({"text": "one\u2028passage\x85"}, ensure_ascii=False), encoding="utf-8")
    assert read(path) == ["one passage"]


def test_search_without_its_package(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(SeqtuneError, match="needs bm25s") as caught:
        Search(path=str(corpus)).build()
    assert caught.value.problems[0].hint == "pip install 'seqtune[search]'"


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")
def test_python_prints_or_says_why_not() -> None:
    ask = Python(timeout=1.0, memory=512, output=1).build()
    answers = ask(
        [
            "print(6 * 7)\nimport sys; print('é', file=sys.stderr)",
            "x = 1",
            "print('before')\n1 / 0",
            "print('no end",
            "while True: pass",
            "print('x' * 5000)",
            "import socket; socket.socket()",
            "import os; os._exit(3)",
            "raise SystemExit",
            "\0",
        ]
    )
    assert answers[0].text.split("\n") in (["42", "é"], ["é", "42"])
    assert answers[1] == Answer("")
    assert answers[2] == Answer(
        "before\nerror: ZeroDivisionError in the program, line 2: division by zero", failed=True
    )
    assert [one.failed for one in answers] == [False, False] + [True] * 8
    assert answers[4] == Answer("error: timeout", failed=True)
    assert answers[5].text.endswith("error: output")
    assert len(answers[5].text) < 1100
    assert "error: " in answers[6].text
    assert all(one.text.startswith("error: ") for one in (answers[3], *answers[7:]))
    assert ask(["print('still here')"]) == [Answer("still here")]
    [hidden] = ask(["try:\n  import socket; socket.socket()\nexcept BaseException: print('fine')"])
    assert hidden.failed, "what the program hides is told all the same"
    assert _answer(None) == Answer("error: the sandbox gave no answer", failed=True)


TOOL = """
import time, os
def shout(query):
    print("noise on standard output")
    if query == "hang":
        time.sleep(60)
    if query == "die":
        os._exit(1)
    if query == "none":
        return None
    if query == "raise":
        return {}["key"]
    return query.upper()
other = 3
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(TOOL)
    return path


def test_a_function_of_the_users(mine: Path) -> None:
    ask = Custom(name=f"{mine}:shout", timeout=1.0, workers=2).build()
    assert ask(["a\nb", "raise", "none", "hang", "die", "é", "last"]) == [
        Answer("A\nB"),
        Answer("error: KeyError: 'key'", failed=True),
        Answer("error: the tool gave NoneType, no text", failed=True),
        Answer("error: no answer within 1 s", failed=True),
        Answer("error: no answer within 1 s", failed=True),
        Answer("É"),
        Answer("LAST"),
    ]
    assert ask([]) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [("{}:shot", "has no function 'shot'"), ("{}:other", "cannot be called"), ("{}x.py:a", "there is no file")],
)
def test_a_function_that_is_none_is_told_before_anything_is_sampled(mine: Path, name: str, message: str) -> None:
    with pytest.raises(SeqtuneError, match=message):
        Custom(name=name.format(mine)).build()
