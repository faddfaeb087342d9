"""Packers of TRL, Axolotl and ms-swift beside ours, on the same lengths: fill, seconds, memory.

    OMP_NUM_THREADS=1 python tests/benchmarks/packing.py [--quick] [--write]

Their released packages are downloaded into a temporary folder and not installed; of each only the packing functions
are read out of the unmodified file and run, Axolotl's compiled by numba as there. `--write` puts the section into
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
import tempfile
import time
from collections import defaultdict, deque
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from common import machine, paired, peak_rss_of, ratio, write_section

from seqtune.packing.best_fit import best_fit
from seqtune.packing.bounds import l2

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

PACKAGES = ["trl==1.16.0", "axolotl==0.19.0", "ms-swift==4.6.0", "binpacking==2.0.1", "numba", "llvmlite"]
CAPACITY = 8192
OURS = "seqtune best_fit"
SECONDS, MEMORY, SPEEDUP = 3.0, 10**9, 50.0


def lengths_of(kind: str, number: int) -> NDArray[np.int64]:
    """Lengths of documents, 1 to `CAPACITY`."""
    random = np.random.default_rng(0)
    if kind == "chat":
        found = random.lognormal(np.log(400), 1.1, number)
    elif kind == "web":
        found = 120 * (1 + random.pareto(1.15, number))
    else:
        found = random.integers(CAPACITY // 2 + 1, CAPACITY // 2 + CAPACITY // 20, number).astype(np.float64)
    return found.clip(1, CAPACITY).astype(np.int64)


def functions(file: Path, names: list[str], scope: dict[str, Any]) -> dict[str, Any]:
    """The named functions and classes of a file, in a module that has what `scope` holds and nothing else."""
    tree = ast.parse(file.read_text())
    found = [part for part in tree.body if getattr(part, "name", None) in names]
    assert len(found) == len(names), f"{file} lacks one of {names}"
    exec(compile(ast.Module(found, []), str(file), "exec"), scope)
    return scope


def others(folder: Path) -> dict[str, Callable[[NDArray[np.int64]], int]]:
    """Rows that each of the others opens."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", str(folder), *PACKAGES], check=True)
    # Last, so that the packages of this environment come first: only what it lacks is taken from there.
    sys.path.append(str(folder))
    import numba

    scope = {
        "np": np,
        "pa": pa,
        "pyarrow": pa,
        "pc": pc,
        "defaultdict": defaultdict,
        "deque": deque,
        "Literal": Literal,
    }
    trl = functions(
        folder / "trl/data_utils.py", ["_SegmentTree", "_check_if_columns_can_be_packed", "_pack_bfd"], scope
    )["_pack_bfd"]
    axolotl = functions(folder / "axolotl/utils/samplers/multipack.py", ["pack_group"], {"numba": numba, "np": np})[
        "pack_group"
    ]
    swift = functions(folder / "swift/dataset/packing.py", ["calculate_matched_group"], {})["calculate_matched_group"]

    def run_trl(lengths: NDArray[np.int64]) -> int:
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        tokens = pa.array(np.zeros(offsets[-1], dtype=np.int8))
        return len(trl(pa.table({"input_ids": pa.LargeListArray.from_arrays(pa.array(offsets), tokens)}), CAPACITY))

    def run_trl_batches(lengths: NDArray[np.int64]) -> int:
        return sum(run_trl(lengths[first : first + 1000]) for first in range(0, len(lengths), 1000))

    def run_axolotl(lengths: NDArray[np.int64]) -> int:
        groups = [lengths[first : first + 100_000] for first in range(0, len(lengths), 100_000)]
        return sum(len(axolotl(group, 0, CAPACITY, len(group), 200)) for group in groups)

    def run_swift(lengths: NDArray[np.int64]) -> int:
        rows, carried = 0, []
        items = list(enumerate(lengths.tolist()))
        for first in range(0, len(items), 1000):
            done = first + 1000 >= len(items)
            packed, carried = swift(carried + items[first : first + 1000], CAPACITY, done)
            rows += len(packed)
        return rows

    return {
        "TRL 1.16, all documents at once": run_trl,
        "TRL 1.16, as called (1,000 at once)": run_trl_batches,
        "Axolotl 0.19": run_axolotl,
        "ms-swift 4.6": run_swift,
    }


def rows_of_ours(lengths: NDArray[np.int64]) -> int:
    return len(best_fit(lengths, CAPACITY, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10,000 documents beside the others, 1,000,000 alone")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    beside, alone = (10_000, 1_000_000) if given.quick else (100_000, 10_000_000)
    lines = ["| lengths | packer | documents | rows | fill | seconds | times ours |", "|---|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        theirs = others(Path(folder))
        for kind in ("chat", "web", "half"):
            lengths = lengths_of(kind, beside)
            runs = {name: partial(run, lengths) for name, run in {OURS: rows_of_ours, **theirs}.items()}
            rows = {name: run() for name, run in runs.items()}  # compiles Axolotl's too
            seconds = paired(runs, 3, warm_up=False)
            ours = seconds[OURS]
            for name, count in rows.items():
                fill = lengths.sum() / (count * CAPACITY)
                times = "" if name == OURS else str(ratio(seconds[name], ours))
                median = np.median(seconds[name])
                lines.append(f"| {kind} | {name} | {beside:,} | {count:,} | {fill:.2%} | {median:.3f} | {times} |")
                print(lines[-1], flush=True)
            assert rows[OURS] == min(rows.values()), "another packer opens fewer rows"
            faster = ratio(seconds["TRL 1.16, all documents at once"], ours).median
            if faster < SPEEDUP:
                print(f"missed: {faster:.0f}x TRL on {kind}, {SPEEDUP:.0f}x wanted", flush=True)
    lines += [
        "",
        "| lengths | documents | rows | lower bound L2 | fill | seconds | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in ("chat", "web", "half"):
        lengths = lengths_of(kind, alone)
        began = time.perf_counter()
        count = len(best_fit(lengths, CAPACITY, 0))
        took = time.perf_counter() - began
        memory = peak_rss_of(partial(rows_of_ours, lengths)) + lengths.nbytes
        lines.append(
            f"| {kind} | {alone:,} | {count:,} | {l2(lengths, CAPACITY):,} | {lengths.sum() / (count * CAPACITY):.3%} "
            f"| {took:.2f} | {memory / 1e6:.0f} MB |"
        )
        print(lines[-1], flush=True)
        if took > SECONDS or memory > MEMORY:
            print(f"missed: {SECONDS} s and {MEMORY / 1e6:.0f} MB wanted", flush=True)
    if given.write:
        command = "tests/benchmarks/packing.py" + (" --quick" if given.quick else "")
        about = f"""`{command}` on {machine()}. Rows of {CAPACITY:,} tokens.
chat: log-normal with median 400; web: Pareto above 120; half: just over half a row. TRL's times are of its whole
`_pack_bfd`, which also moves the tokens (one byte each here); the others' and ours are of the plan alone."""
        write_section("Packers", "\n".join([about, "", *lines]))


if __name__ == "__main__":
    main()
