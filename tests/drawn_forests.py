"""Random forests for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from seqtune.forest import SegmentForest


@st.composite
def forests(draw: st.DrawFn, depth: int = 5) -> SegmentForest:
    """Forests of up to 12 segments in depth-first order, empty segments included."""
    lengths: list[int] = []
    parents: list[int] = []
    path: list[int] = []
    for segment in range(draw(st.integers(0, 12))):
        path = path[: draw(st.integers(0, min(len(path), depth - 1)))]
        parents.append(path[-1] if path else -1)
        lengths.append(draw(st.integers(0, 4)))
        path.append(segment)
    return SegmentForest(lengths, parents)
