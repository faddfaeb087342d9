"""A picture of packed rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from seqtune.errors import SeqtuneError
from seqtune.report.charts import COLOURS

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def plot(lengths: NDArray[np.int64], rows: NDArray[np.int64], capacity: int, file: Path) -> None:
    """Draw how long documents are and how full rows are, as PNG.

    Args:
        lengths: Tokens of each document, or part of one. [chunks]
        rows: Tokens of each row. [rows]
        capacity: Tokens a row holds at most.
        file: Where.

    Raises:
        SeqtuneError: It cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist(lengths, bins=np.linspace(0, max(int(lengths.max()), 1), 60), color=COLOURS[0])
    left.set(title=f"{len(lengths):,} documents", xlabel="tokens", ylabel="documents")
    right.hist(rows / capacity, bins=np.linspace(0, 1, 51), color=COLOURS[1])
    fill = rows.sum() / (len(rows) * capacity)
    right.set(title=f"{len(rows):,} rows, {fill:.2%} full", xlabel="part of the row that is full", ylabel="rows")
    right.set_yscale("symlog")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    partial = file.with_name(f".{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(partial, format="png")
        partial.replace(file)
    except OSError as error:
        raise SeqtuneError(f"the picture cannot be written: {error.strerror or error}", str(file)) from error
