"""Forest attention by the name of its backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seqtune_kernels.forest_attention.cpu import forest_attention_cpu
from seqtune_kernels.forest_attention.reference import forest_attention_reference

if TYPE_CHECKING:
    from torch import Tensor

    from seqtune_kernels.forest_attention.layout import Layout


def forest_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    backend: str = "sdpa",
) -> Tensor:
    """Attention of the tokens of a row to their own segments and its ancestors, differentiable.

    Args:
        q: [T, Hq, D] queries.
        k: [T, Hkv, D] keys; `Hq` is a multiple of `Hkv`.
        v: [T, Hkv, D] values.
        layout: Of the row.
        scale: Factor of the scores.
        window: A token sees keys less than this many positions before it; None sees all.
        softcap: Scores `s` become `softcap · tanh(s / softcap)`; None leaves them.
        sinks: [Hq] a score of each head that takes its share of the softmax and gives no value.
        backend: As `capability.choose_forest_attention` names it.

    Returns:
        [T, Hq, D] in the dtype of `q`.
    """
    if backend == "eager" or window is not None or softcap is not None or sinks is not None:
        visible = layout.mask(window, q.device)
        return forest_attention_reference(q, k, v, visible, scale=scale, softcap=softcap, sinks=sinks)
    return forest_attention_cpu(q, k, v, layout.blocks(), scale=scale)
