"""Attention over a segment forest: no token computed twice, no padding."""

from seqtune_kernels.forest_attention.function import attend, forest_attention
from seqtune_kernels.forest_attention.layout import Layout
from seqtune_kernels.forest_attention.merge import merge
from seqtune_kernels.forest_attention.reference import forest_attention_reference

__all__ = ["Layout", "attend", "forest_attention", "forest_attention_reference", "merge"]
