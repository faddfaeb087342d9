"""From a spec to examples: sources, limit, skipped rows, the split."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtune.config.axes import DataSpec, TemplateMathSpec
from seqtune.data import sources
from seqtune.data.rows import WHERE, key
from seqtune.data.sources import fingerprints, load
from seqtune.errors import SeqtuneError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {at}"}) + "\n" for at in range(50)))
    return path


def test_rows_keep_their_order_and_place(file: Path) -> None:
    examples = load(DataSpec(path=str(file)))
    assert list(examples.train["text"]) == [f"document {at}" for at in range(50)]
    assert examples.train[WHERE][9] == f"{file}:10"
    assert len(examples.heldout) == 0
    assert examples.heldout.column_names == examples.train.column_names
    assert examples.skipped == {}


def test_limit(file: Path) -> None:
    examples = load(DataSpec(path=str(file), limit=7, eval_size=2))
    assert (len(examples.train), len(examples.heldout)) == (5, 2)


@pytest.mark.parametrize(("size", "held"), [(7, 7), (0.1, 5), (0.001, 1)])
def test_split_is_disjoint_and_complete(file: Path, size: float, held: int) -> None:
    examples = load(DataSpec(path=str(file), eval_size=size))
    train, heldout = list(examples.train["text"]), list(examples.heldout["text"])
    assert len(heldout) == held
    assert sorted(train + heldout) == sorted(f"document {at}" for at in range(50))


def test_split_depends_on_the_seed_and_not_on_the_order(file: Path) -> None:
    first = set(load(DataSpec(path=str(file), eval_size=9)).heldout["text"])
    assert set(load(DataSpec(path=str(file), eval_size=9, seed=1)).heldout["text"]) != first
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    assert set(load(DataSpec(path=str(file), eval_size=9)).heldout["text"]) == first


@given(st.lists(st.sampled_from("abcdefgh"), min_size=4, max_size=40), st.integers(1, 10), st.integers(0, 3))
@settings(max_examples=100)
def test_equal_prompts_stay_on_one_side(prompts: list[str], size: int, seed: int) -> None:
    rows: list[dict[str, Any]] = [{"prompt": prompt, "completion": str(at)} for at, prompt in enumerate(prompts)]
    if size >= len(rows) or size < min(map(prompts.count, prompts)):
        with pytest.raises(SeqtuneError, match=r"can(not)? be held out"):
            sources._split(rows, size, seed)
        return
    train, heldout = sources._split(rows, size, seed)
    assert 0 < len(heldout) <= size
    assert not {key(row) for row in train} & {key(row) for row in heldout}
    assert sorted([*train, *heldout], key=lambda row: int(row["completion"])) == rows


def test_more_held_out_than_there_is(file: Path) -> None:
    with pytest.raises(SeqtuneError, match="50 of 50 examples cannot be held out") as caught:
        load(DataSpec(path=str(file), eval_size=50))
    assert caught.value.problems[0].hint == "data.eval_size is at most 49"


def test_held_out_examples_from_their_own_file(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "b.jsonl"
    other.write_text('{"text": "apart"}\n')
    examples = load(DataSpec(path=str(file), eval_path=str(other), limit=3))
    assert list(examples.heldout["text"]) == ["apart"]
    assert len(examples.train) == 3
    with pytest.raises(SeqtuneError, match="is both trained on and held out"):
        load(DataSpec(path=str(tmp_path), eval_path=str(other)))
    with pytest.raises(SeqtuneError, match="asked for twice"):
        load(DataSpec(path=str(file), eval_path=str(other), eval_size=3))


def test_bad_rows_stop_or_are_skipped(file: Path) -> None:
    with file.open("a") as out:
        out.write('{"text": ""}\n{"text": \n')
    with pytest.raises(SeqtuneError) as caught:
        load(DataSpec(path=str(file)))
    assert [problem.where for problem in caught.value.problems] == [f"{file}:51", f"{file}:52", "data.path"]
    examples = load(DataSpec(path=str(file), on_error="skip"))
    assert len(examples.train) == 50
    assert examples.skipped == {"empty text": 1, "broken JSON": 1}


def test_nothing_usable(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": ""}\n')
    with pytest.raises(SeqtuneError, match="no usable example: empty text 1"):
        load(DataSpec(path=str(path), on_error="skip"))


def test_columns_of_some_rows_only_and_of_mixed_types(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b", "level": 3}\n')
    assert list(load(DataSpec(path=str(path))).train["level"]) == [None, 3]
    path.write_text('{"text": "a", "level": "x"}\n{"text": "b", "level": 3}\n')
    with pytest.raises(SeqtuneError, match=r"column 'level' mixes types \(str, int\)"):
        load(DataSpec(path=str(path)))


def test_a_saved_dataset(tmp_path: Path) -> None:
    saved = datasets.Dataset.from_dict({"text": ["a", "b", "c"]})
    saved.select([2, 0]).save_to_disk(str(tmp_path / "one"))
    examples = load(DataSpec(path=str(tmp_path / "one")))
    assert list(examples.train["text"]) == ["c", "a"]
    assert list(examples.train[WHERE]) == [f"{tmp_path / 'one'}:row 1", f"{tmp_path / 'one'}:row 2"]
    datasets.DatasetDict(train=saved, test=saved.select([1])).save_to_disk(str(tmp_path / "two"))
    assert list(load(DataSpec(path=str(tmp_path / "two"), split="test")).train["text"]) == ["b"]
    with pytest.raises(SeqtuneError, match="has no split 'tset'") as caught:
        load(DataSpec(path=str(tmp_path / "two"), split="tset"))
    assert "did you mean 'test'?" in caught.value.problems[0].hint
    (tmp_path / "one" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(SeqtuneError, match="cannot be read"):
        load(DataSpec(path=str(tmp_path / "one")))


def test_an_unreachable_hub_says_how_to_go_on() -> None:
    with pytest.raises(SeqtuneError) as caught:
        load(DataSpec(name="openai/gsm8k:main", format="prompt_answer"))
    problem = caught.value.problems[0]
    assert problem.problem.startswith("the dataset 'openai/gsm8k:main' cannot be had from the hub: ")
    assert problem.where == "data.name"
    assert "data.path=FOLDER" in problem.hint


def test_a_hub_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*args: Any, **options: Any) -> datasets.Dataset:
        asked.append((args, options))
        return datasets.Dataset.from_dict({"question": ["q"], "answer": ["#### 4"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    spec = DataSpec(
        name="openai/gsm8k:main",
        split="test",
        format="prompt_answer",
        columns={"prompt": "question"},
        answer_pattern="#### (.+)",
    )
    assert load(spec).train[0] == {"prompt": "q", "answer": "4", WHERE: "openai/gsm8k:main:row 1"}
    assert asked == [(("openai/gsm8k", "main"), {"split": "test"})]


def test_neither_path_nor_name() -> None:
    with pytest.raises(SeqtuneError, match="data has neither a path nor a hub name"):
        load(DataSpec())


@pytest.mark.parametrize("chat", [False, True])
def test_template_math(chat: bool) -> None:
    examples = load(TemplateMathSpec(name="template_math", size=20, eval_size=5, chat=chat))
    assert (len(examples.train), len(examples.heldout)) == (20, 5)
    row = examples.heldout[0]
    assert set(row) >= {"prompt", "completion", "answer"}
    text = row["completion"][0]["content"] if chat else row["completion"]
    assert text.endswith(f"#### {row['answer']}")
    assert isinstance(row["prompt"], list) == chat


def test_fingerprints_follow_the_content(file: Path) -> None:
    content = file.read_bytes()
    expected = [{"path": str(file), "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}]
    assert fingerprints(DataSpec(path=str(file))) == expected
    file.write_text("{}")
    assert fingerprints(DataSpec(path=str(file))) != expected
    assert fingerprints(DataSpec(name="a/b")) == [{"name": "a/b"}]


def test_gsm8k(real_data: Callable[[str], Path]) -> None:
    """7,473 problems of grade school mathematics; the first answer is 72."""
    spec = DataSpec(
        path=str(real_data("gsm8k_train.jsonl")),
        format="prompt_completion",
        columns={"prompt": "question", "completion": "answer", "answer": "answer"},
        answer_pattern=r"####\s*(.+)",
        eval_size=200,
    )
    examples = load(spec)
    assert (len(examples.train), len(examples.heldout)) == (7273, 200)
    assert examples.train.column_names == ["prompt", "completion", "answer", WHERE]
    first = min(examples.train, key=lambda row: int(row[WHERE].rpartition(":")[2]))
    assert first["prompt"].startswith("Natalia sold clips")
    assert first["answer"] == "72"
    assert not set(examples.train["prompt"]) & set(examples.heldout["prompt"])
