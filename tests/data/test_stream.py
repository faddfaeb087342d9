"""Documents drawn from several sources: shares, ends, shuffles, and states that go on exactly."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtune.config.mixture import MixtureSpec
from seqtune.data.rows import WHERE
from seqtune.data.stream import Mixture
from seqtune.errors import SeqtuneError

if TYPE_CHECKING:
    from pathlib import Path

    from seqtune.data.rows import BadRows
    from seqtune.data.stream import Document


def encode(examples: datasets.Dataset, bad: BadRows) -> datasets.Dataset:
    """One token a character, all of them trained."""
    ids = [[ord(character) for character in text] for text in examples["text"]]
    return datasets.Dataset.from_dict(
        {"input_ids": ids, "loss_mask": [[True] * len(row) for row in ids], WHERE: examples[WHERE]},
        features=datasets.Features(
            input_ids=datasets.List(datasets.Value("int32")),
            loss_mask=datasets.List(datasets.Value("bool")),
            **{WHERE: datasets.Value("string")},
        ),
    )


def write(path: Path, name: str, count: int, size: int = 3) -> str:
    """`count` documents of `size` characters that name their source and number."""
    lines = [json.dumps({"text": f"{name}{number}".ljust(size, ".")}) for number in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def text(document: Document) -> str:
    return "".join(map(chr, document.ids)).rstrip(".")


def mixture(*sources: dict[str, Any], **said: Any) -> Mixture:
    return Mixture(MixtureSpec(name="mixture", sources=sources, **said), encode)


def take(stream: Mixture, count: int) -> list[str]:
    return [text(next(stream)) for _ in range(count)]


@pytest.fixture
def three(tmp_path: Path) -> list[dict[str, Any]]:
    return [
        {"path": write(tmp_path / f"{name}.jsonl", name, count), "weight": weight}
        for name, count, weight in (("a", 7, 0.5), ("b", 40, 0.3), ("c", 3, 0.2))
    ]


def test_the_source_furthest_behind_comes_next(three: list[dict[str, Any]]) -> None:
    """w = (.5, .3, .2): the published rule gives 0, 1, 2, 0, 1, 0, 2, 0, 1, 0."""
    drawn = take(mixture(*three, unit="documents", shuffle=1), 10)
    assert [name[0] for name in drawn] == list("abcabacaba")
    assert drawn == ["a0", "b0", "c0", "a1", "b1", "a2", "c1", "a3", "b2", "a4"]


def test_weights_of_tokens_count_tokens(tmp_path: Path) -> None:
    """Documents of 30 and 3 tokens at equal weight: ten short ones for each long one."""
    sources = [
        {"path": write(tmp_path / "long.jsonl", "L", 5, 30)},
        {"path": write(tmp_path / "short.jsonl", "S", 50, 3)},
    ]
    tokens, documents = mixture(*sources), mixture(*sources, unit="documents")
    assert Counter(name[0] for name in take(tokens, 110)) == {"L": 10, "S": 100}
    assert abs(tokens.served[0] - tokens.served[1]) <= 30
    assert Counter(name[0] for name in take(documents, 110)) == {"L": 55, "S": 55}


@settings(max_examples=25, deadline=None)
@given(weights=st.lists(st.floats(0.05, 10), min_size=1, max_size=6), draws=st.integers(1, 100))
def test_every_source_stays_near_its_share(weights: list[float], draws: int, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = folder / "near.jsonl"
    if not path.exists():
        write(path, "x", 5)
    stream = mixture(*({"path": str(path), "weight": weight} for weight in weights), unit="documents")
    total = sum(weights)
    for drawn in range(1, draws + 1):
        next(stream)
        for weight, served in zip(weights, stream.served, strict=True):
            assert abs(weight / total * drawn - served) <= max(1.0, len(weights) / 2)


def test_a_pass_serves_every_document_once_and_passes_differ(three: list[dict[str, Any]]) -> None:
    stream = mixture(three[1], shuffle=16)
    first, second = take(stream, 40), take(stream, 40)
    assert sorted(first) == sorted(second) == sorted(f"b{number}" for number in range(40))
    assert first != second
    assert first != [f"b{number}" for number in range(40)]
    blocks = [[int(name[1:]) - start for name in first[start : start + 16]] for start in (0, 16)]
    assert sorted(blocks[0]) == sorted(blocks[1]) == list(range(16)), "a block holds consecutive rows"
    assert blocks[0] != blocks[1]


def test_the_seed_decides_the_order(three: list[dict[str, Any]]) -> None:
    assert take(mixture(*three), 50) == take(mixture(*three), 50)
    assert take(mixture(*three), 50) != take(mixture(*three, seed=1), 50)


def test_stop_at_the_first_end(three: list[dict[str, Any]]) -> None:
    drawn = [text(document) for document in mixture(*three, unit="documents", stop="first_exhausted")]
    assert Counter(name[0] for name in drawn)["a"] == 7
    assert len(drawn) == len(set(drawn))


def test_stop_when_all_ended_once(three: list[dict[str, Any]]) -> None:
    counts = Counter(text(document) for document in mixture(*three, unit="documents", stop="all_exhausted"))
    assert len(counts) == 50
    assert {number for name, number in counts.items() if name[0] == "b"} == {1}
    assert min(number for name, number in counts.items() if name[0] == "c") > 1


def test_a_source_is_passed_over_after_its_last_pass(three: list[dict[str, Any]]) -> None:
    a, b, c = three
    drawn = [text(document) for document in mixture({**a, "epochs": 2}, {**c, "epochs": 1}, {**b, "epochs": 1})]
    assert Counter(drawn) == {
        **{f"a{number}": 2 for number in range(7)},
        **{f"b{number}": 1 for number in range(40)},
        **{f"c{number}": 1 for number in range(3)},
    }


def test_the_others_share_the_weight_of_a_source_that_is_passed_over(three: list[dict[str, Any]]) -> None:
    a, b, c = three
    stream = mixture(a, b, {**c, "epochs": 1}, unit="documents")
    drawn = Counter(name[0] for name in take(stream, 803))
    assert drawn["c"] == 3
    assert drawn["a"] == pytest.approx(800 * 0.5 / 0.8, abs=2)


@settings(max_examples=16, deadline=None)
@given(
    before=st.integers(0, 120),
    shuffle=st.sampled_from([1, 6, 4096]),
    unit=st.sampled_from(["tokens", "documents"]),
    stop=st.sampled_from(["cycle", "all_exhausted"]),
)
def test_a_state_goes_on_with_the_same_documents(
    before: int, shuffle: int, unit: str, stop: str, tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.getbasetemp()
    if not (folder / "s0.jsonl").exists():
        for number, count in enumerate((7, 40, 3)):
            write(folder / f"s{number}.jsonl", "abc"[number], count)
    sources = [{"path": str(folder / f"s{number}.jsonl"), "weight": 1 + number} for number in range(3)]
    said = {"shuffle": shuffle, "unit": unit, "stop": stop}
    whole = mixture(*sources, **said)
    for _, document in zip(range(before), whole, strict=False):
        assert len(document.ids)
    resumed = mixture(*sources, **said)
    resumed.restore(json.loads(json.dumps(whole.state())))
    rest = [text(document) for _, document in zip(range(60), whole, strict=False)]
    assert [text(document) for _, document in zip(range(60), resumed, strict=False)] == rest
    assert resumed.state() == whole.state()


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "txt", "csv"])
def test_documents_are_found_again_by_their_address(kind: str, tmp_path: Path) -> None:
    texts = [f"document {number}" for number in range(25)]
    path = tmp_path / f"data.{kind}"
    lines = {
        "jsonl": "\n\n".join(json.dumps({"text": text}) for text in texts),
        "jsonl.gz": "\n".join(json.dumps({"text": text}) for text in texts),
        "json": json.dumps([{"text": text} for text in texts]),
        "txt": "\n\n".join(texts),
        "csv": "text\n" + "\n".join(texts),
    }[kind]
    if kind.endswith("gz"):
        with gzip.open(path, "wt") as file:
            file.write(lines)
    else:
        path.write_text(lines)
    stream = mixture({"path": str(path)}, shuffle=10)
    served = [next(stream) for _ in range(25)]
    assert sorted(map(text, served)) == sorted(texts)
    wanted = served[3::4]
    found = stream.read_again([document.address for document in wanted])
    assert [text(found[document.address]) for document in wanted] == [text(document) for document in wanted]


def test_several_files_are_one_source(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.jsonl", name, 5) for name in "ab"]
    stream = mixture({"path": paths}, shuffle=4)
    assert sorted(take(stream, 10)) == sorted(f"{name}{number}" for name in "ab" for number in range(5))
    half = mixture({"path": paths}, shuffle=4)
    take(half, 6)
    again = mixture({"path": paths}, shuffle=4)
    again.restore(half.state())
    assert take(again, 20) == take(half, 20)


def test_a_bad_row_stops_or_is_counted_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "one"}\n{"text": 2}\n{broken\n{"text": "four"}\n')
    with pytest.raises(SeqtuneError, match="2 bad rows") as caught:
        next(mixture({"path": str(path)}))
    assert caught.value.problems[0].where == f"{path}:2"
    stream = mixture({"path": str(path)}, on_error="skip")
    assert sorted(take(stream, 2)) == ["four", "one"]
    assert take(stream, 1)
    state = stream.state()
    again = mixture({"path": str(path)}, on_error="skip")
    again.restore(state)
    take(again, 1)
    take(again, 1)
    assert dict(again.skipped) == {"wrong type": 2, "broken JSON": 2}


def test_a_source_without_a_document_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.jsonl"
    path.write_text('{"text": ""}\n')
    with pytest.raises(SeqtuneError, match="no usable example: empty text 1"):
        next(mixture({"path": str(path)}, on_error="skip"))


def test_a_changed_source_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, "a", 5)
    stream = mixture({"path": str(path)})
    take(stream, 2)
    write(path, "a", 6)
    with pytest.raises(SeqtuneError, match=r"changed since the checkpoint: .*a\.jsonl"):
        mixture({"path": str(path)}).restore(stream.state())
    with pytest.raises(SeqtuneError, match="the checkpoint has 1 sources"):
        mixture({"path": str(path)}, {"path": str(path)}).restore(stream.state())


def test_a_vanished_source_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, "a", 5)
    stream = mixture({"path": str(path)})
    path.unlink()
    with pytest.raises(SeqtuneError, match=r"a\.jsonl' cannot be read"):
        next(stream)


def test_a_saved_dataset_is_no_stream(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(SeqtuneError, match="not read as a stream"):
        mixture({"path": str(tmp_path / "saved")})
