"""Local files as raw rows, each with the place it came from. Reads as a stream; decides nothing about formats."""

from __future__ import annotations

import csv
import glob
import gzip
import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from seqtune.data.rows import BadRow
from seqtune.errors import SeqtuneError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Raw = tuple[str, dict[str, Any] | BadRow]
"""`file:line` (or `file:row N`) and the row, or why there is none."""


def expand(path: str | tuple[str, ...], where: str) -> list[Path]:
    """The files and saved-dataset folders that a path, a glob or a list of them names, in order.

    A folder stands for the data files directly in it, sorted by name.

    Args:
        path: What the recipe says.
        where: Dotted path of the field, for errors.

    Raises:
        SeqtuneError: One of them names nothing, or a file is named twice.
    """
    found: list[Path] = []
    for name in (path,) if isinstance(path, str) else path:
        found += _expand_one(name, where)
    if not found:
        raise SeqtuneError("the list of files is empty", where, "give at least one file")
    seen: set[Path] = set()
    for place in found:
        if place.resolve() in seen:
            raise SeqtuneError(f"'{place}' is named twice", where, "name each file once")
        seen.add(place.resolve())
    return found


def read(path: Path, text_by: str, seen: Callable[[int], None] = lambda size: None) -> Iterator[Raw]:
    """The rows of one file; its extension says how it is read.

    Args:
        path: The file.
        text_by: What one row of a txt file is: `paragraph`, `line` or `file`.
        seen: Told how many bytes of the file were read, as often as that is known; their sum is its size.

    Raises:
        SeqtuneError: The file is empty, damaged, not UTF-8, or of an unknown kind.
    """
    kind, packed = _kind(path)
    try:
        if path.stat().st_size == 0:
            raise SeqtuneError(f"'{path}' is empty", "data.path", "give a file with at least one example")
        if kind in _BINARY:
            yield from _BINARY[kind](path)
            seen(path.stat().st_size)
            return
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            lines = _decoded(file, path, (lambda size: None) if packed else seen)
            yield from _text(path, lines, text_by) if kind == "txt" else _TEXTUAL[kind](path, lines)
        if packed:
            seen(path.stat().st_size)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise SeqtuneError(f"'{path}' is damaged: {error}", "data.path", "copy or download it again") from error
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.strerror:  # of the system; Arrow's own have none
            raise SeqtuneError(f"'{path}' cannot be read: {error.strerror}", "data.path") from error
        raise SeqtuneError(
            f"'{path}' is no readable {kind} file: {str(error).splitlines()[0]}",
            "data.path",
            "copy or write it again; its extension must say what it is",
        ) from error


class Place(NamedTuple):
    """Where a row of a file begins."""

    number: int
    """Lines before it in a jsonl file, rows before it in another."""
    offset: int
    """Bytes before it; 0 in a file that cannot be read from the middle."""


def read_from(path: Path, text_by: str, start: Place) -> Iterator[tuple[Place, Place, Raw]]:
    """The rows of one file from `start` on: where each begins, where the next does, and the row.

    A jsonl file is read from the middle; of others what lies before `start` is read and passed over. Arguments and
    errors as `read`.
    """
    if _kind(path) != ("jsonl", False):
        for number, raw in enumerate(read(path, text_by)):
            if number >= start.number:
                yield Place(number, 0), Place(number + 1, 0), raw
        return
    try:
        if path.stat().st_size == 0:
            raise SeqtuneError(f"'{path}' is empty", "data.path", "give a file with at least one example")
        with path.open("rb") as file:
            file.seek(start.offset)
            number, offset = start
            for line in file:
                here, number, offset = Place(number, offset), number + 1, offset + len(line)
                text = _decode(line, number, path)
                if text.strip():
                    yield here, Place(number, offset), (f"{path}:{number}", _object(text.rstrip()))
    except OSError as error:
        raise SeqtuneError(f"'{path}' cannot be read: {error.strerror or error}", "data.path") from error


def _expand_one(name: str, where: str) -> list[Path]:
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return [path]
        inside = sorted(entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
        known = [entry for entry in inside if _suffix(entry)[0] in _KINDS]
        if not known:
            have = ", ".join(entry.name for entry in inside[:5]) or "no file"
            raise SeqtuneError(f"folder '{name}' has no data file (it has {have})", where, f"kinds read: {_KNOWN}")
        return known
    if path.exists():
        _kind(path)
        return [path]
    if glob.has_magic(name):
        places = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        places = [place for place in places if place.is_file()]
        if not places:
            raise SeqtuneError(f"nothing matches '{name}'", where, f"the pattern is read from {Path.cwd()}")
        for place in places:
            _kind(place)
        return places
    near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, near) if 0 < len(near) <= 20 else f"paths are read from {Path.cwd()}"
    raise SeqtuneError(f"there is no file '{name}'", where, hint)


def _suffix(path: Path) -> tuple[str, bool]:
    packed = path.suffix == ".gz"
    return (path.with_suffix("") if packed else path).suffix.removeprefix(".").lower(), packed


def _kind(path: Path) -> tuple[str, bool]:
    kind, packed = _suffix(path)
    if kind not in _KINDS:
        raise SeqtuneError(
            f"'{path}' is of an unknown kind ({'.' + kind if kind else 'no extension'})",
            "data.path",
            f"kinds read: {_KNOWN}",
        )
    if packed and kind in _BINARY:
        raise SeqtuneError(f"'{path}' is {kind} in gzip, which cannot be read by rows", "data.path", "gunzip it first")
    return kind, packed


def _decoded(file: Iterable[bytes], path: Path, seen: Callable[[int], None]) -> Iterator[str]:
    """Lines with their line breaks, decoded strictly."""
    for number, line in enumerate(file, 1):
        seen(len(line))
        yield _decode(line, number, path)


def _decode(line: bytes, number: int, path: Path) -> str:
    if number == 1:
        if line.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise SeqtuneError(
                f"'{path}' is UTF-16, not UTF-8", f"{path}:1", f"iconv -f UTF-16 -t UTF-8 {path} > converted"
            )
        line = line.removeprefix(b"\xef\xbb\xbf")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise SeqtuneError(
            f"'{path}' is not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}",
            f"{path}:{number}",
            f"convert it, for instance: iconv -f LATIN1 -t UTF-8 {path} > converted",
        ) from error


def _jsonl(path: Path, lines: Iterable[str]) -> Iterator[Raw]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"{path}:{number}", _object(line.rstrip())


def _object(text: str) -> dict[str, Any] | BadRow:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return BadRow("broken JSON", f"{error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets nested as deep
        return BadRow("broken JSON", str(error))
    # Half of a surrogate pair can only come from an escape: the text itself was decoded strictly.
    return _checked(value) if not isinstance(value, dict) or "\\ud" in text or "\\uD" in text else value


def _checked(value: Any) -> dict[str, Any] | BadRow:
    if not isinstance(value, dict):
        return BadRow("broken JSON", f"a {type(value).__name__} instead of an object")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return BadRow("broken JSON", "half of a surrogate pair, which is no character")
    return value


def _json(path: Path, lines: Iterable[str]) -> Iterator[Raw]:
    """A list of objects; a file that does not begin with a bracket is read as one object a line."""
    text = "".join(lines)
    at = _blank(text, 0)
    if not text.startswith("[", at):
        yield from _jsonl(path, text.split("\n"))
        return
    decoder = json.JSONDecoder()
    at, line, counted = _blank(text, at + 1), 1, 0
    while not text.startswith("]", at):
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end = decoder.raw_decode(text, at)
            end = _blank(text, end)
            if not text.startswith((",", "]"), end):
                raise json.JSONDecodeError("expected ',' or ']'", text, end)
        except (ValueError, RecursionError) as error:
            broken = error.lineno if isinstance(error, json.JSONDecodeError) else line
            raise SeqtuneError(
                f"broken JSON: {getattr(error, 'msg', error)}; what follows cannot be read",
                f"{path}:{broken}",
                "mend the list, or write one object a line (jsonl), where a bad line can be skipped",
            ) from error
        yield f"{path}:{line}", _checked(value)
        at = _blank(text, end + 1) if text[end] == "," else end
    rest = _blank(text, at + 1)
    if rest < len(text):
        raise SeqtuneError(
            "broken JSON: more text after the end of the list",
            f"{path}:{1 + text.count(chr(10), 0, rest)}",
            "keep one list, or write one object a line (jsonl)",
        )


def _blank(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _csv(path: Path, lines: Iterable[str]) -> Iterator[Raw]:
    csv.field_size_limit(2**31 - 1)  # documents are longer than the 128 KiB the module allows
    table = csv.reader(lines, strict=True)
    try:
        header = next(table, [])
        if not all(header) or len(set(header)) < len(header):
            raise SeqtuneError(
                f"the first line of '{path}' does not name its columns, each once: {header}",
                f"{path}:1",
                "write the column names into the first line",
            )
        start = table.line_num + 1
        for row in table:
            if len(row) == len(header):
                yield f"{path}:{start}", dict(zip(header, row, strict=True))
            elif row:
                yield f"{path}:{start}", BadRow("broken CSV", f"{len(row)} fields under {len(header)} column names")
            start = table.line_num + 1
    except csv.Error as error:
        raise SeqtuneError(
            f"broken CSV: {error}; what follows cannot be read", f"{path}:{table.line_num}", "mend the quotes"
        ) from error


def _text(path: Path, lines: Iterable[str], text_by: str) -> Iterator[Raw]:
    if text_by == "file":
        yield f"{path}:1", {"text": "".join(lines)}
        return
    block: list[str] = []
    start = 1
    for number, line in enumerate(lines, 1):
        if line.strip():
            start = start if block else number
            block.append(line)
        if block and (text_by == "line" or not line.strip()):
            yield f"{path}:{start}", {"text": "".join(block).rstrip("\r\n")}
            block = []
    if block:
        yield f"{path}:{start}", {"text": "".join(block).rstrip("\r\n")}


def _parquet(path: Path) -> Iterator[Raw]:
    with pq.ParquetFile(path) as file:
        yield from _numbered(path, file.iter_batches(1000))


def _arrow(path: Path) -> Iterator[Raw]:
    with pa.memory_map(str(path)) as source:
        if source.read(6) == b"ARROW1":
            with pa.ipc.open_file(source) as file:
                yield from _numbered(path, (file.get_batch(index) for index in range(file.num_record_batches)))
        else:
            source.seek(0)
            with pa.ipc.open_stream(source) as stream:
                yield from _numbered(path, stream)


def _numbered(path: Path, batches: Iterable[pa.RecordBatch]) -> Iterator[Raw]:
    number = 0
    for batch in batches:
        names = batch.schema.names
        if len(set(names)) < len(names):  # rows become dictionaries, which would keep the last of them
            raise SeqtuneError(f"'{path}' names a column twice: {', '.join(names)}", "data.path", "rename one of them")
        for row in batch.to_pylist():
            number += 1
            yield f"{path}:row {number}", row


_TEXTUAL: dict[str, Callable[[Path, Iterable[str]], Iterator[Raw]]] = {"jsonl": _jsonl, "json": _json, "csv": _csv}
_BINARY: dict[str, Callable[[Path], Iterator[Raw]]] = {"parquet": _parquet, "arrow": _arrow}
_KINDS = (*_TEXTUAL, "txt", *_BINARY)
_KNOWN = "jsonl, json, csv, txt (each also .gz), parquet, arrow"
