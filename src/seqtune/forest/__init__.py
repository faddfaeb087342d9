"""The segment forest: one layout for packed documents, preference pairs, completion groups and rollout trees."""

from seqtune.forest.build import Flattened, flatten_documents, flatten_groups, flatten_sequences
from seqtune.forest.layout import Piece, SegmentForest

__all__ = ["Flattened", "Piece", "SegmentForest", "flatten_documents", "flatten_groups", "flatten_sequences"]
