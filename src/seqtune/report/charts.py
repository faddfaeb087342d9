"""Curves of a run as inline SVG that follows the text colour of the page, light or dark."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#2f81c7", "#d9822b", "#3f9c5a", "#b65fa8")
"""Of training, held-out and further lines: readable on white and on near-black."""

INK = "#010203"
"""Stands for the page's text colour in what matplotlib draws."""

POINTS = 600
"""Points of a line at most; longer ones are averaged over equal stretches."""


@dataclass(frozen=True)
class Line:
    """One curve.

    Args:
        label: In the legend.
        steps: `[n]`, ascending.
        values: `[n]`, finite.
    """

    label: str
    steps: Sequence[float]
    values: Sequence[float]


def curves(title: str, lines: Sequence[Line], *, salt: str, wide: bool = False) -> str:
    """A small chart over optimiser steps; a long line is drawn faint under its running mean.

    Args:
        title: Above the axes.
        lines: At most as many as there are colours.
        salt: Different for every chart of a page: ids inside the SVG are made from it.
        wide: The size of a main chart.
    """
    figure, axes = _figure(5.4 if wide else 3.4, 2.6 if wide else 1.9)
    for line, colour in zip(lines, COLOURS, strict=False):
        steps, values = _thinned(np.asarray(line.steps, float), np.asarray(line.values, float))
        marker = "o" if len(steps) < 12 else None
        if len(steps) >= 40:
            axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
            values = _running_mean(values, max(3, len(values) // 25))
        axes.plot(steps, values, color=colour, linewidth=1.6, marker=marker, markersize=3.5, label=line.label)
    axes.set_title(title, loc="left", fontsize=9, color=INK, fontweight="bold")
    axes.locator_params(axis="x", integer=True)  # there is no step 1.5
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=7.5, labelcolor=INK, loc="best")
    return _svg(figure, salt)


def intervals(title: str, labels: Sequence[str], values: Sequence[tuple[float, float, float]]) -> str:
    """Estimates as dots with their confidence intervals `(value, low, high)`, one a row, the first on top."""
    figure, axes = _figure(5.4, 0.75 + 0.32 * len(labels))
    for row, (value, low, high) in enumerate(values):
        axes.plot([low, high], [-row, -row], color=COLOURS[0], linewidth=2.2, alpha=0.45, solid_capstyle="round")
        axes.plot([value], [-row], color=COLOURS[0], marker="o", markersize=6)
    axes.set_yticks([-row for row in range(len(labels))], list(labels))
    axes.set_ylim(-len(labels) + 0.5, 0.5)
    axes.set_title(title, loc="left", fontsize=9, color=INK, fontweight="bold")
    return _svg(figure, title)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
        spine.set_alpha(0.35)
    axes.tick_params(colors=INK, labelsize=7.5, length=3)
    axes.grid(color=INK, alpha=0.1, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure, salt: str) -> str:
    import matplotlib as mpl

    text = io.StringIO()
    # Text stays text (selectable, small); the salt makes ids the same in every run and different between charts.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    body = text.getvalue()
    body = body[body.index("<svg") :].replace(INK, "currentColor")
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    return re.sub(r'(?<=<svg )(.*?)width="[^"]*pt"', r'\1class="chart"', body, count=1, flags=re.DOTALL)


def _thinned(steps: Any, values: Any) -> tuple[Any, Any]:
    if len(steps) <= POINTS:
        return steps, values
    edges = np.linspace(0, len(steps), POINTS + 1).astype(int)
    sizes = np.diff(edges)
    return np.add.reduceat(steps, edges[:-1]) / sizes, np.add.reduceat(values, edges[:-1]) / sizes


def _running_mean(values: Any, width: int) -> Any:
    """Mean over a centred window, which is cut at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - width // 2, 0), np.minimum(index + width // 2 + 1, len(values))
    return (total[high] - total[low]) / (high - low)
