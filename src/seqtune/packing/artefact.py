"""Packed rows on disk: a folder with `pack.json` and Arrow streams that `datasets.Dataset.from_file` also opens."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow as pa

from seqtune.errors import Problem, SeqtuneError
from seqtune.packing.pack import Packed

if TYPE_CHECKING:
    from pathlib import Path

    from seqtune.config.spec import PackingSpec

SCHEMA = 1
MANIFEST = "pack.json"
_SHARD_ROWS = 65_536
_AGAIN = "write it again: seqtune pack … out={}"


@dataclass(frozen=True)
class Origin:
    """What packed rows were made from; rows made from anything else are refused.

    Args:
        tokenizer: Fingerprint of the tokenizer.
        template: Fingerprint of its chat template; empty when it has none.
        data: The data spec, as JSON.
        sources: Path and sha256 of each file read, or the name of another source.
    """

    tokenizer: str
    template: str
    data: dict[str, Any]
    sources: list[dict[str, str]]


def write(folder: Path, packed: Packed, spec: PackingSpec, origin: Origin) -> None:
    """Write rows to `folder` as a whole or not at all; an older pack there is replaced.

    Raises:
        SeqtuneError: The folder holds something else, or the disk refuses.
    """
    folder = folder.absolute()
    if folder.exists() and not (folder / MANIFEST).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise SeqtuneError(f"'{folder}' holds something that is no pack", "out", "give another folder: out=FOLDER")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        table = packed.dataset.with_format("arrow")
        shards = [
            _write_shard(partial / f"shard-{number:05d}.arrow", table[start : start + _SHARD_ROWS])
            for number, start in enumerate(range(0, len(packed.dataset), _SHARD_ROWS))
        ]
        manifest = {
            "schema": SCHEMA,
            "packing": _settings(spec),
            "counts": packed.counts,
            "origin": asdict(origin),
            "shards": shards,
        }
        with (partial / MANIFEST).open("w") as file:
            json.dump(manifest, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        if folder.exists():
            folder.replace(old)
        partial.replace(folder)
    except OSError as error:
        raise SeqtuneError(f"the pack cannot be written: {error.strerror or error}", str(folder)) from error
    finally:
        if old.exists() and not folder.exists():
            old.replace(folder)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def read(folder: Path, spec: PackingSpec, origin: Origin) -> Packed:
    """Open a pack, memory-mapped, after checking every byte of it.

    Args:
        folder: Written by `write`.
        spec: What the recipe says about packing; `path` is not compared.
        origin: What the rows must have been made from. Sources are compared by content, so files may have moved.

    Raises:
        SeqtuneError: Nothing is there, a shard is missing, cut short or altered, or the pack was made otherwise: every
            difference is named.
    """
    manifest = _manifest(folder)
    try:
        _compare(folder, manifest, spec, origin)
        return Packed(_rows(folder, manifest["shards"]), manifest["counts"])
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, f"{MANIFEST} is not as it was written ({error})") from error


def _rows(folder: Path, shards: list[dict[str, Any]]) -> datasets.Dataset:
    parts = []
    for shard in shards:
        path = folder / shard["name"]
        if not path.is_file():
            raise _damaged(folder, f"shard '{shard['name']}' is missing")
        if path.stat().st_size != shard["bytes"]:
            raise _damaged(
                folder, f"shard '{shard['name']}' has {path.stat().st_size} bytes instead of {shard['bytes']}"
            )
        if _sha256(path) != shard["sha256"]:
            raise _damaged(folder, f"shard '{shard['name']}' was altered: its sha256 differs from {MANIFEST}")
        parts.append(datasets.Dataset.from_file(str(path)))
    return datasets.concatenate_datasets(parts)


def _write_shard(path: Path, table: pa.Table) -> dict[str, Any]:
    with path.open("wb") as file:
        with pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table.combine_chunks(), max_chunksize=1024)
        file.flush()
        os.fsync(file.fileno())
    return {"name": path.name, "rows": len(table), "bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _settings(spec: PackingSpec) -> dict[str, Any]:
    settings: dict[str, Any] = spec.model_dump(mode="json", exclude={"path"})
    return settings


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SeqtuneError(
            f"'{folder}' is no pack: it has no {MANIFEST}", "packing.path", f"make one: seqtune pack … out={folder}"
        ) from error
    except (OSError, ValueError) as error:
        raise _damaged(folder, f"{MANIFEST} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise _damaged(folder, f"{MANIFEST} is not of schema {SCHEMA}")
    missing = {"packing", "counts", "origin", "shards"} - manifest.keys()
    if missing:
        raise _damaged(folder, f"{MANIFEST} lacks {', '.join(sorted(missing))}")
    return manifest


def _compare(folder: Path, manifest: dict[str, Any], spec: PackingSpec, origin: Origin) -> None:
    again = _AGAIN.format(folder)
    problems = []
    then, now = manifest["packing"], _settings(spec)
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name):
            problems.append(
                Problem(
                    f"the pack was made with packing.{name}={then.get(name)}, the recipe says {now.get(name)}",
                    f"packing.{name}",
                    f"packing.{name}={then.get(name)}, or {again}",
                )
            )
    made = manifest["origin"]
    if made["tokenizer"] != origin.tokenizer:
        problems.append(Problem("the pack was made with another tokenizer", "model and packing.path", again))
    if made["template"] != origin.template:
        problems.append(Problem("the pack was made with another chat template", "model and packing.path", again))
    moved = {"name", "path", "eval_path"}  # where the data lies; what it holds is compared by its fingerprints
    for name in sorted(made["data"].keys() | origin.data.keys()):
        if name not in moved and made["data"].get(name) != origin.data.get(name):
            problems.append(
                Problem(
                    f"the pack was made with data.{name}={made['data'].get(name)}, "
                    f"the recipe says {origin.data.get(name)}",
                    f"data.{name}",
                    again,
                )
            )
    if [_content(source) for source in made["sources"]] != [_content(source) for source in origin.sources]:
        problems.append(Problem("the pack was made from other data, or its files have changed", "data.path", again))
    if problems:
        raise SeqtuneError.of(problems)


def _content(source: dict[str, str]) -> str:
    return source.get("sha256") or source.get("name", "")


def _damaged(folder: Path, what: str) -> SeqtuneError:
    return SeqtuneError(f"the pack is damaged: {what}", str(folder), _AGAIN.format(folder))
