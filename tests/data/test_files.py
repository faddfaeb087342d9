"""Local files: every kind read back, every fault named with file and line."""

from __future__ import annotations

import csv
import gzip
import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seqtune.data.files import expand, read
from seqtune.data.rows import BadRow
from seqtune.errors import SeqtuneError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROWS = [{"prompt": "2 + 2 = ?", "completion": "4"}, {"prompt": "naïve\n“q”, x", "completion": "jå"}]


def jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def json_list(path: Path) -> None:
    path.write_text(json.dumps(ROWS, indent=1, ensure_ascii=False), encoding="utf-8")


def comma_separated(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(ROWS[0]))
        table.writeheader()
        table.writerows(ROWS)


def parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path)


def arrow_stream(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(str(path), table.schema) as stream:
        stream.write_table(table)


def arrow_file(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write_table(table)


@pytest.mark.parametrize(
    ("name", "write", "places"),
    [
        ("a.jsonl", jsonl, ["1", "2"]),
        ("a.json", jsonl, ["1", "2"]),
        ("a.json", json_list, ["2", "6"]),
        ("a.csv", comma_separated, ["2", "3"]),
        ("a.parquet", parquet, ["row 1", "row 2"]),
        ("a.arrow", arrow_stream, ["row 1", "row 2"]),
        ("a.arrow", arrow_file, ["row 1", "row 2"]),
    ],
)
def test_every_kind_is_read_back(tmp_path: Path, name: str, write: Callable[[Path], None], places: list[str]) -> None:
    path = tmp_path / name
    write(path)
    assert list(read(path, "paragraph")) == [(f"{path}:{at}", row) for at, row in zip(places, ROWS, strict=True)]


@pytest.mark.parametrize(("name", "write"), [("a.jsonl", jsonl), ("a.json", json_list), ("a.csv", comma_separated)])
def test_gzip(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    plain, packed = tmp_path / name, tmp_path / f"{name}.gz"
    write(plain)
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert [row for _, row in read(packed, "paragraph")] == ROWS


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("paragraph", [(2, "one\n two"), (6, "three")]),
        ("line", [(2, "one"), (3, " two"), (6, "three")]),
        ("file", [(1, "\none\n two\n \n\nthree\n")]),
    ],
)
def test_text(tmp_path: Path, by: str, expected: list[tuple[int, str]]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\none\n two\n \n\nthree\n")
    assert list(read(path, by)) == [(f"{path}:{line}", {"text": text}) for line, text in expected]


def test_byte_order_mark_blank_lines_and_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}')
    assert list(read(path, "paragraph")) == [(f"{path}:1", {"text": "a"}), (f"{path}:3", {"text": "b"})]


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        ('{"text": "a"', "Expecting ',' delimiter at column 13"),
        ('["a"]', "a list instead of an object"),
        ('{"text": "\\ud800"}', "half of a surrogate pair, which is no character"),
        ('{"n": ' + "1" * 5000 + "}", "Exceeds the limit"),
        ("[" * 200_000, "recursion"),
    ],
)
def test_a_bad_line_is_told_from_the_others(tmp_path: Path, line: str, detail: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "a"}}\n{line}\n{{"text": "b"}}\n')
    (_, first), (where, bad), (_, last) = read(path, "paragraph")
    assert (first, last) == ({"text": "a"}, {"text": "b"})
    assert where == f"{path}:2"
    assert isinstance(bad, BadRow)
    assert bad.reason == "broken JSON"
    assert detail in bad.detail


def test_a_csv_row_of_the_wrong_width(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('a,b\n"x\ny",2\n1\n3,4\n')
    (_, first), (where, bad), (_, last) = read(path, "paragraph")
    assert (first, last) == ({"a": "x\ny", "b": "2"}, {"a": "3", "b": "4"})
    assert where == f"{path}:4"
    assert isinstance(bad, BadRow)
    assert bad.detail == "1 fields under 2 column names"


def test_a_long_csv_field(tmp_path: Path) -> None:
    """The csv module refuses fields above 128 KiB unless told otherwise."""
    path = tmp_path / "a.csv"
    path.write_text("text\n" + "x" * 200_000 + "\n")
    assert [len(row["text"]) for _, row in read(path, "paragraph") if isinstance(row, dict)] == [200_000]


@pytest.mark.parametrize(
    ("name", "content", "message", "line"),
    [
        ("a.jsonl", b"", "is empty", None),
        ("a.jsonl", '{"text": "é"}'.encode("latin-1"), "is not UTF-8: byte 0xe9 at column 11", 1),
        ("a.jsonl", '{"text": "e"}'.encode("utf-16"), "is UTF-16, not UTF-8", 1),
        ("a.jsonl.gz", gzip.compress(b'{"text": "abc"}' * 99, mtime=0)[:-9], "is damaged: Compressed file ended", None),
        ("a.jsonl.gz", b'{"text": "a"}', "is damaged: Not a gzipped file", None),
        ("a.json", b'[{"text": "a"},\n{"text": ]', "broken JSON: Expecting value; what follows cannot be read", 2),
        ("a.json", b'[{"text": "a"}\n\n{"text": "b"}]', "broken JSON: expected ',' or ']'", 3),
        ("a.json", b'[{"text": "a"}', "broken JSON: expected ',' or ']'", 1),
        ("a.json", b'[{"text": "a"}]\n[]', "broken JSON: more text after the end of the list", 2),
        ("a.csv", b"a,a\n1,2\n", "does not name its columns, each once", 1),
        ("a.csv", b'a,b\n1,"2\n', "broken CSV: unexpected end of data", 2),
        ("a.parquet", b"PAR1 and no more", "is no readable parquet file", None),
        ("a.arrow", b"nothing of the kind", "is no readable arrow file", None),
        ("a.parquet.gz", b"x", "cannot be read by rows", None),
        ("a.xlsx", b"x", "is of an unknown kind (.xlsx)", None),
        ("data", b"x", "is of an unknown kind (no extension)", None),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, message: str, line: int | None) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SeqtuneError) as caught:
        list(read(path, "paragraph"))
    problem = caught.value.problems[0]
    assert message in problem.problem
    assert problem.where == ("data.path" if line is None else f"{path}:{line}")


def test_a_column_named_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), path)
    with pytest.raises(SeqtuneError, match="names a column twice: text, text"):
        list(read(path, "paragraph"))


def test_folders_globs_and_lists(workdir: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "notes.md", ".hidden.jsonl", "deep/c.jsonl.gz"):
        (workdir / name).parent.mkdir(exist_ok=True)
        (workdir / name).write_text("{}")
    found: dict[Any, list[str]] = {
        ".": ["a.jsonl", "b.jsonl"],
        "*.jsonl": ["a.jsonl", "b.jsonl"],
        "**/*.jsonl*": ["a.jsonl", "b.jsonl", "deep/c.jsonl.gz"],
        ("b.jsonl", "deep"): ["b.jsonl", "deep/c.jsonl.gz"],
    }
    for path, expected in found.items():
        assert [str(place) for place in expand(path, "data.path")] == expected


def test_a_file_name_with_brackets_is_no_pattern(workdir: Path) -> None:
    (workdir / "a[1].jsonl").write_text("{}")
    assert [place.name for place in expand("a[1].jsonl", "data.path")] == ["a[1].jsonl"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("b.jsonl", "there is no file 'b.jsonl'\n  where: data.path\n  hint: did you mean 'a.jsonl'?"),
        ("*.parquet", "nothing matches '*.parquet'\n  where: data.path\n  hint: the pattern is read from"),
        ("*", "is of an unknown kind (.md)"),
        ("empty", "folder 'empty' has no data file (it has no file)"),
        (("a.jsonl", "*.jsonl"), "'a.jsonl' is named twice"),
        ((), "the list of files is empty"),
    ],
)
def test_paths_that_name_nothing(workdir: Path, path: str | tuple[str, ...], message: str) -> None:
    (workdir / "empty").mkdir()
    (workdir / "a.jsonl").write_text("{}")
    (workdir / "c.md").write_text("notes")
    with pytest.raises(SeqtuneError) as caught:
        expand(path, "data.path")
    assert message in str(caught.value)
