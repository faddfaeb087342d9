"""Forests from token sequences, and the way back to padded rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from seqtune.forest.layout import SegmentForest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Tokens = Sequence[int] | NDArray[np.int64]


@dataclass(frozen=True)
class Flattened:
    """Sequences laid out as one row.

    Args:
        forest: The layout.
        input_ids: [T] tokens of the row.
        rows: For each sequence, the row index of each of its tokens: `input_ids[rows[i]]` is sequence i.
    """

    forest: SegmentForest
    input_ids: NDArray[np.int64]
    rows: tuple[NDArray[np.int64], ...]

    @property
    def repeated_tokens(self) -> int:
        """Tokens the same sequences hold when nothing is shared."""
        return sum(len(row) for row in self.rows)

    def index(self, *, left: bool = False) -> NDArray[np.int64]:
        """[B, L] row index of each token of the padded batch of sequences, -1 at padding.

        Args:
            left: Pad on the left instead of the right.
        """
        width = max((len(row) for row in self.rows), default=0)
        index = np.full((len(self.rows), width), -1, dtype=np.int64)
        for i, row in enumerate(self.rows):
            start = width - len(row) if left else 0
            index[i, start : start + len(row)] = row
        return index


def _concatenate(segments: Sequence[Tokens]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(0, np.int64), *(np.asarray(s, dtype=np.int64) for s in segments)])


def flatten_documents(documents: Sequence[Tokens]) -> Flattened:
    """Independent documents: one root each, nothing shared.

    Args:
        documents: Token ids of each document.
    """
    forest = SegmentForest([len(d) for d in documents], [-1] * len(documents))
    rows = tuple(np.arange(a, b) for a, b in zip(forest.cu_seqlens[:-1], forest.cu_seqlens[1:], strict=True))
    return Flattened(forest, _concatenate(documents), rows)


def flatten_groups(prompts: Sequence[Tokens], completions: Sequence[Sequence[Tokens]]) -> Flattened:
    """Prompts with the completions that share them: preference pairs, groups of samples, candidates.

    Args:
        prompts: Token ids of each prompt.
        completions: For each prompt, the token ids of its completions.

    Returns:
        A root for each prompt, a leaf for each completion; sequence order is prompt by prompt.

    Raises:
        ValueError: Prompts and groups differ in number.
    """
    segments: list[Tokens] = []
    parents: list[int] = []
    leaves: list[int] = []
    for prompt, group in zip(prompts, completions, strict=True):
        root = len(segments)
        segments.append(prompt)
        parents.append(-1)
        for completion in group:
            leaves.append(len(segments))
            segments.append(completion)
            parents.append(root)
    forest = SegmentForest([len(s) for s in segments], parents)
    return Flattened(forest, _concatenate(segments), tuple(forest.path_tokens(leaf) for leaf in leaves))


def flatten_sequences(sequences: Sequence[Tokens]) -> Flattened:
    """Any sequences as the smallest forest: every common prefix is laid out once (a radix tree).

    Args:
        sequences: Token ids of each sequence; equal sequences share everything.

    Returns:
        Sequences keep their order in `rows`; subtrees are laid out in order of first appearance.
    """

    arrays = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]

    @dataclass
    class Node:
        tokens: NDArray[np.int64]
        children: dict[int, Node]

    roots: dict[int, Node] = {}
    paths: list[list[Node]] = []
    for array in arrays:
        rest, level = array, roots
        while len(rest):
            node = level.setdefault(int(rest[0]), Node(rest, {}))
            shared = _common(node.tokens, rest)
            if shared < len(node.tokens):
                tail = Node(node.tokens[shared:], node.children)
                node.tokens, node.children = node.tokens[:shared], {int(tail.tokens[0]): tail}
            rest, level = rest[shared:], node.children
    for array in arrays:  # only now has every node its final extent
        rest, level, path = array, roots, []
        while len(rest):
            path.append(level[int(rest[0])])
            rest, level = rest[len(path[-1].tokens) :], path[-1].children
        paths.append(path)

    segments: list[NDArray[np.int64]] = []
    parents: list[int] = []
    index: dict[int, int] = {}
    stack = [(node, -1) for node in reversed(roots.values())]
    while stack:
        node, parent = stack.pop()
        index[id(node)] = len(segments)
        segments.append(node.tokens)
        parents.append(parent)
        stack.extend((child, index[id(node)]) for child in reversed(node.children.values()))
    forest = SegmentForest([len(s) for s in segments], parents)
    starts = forest.cu_seqlens
    rows = tuple(
        _concatenate([np.arange(starts[index[id(node)]], starts[index[id(node)] + 1]) for node in path])
        for path in paths
    )
    return Flattened(forest, _concatenate(segments), rows)


def _common(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """Tokens two sequences have in common at their beginning."""
    length = min(len(a), len(b))
    differ = a[:length] != b[:length]
    return int(differ.argmax()) if differ.any() else length
