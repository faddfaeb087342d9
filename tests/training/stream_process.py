"""A packed stream over letters, and a process that writes its tokens and can be killed: `FOLDER ROWS`."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np

from seqtune.config.mixture import MixtureSpec
from seqtune.data.rows import WHERE
from seqtune.data.stream import Mixture
from seqtune.packing.specs import OnlineBestFit
from seqtune.training.stream import PackedStream

if TYPE_CHECKING:
    from seqtune.data.rows import BadRows

FEATURES = datasets.Features(
    input_ids=datasets.List(datasets.Value("int32")),
    loss_mask=datasets.List(datasets.Value("bool")),
    **{WHERE: datasets.Value("string")},
)
SAVE_EVERY = 25


def encode(examples: datasets.Dataset, bad: BadRows) -> datasets.Dataset:
    """One token a character and an end token, all of them trained."""
    ids = [[*map(ord, text), 0] for text in examples["text"]]
    columns = {"input_ids": ids, "loss_mask": [[True] * len(row) for row in ids], WHERE: examples[WHERE]}
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def mixture(sources: list[dict[str, Any]], **said: Any) -> Mixture:
    return Mixture(MixtureSpec(name="mixture", sources=sources, **{"shuffle": 64, **said}), encode)


def open_stream(sources: list[dict[str, Any]], **said: Any) -> PackedStream:
    """A stream of packed rows; what is not said of the mixture is said of the packing."""
    of_data = {key: said.pop(key) for key in ("shuffle", "stop", "unit") if key in said}
    spec = OnlineBestFit(**{"capacity": 128, "open_rows": 8, **said})
    return PackedStream(mixture(sources, **of_data), spec.online(), spec)


def tokens(row: dict[str, Any]) -> bytes:
    return b"".join(np.asarray(row[key], dtype=np.int32).tobytes() for key in ("input_ids", "loss_mask", "seq_lengths"))


def token_hash(stream: PackedStream, rows: int) -> str:
    """sha256 of the first rows."""
    digest = hashlib.sha256()
    for _ in range(rows):
        digest.update(tokens(next(stream)))
    return digest.hexdigest()


def main(folder: Path, rows: int) -> None:
    stream = open_stream(json.loads((folder / "sources.json").read_text()))
    saved, out = folder / "state.json", folder / "tokens.bin"
    done = 0
    if saved.exists():
        kept = json.loads(saved.read_text())
        stream.restore(kept["stream"])
        done = kept["rows"]
        os.truncate(out, kept["bytes"])  # what was written after the state is written again
    else:
        out.write_bytes(b"")
    (folder / "started").touch()
    with out.open("ab") as file:
        for number in range(done + 1, rows + 1):
            file.write(tokens(next(stream)))
            if number % SAVE_EVERY == 0:
                file.flush()
                partial = folder / "state.partial"
                partial.write_text(json.dumps({"rows": number, "bytes": file.tell(), "stream": stream.state()}))
                os.replace(partial, saved)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
