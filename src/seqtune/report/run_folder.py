"""The folder a run leaves behind, written so that a crash at any moment leaves every file readable."""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqtune.errors import SeqtuneError
from seqtune.report.events import Step, to_json

if TYPE_CHECKING:
    from seqtune.report.events import Event, Watch

PLAN = "plan.yaml"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
EVENTS = "events.jsonl"
LOCK = ".lock"


class RunFolder:
    """One run on disk.

    Whole files appear at once or not at all. The `.jsonl` files grow by lines; a line counts once its line break is
    written, so what a killed process wrote half of is no row, and the next append removes it.

    Args:
        path: The folder; `create` fills it.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def create(self, plan_text: str, provenance: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Write what is known before training. `plan.yaml` comes last: a folder that has it is complete."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "checkpoints").mkdir(exist_ok=True)
        self.write_json("provenance.json", provenance)
        self.write_json("environment.json", environment)
        write_atomic(self.path / PLAN, plan_text)

    def plan_text(self) -> str:
        """`plan.yaml`.

        Raises:
            SeqtuneError: This is no run folder.
        """
        return self._read(PLAN)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add a row to `metrics.jsonl`."""
        _append(self.path / METRICS, [row])

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`; none before the first one.

        Raises:
            SeqtuneError: A line is not a JSON object; names file and line.
        """
        return _rows(self.path / METRICS)

    def truncate_metrics(self, rows: int) -> None:
        """Keep the first `rows` rows.

        Raises:
            SeqtuneError: There are fewer.
        """
        _truncate(self.path / METRICS, rows)

    def append_samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows to `samples.jsonl`."""
        _append(self.path / SAMPLES, rows)

    def samples(self) -> list[dict[str, Any]]:
        """The rows of `samples.jsonl`, as `metrics`."""
        return _rows(self.path / SAMPLES)

    def truncate_samples(self, rows: int) -> None:
        """Keep the first `rows` rows, as `truncate_metrics`."""
        _truncate(self.path / SAMPLES, rows)

    def lengths(self) -> dict[str, int]:
        """Rows in `metrics.jsonl` and `samples.jsonl`, under `metrics` and `samples`."""
        files = {"metrics": METRICS, "samples": SAMPLES}
        return {name: sum(1 for _ in _lines(self.path / file)) for name, file in files.items()}

    def recording(self, watch: Watch) -> Watch:
        """`watch` that also writes events to `events.jsonl`, each with its `time`; steps are in `metrics.jsonl`."""

        def record(event: Event) -> None:
            if not isinstance(event, Step):
                time = datetime.now().astimezone().isoformat(timespec="seconds")
                _append(self.path / EVENTS, [{"time": time, **to_json(event)}])
            watch(event)

        return record

    def events(self) -> list[dict[str, Any]]:
        """The rows of `events.jsonl`, as `metrics`."""
        return _rows(self.path / EVENTS)

    def write_json(self, name: str, value: Any) -> None:
        """Write the JSON file `name`, a path relative to the folder, at once; folders on the way are made."""
        write_atomic(self.path / name, encode(value, indent=2) + "\n")

    def read_json(self, name: str) -> Any:
        """The JSON file `name`.

        Raises:
            SeqtuneError: It is missing or broken.
        """
        try:
            return json.loads(self._read(name))
        except json.JSONDecodeError as error:
            raise SeqtuneError(
                f"this is not JSON: {error.msg}",
                where=f"{self.path / name}:{error.lineno}",
                hint="restore the file, or start a new run",
            ) from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process. The lock dies with the process, however that ends.

        Raises:
            SeqtuneError: Another process holds it.
        """
        file = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.read(file, 32).decode(errors="replace").strip()
                raise SeqtuneError(
                    f"another process{f' ({holder})' if holder else ''} works on this run",
                    where=str(self.path),
                    hint="wait until it ends, or stop it, then try again",
                ) from error
            os.ftruncate(file, 0)
            os.write(file, f"pid {os.getpid()}".encode())
            yield
        finally:
            os.close(file)

    def _read(self, name: str) -> str:
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise SeqtuneError(
                f"'{self.path}' has no {name}", where=str(self.path), hint="a run folder is runs/RECIPE/TIME"
            ) from error


def new_run_folder(recipe: str, out: Path | str | None = None) -> RunFolder:
    """An empty folder for a new run, which no other process gets: `runs/<recipe>/<time>`, or `out`.

    Raises:
        SeqtuneError: `out` exists and is not empty, or is no folder; or no folder can be made.
    """
    try:
        return _new_folder(recipe, out)
    except OSError as error:
        raise SeqtuneError(
            f"the run folder cannot be made: {error.strerror}", str(error.filename), "out=DIR names another place"
        ) from error


def _new_folder(recipe: str, out: Path | str | None) -> RunFolder:
    if out is not None:
        place = Path(out).expanduser()
        if place.exists() and not place.is_dir():
            raise SeqtuneError(f"'{place}' is a file", where="out", hint="name a new folder")
        if place.is_dir() and any(place.iterdir()):
            go_on = f"; to go on with the run in it: seqtune train --resume {place}" if (place / PLAN).exists() else ""
            raise SeqtuneError(f"'{place}' is not empty", where="out", hint=f"name a new folder{go_on}")
        place.mkdir(parents=True, exist_ok=True)
        return RunFolder(place)
    parent = Path("runs", recipe)
    parent.mkdir(parents=True, exist_ok=True)
    time = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    number = 1
    while True:
        place = parent / (time if number == 1 else f"{time}-{number}")
        try:
            place.mkdir()
        except FileExistsError:
            number += 1
        else:
            return RunFolder(place)


def encode(value: Any, *, indent: int | None = None) -> str:
    """JSON text. A number that is not finite becomes null, because JSON has no word for it.

    Raises:
        TypeError: Something in it has no JSON form.
    """
    return json.dumps(_plain(value), allow_nan=False, ensure_ascii=False, indent=indent)


def write_atomic(path: Path, text: str) -> None:
    """Write a UTF-8 file so that a reader, or a crash, finds the old content or the new, never part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with suppress(FileNotFoundError):
            partial.unlink()
        raise


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a `.jsonl` file at once."""
    write_atomic(path, "".join(f"{encode(row)}\n" for row in rows))


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numbers and arrays of numpy and torch
        return _plain(value.tolist())
    return value


def _append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = "".join(f"{encode(row)}\n" for row in rows).encode()
    with path.open("ab") as file:
        end = _whole(path)
        if file.tell() > end:
            file.truncate(end)
        file.write(text)


def _whole(path: Path) -> int:
    """Size in bytes of the file up to its last line break."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 4096)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0


def _lines(path: Path) -> Iterator[bytes]:
    """The lines whose line break was written."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line


def _rows(path: Path) -> list[dict[str, Any]]:
    found = []
    for number, line in enumerate(_lines(path), 1):
        try:
            row = json.loads(line)
        except ValueError as error:  # not JSON, or not UTF-8
            raise _broken(path, number) from error
        if not isinstance(row, dict):
            raise _broken(path, number)
        found.append(row)
    return found


def _broken(path: Path, number: int) -> SeqtuneError:
    return SeqtuneError(
        "this line is not a JSON object",
        where=f"{path}:{number}",
        hint="the file was changed or damaged after it was written: restore it, or remove the line",
    )


def _truncate(path: Path, rows: int) -> None:
    sizes = [len(line) for line in _lines(path)]
    if len(sizes) < rows:
        raise SeqtuneError(
            f"{path.name} has {len(sizes)} rows, but the checkpoint was written after {rows}",
            where=str(path),
            hint="restore the file, or start a new run",
        )
    if path.exists():
        os.truncate(path, sum(sizes[:rows]))
