"""Forest attention by FlexAttention, compiled for CUDA: the general fallback, with windows, soft-caps and sinks."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention

if TYPE_CHECKING:
    from torch import Tensor

    from seqtune_kernels.forest_attention.layout import Layout


@cache
def _compiled() -> Any:
    """Compiled once; dynamic, because every row has another length."""
    return torch.compile(flex_attention, dynamic=True)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention of a whole row, differentiable; arguments as `function.forest_attention`."""

    out, aux = _compiled()(
        *(x.transpose(0, 1)[None] for x in (q, k, v)),
        score_mod=None if softcap is None else partial(_cap, softcap),
        block_mask=layout.once(("flex", window, q.device), lambda: _block_mask(layout, window, q.device)),
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
        return_aux=AuxRequest(lse=sinks is not None),
    )
    if sinks is not None:  # they take their share of every row: exp(lse) of exp(lse) + exp(sink)
        out = out * torch.sigmoid(aux.lse - sinks[:, None]).unsqueeze(-1).to(out.dtype)
    result: Tensor = out[0].transpose(0, 1)
    return result


def _cap(softcap: float, score: Tensor, *_: Tensor) -> Tensor:
    return softcap * torch.tanh(score / softcap)


def _block_mask(layout: Layout, window: int | None, device: torch.device) -> BlockMask:
    """Depth-first order makes the mask two comparisons: a key is seen from itself to its last descendant."""
    until = torch.zeros(len(layout.k_positions), dtype=torch.int64)
    for b in layout.blocks():
        until[b.columns] = until[b.columns].clamp(min=b.q_end)
    until, positions = until.to(device), torch.from_numpy(layout.k_positions).to(device)

    def seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        visible = (key <= query) & (query < until[key])
        return visible if window is None else visible & (positions[query] - positions[key] < window)

    tokens = len(until)
    return create_block_mask(seen, None, None, tokens, tokens, device=str(device))
