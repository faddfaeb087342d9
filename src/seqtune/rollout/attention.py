"""Attention of rollouts: the keys and values of a prompt are held once for all of its completions.

A model runs with the attention implementation `NAME` of transformers and without a cache of its own. Prompts are read
as a segment forest, so no token that prompts have in common is computed twice and nothing is padded. A new token then
sees the keys of its prompt, one matrix product for the whole group, and the keys of its own completion.

It holds for the models that read forests (`seqtune.models.forest.refusal`): those that hand their attention over with
its arguments.

Shapes: `B` completions, `U` prompts, `P` longest prompt, `Hq` query heads, `Hkv` key/value heads, `R = Hq / Hkv`,
`D` width of a head, `t` tokens of each completion so far, the one that is read included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface

from seqtune.errors import SeqtuneError
from seqtune.forest import flatten_sequences
from seqtune_kernels.capability import choose_forest_attention
from seqtune_kernels.forest_attention import Layout, forest_attention

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

    from seqtune.forest import Flattened

NAME = "seqtune_rollout"
"""The attention implementation `generate` looks for."""

PREFILL_TOKENS = 8192
"""Tokens of prompts that are read in one forward pass, unless a single prompt has more."""

ROOM = 32
"""Tokens of a completion there is room for at first; the room doubles when it is full."""


class _Layer:
    """Keys and values of one layer."""

    def __init__(self, prompts: int, longest: int, rows: int, key: Tensor, value: Tensor) -> None:
        (_, heads, _, width), of_values = key.shape, value.shape[-1]
        self.prompt_keys = key.new_zeros(prompts, heads, longest, width)  # [U, Hkv, P, D]
        self.prompt_values = value.new_zeros(prompts, heads, longest, of_values)
        self.keys = key.new_empty(rows, heads, ROOM, width)  # [B, Hkv, room, D]
        self.values = value.new_empty(rows, heads, ROOM, of_values)
        self.length = 0
        """Tokens of each completion that are kept."""

    def append(self, at: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[B, Hkv, at + 1, D]` with those of the next token, `[B, Hkv, 1, D]`.

        Raises:
            SeqtuneError: The model attends with this layer more than once a token.
        """
        if at != self.length:
            raise SeqtuneError(
                "this model uses one attention layer more than once for a token, and rollouts keep one key of each",
                where="model.name",
            )
        self.length += 1
        if at == self.keys.shape[2]:
            self.keys, self.values = (torch.cat([x, torch.empty_like(x)], 2) for x in (self.keys, self.values))
        self.keys[:, :, at : at + 1], self.values[:, :, at : at + 1] = key, value
        return self.keys[:, :, : at + 1], self.values[:, :, : at + 1]


class Shared:
    """What attention reads while a batch is completed; passed to the model as `rollout=`.

    Args:
        prompts: Distinct, none empty.
        which: [B] prompt of each completion, in rising order.
    """

    def __init__(self, prompts: Sequence[tuple[int, ...]], which: Tensor) -> None:
        self.prompts = prompts
        self.lengths = torch.tensor([len(prompt) for prompt in prompts], device=which.device)  # [U]
        self.longest = max(len(prompt) for prompt in prompts)
        self._uneven = min(len(prompt) for prompt in prompts) < self.longest
        self.seen = 0
        """Tokens of each completion that have been read."""
        self._layers: dict[nn.Module, _Layer] = {}
        self._reading: tuple[slice, Tensor, Layout] | None = None
        self._hidden: dict[int | None, Tensor] = {}
        self._place(which)

    def _place(self, which: Tensor) -> None:
        """Give each completion a slot beside the others of its prompt: `[U * most]`, `most` completions a prompt."""
        counts = torch.bincount(which, minlength=len(self.lengths))
        self.which, self._most = which, int(counts.max())
        first = counts.cumsum(0) - counts
        slots = which * self._most + torch.arange(len(which), device=which.device) - first[which]
        self._slots = None if len(which) == len(counts) * self._most else slots

    @property
    def positions(self) -> Tensor:
        """[B, 1] position of the token each completion reads next."""
        return (self.lengths[self.which] + self.seen).unsqueeze(1)

    def readings(self, at_once: bool) -> Iterator[tuple[Flattened, Tensor]]:
        """The prompts, as many at a time as one forward pass reads, and the index of the last token of each.

        Args:
            at_once: All in one pass.
        """
        start = 0
        while start < len(self.prompts):
            end, tokens = start + 1, len(self.prompts[start])
            while end < len(self.prompts) and (at_once or tokens + len(self.prompts[end]) <= PREFILL_TOKENS):
                tokens += len(self.prompts[end])
                end += 1
            flat = flatten_sequences(self.prompts[start:end])
            index = torch.from_numpy(flat.index()).clamp(min=0).to(self.lengths.device)
            layout = Layout(flat.forest.pieces, flat.forest.position_ids)
            self._reading = slice(start, end), index, layout
            yield flat, torch.tensor([int(row[-1]) for row in flat.rows], device=self.lengths.device)
            start = end
        self._reading = None

    def read(self) -> None:
        """Every layer has read the next token of each completion."""
        self.seen += 1
        self._hidden = {}

    def keep(self, rows: Tensor) -> None:
        """Go on with these completions, and with the prompts they have."""
        prompts, which = torch.unique(self.which[rows], return_inverse=True)
        fewer = len(prompts) < len(self.lengths)
        for layer in self._layers.values():
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
            if fewer:
                layer.prompt_keys, layer.prompt_values = layer.prompt_keys[prompts], layer.prompt_values[prompts]
        self.lengths = self.lengths[prompts]
        self._place(which)

    def attend(
        self,
        module: nn.Module,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """[., Hq, ., D] for queries of prompts or of new tokens, whose keys and values are kept."""
        if self._reading is not None:
            return self._attend_prompts(module, q, k, v, scale=scale, window=window, softcap=softcap, sinks=sinks)
        return self._attend_next(module, q, k, v, scale=scale, window=window, softcap=softcap, sinks=sinks)

    def _attend_prompts(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, softcap: float | None, **options: Any
    ) -> Tensor:
        assert self._reading is not None
        which, index, layout = self._reading
        if module not in self._layers:
            self._layers[module] = _Layer(len(self.prompts), self.longest, len(self.which), k, v)
        layer, width = self._layers[module], index.shape[1]
        # A padded place repeats the first token of the row: finite, and hidden from every query.
        layer.prompt_keys[which, :, :width] = k[0][:, index].transpose(0, 1)
        layer.prompt_values[which, :, :width] = v[0][:, index].transpose(0, 1)
        backend = choose_forest_attention("auto", q.device, q.dtype, softcap=softcap is not None).name
        widest = max(q.shape[-1], v.shape[-1])  # kernels take one width for all
        query, key, value = (pad(x[0].transpose(0, 1), (0, widest - x.shape[-1])) for x in (q, k, v))
        out = forest_attention(query, key, value, layout, softcap=softcap, backend=backend, **options)
        return out[None, ..., : v.shape[-1]].transpose(1, 2)

    def _attend_next(
        self,
        module: nn.Module,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        layer = self._layers[module]
        keys, values = layer.append(self.seen, k, v)
        queries = (q * scale).reshape(len(q), k.shape[1], -1, q.shape[-1])  # [B, Hkv, R, D]
        far = self._rows(self._groups(queries) @ layer.prompt_keys.mT)  # [B, Hkv, R, P]
        scores = torch.cat([far, queries @ keys.mT], -1)  # [B, Hkv, R, P + t]
        if softcap is not None:
            scores = softcap * (scores / softcap).tanh()
        hidden = self._unseen(window)
        if hidden is not None:
            scores = scores.masked_fill_(hidden[:, None, None], -torch.inf)
        if sinks is not None:
            own = sinks.to(scores.dtype).view(1, k.shape[1], -1, 1).expand(*scores.shape[:-1], 1)
            scores = torch.cat([scores, own], -1)
        weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
        prompt, longest = weights[..., : self.longest], self.longest
        out = self._rows(self._groups(prompt) @ layer.prompt_values)
        out += weights[..., longest : longest + keys.shape[2]] @ values
        return out.reshape(len(q), q.shape[1], 1, -1)

    def _unseen(self, window: int | None) -> Tensor | None:
        """[B, P + t] keys the next token of each completion does not see; None when it sees all."""
        if window is None and not self._uneven:
            return None
        if window not in self._hidden:
            device = self.lengths.device
            lengths = self.lengths[self.which].unsqueeze(1)  # [B, 1]
            column = torch.arange(self.longest + self.seen + 1, device=device)
            positions = torch.where(column < self.longest, column, lengths + column - self.longest)  # [B, P + t]
            hidden = (column >= lengths) & (column < self.longest)
            if window is not None:
                hidden |= lengths + self.seen - positions >= window
            self._hidden[window] = hidden
        return self._hidden[window]

    def _groups(self, rows: Tensor) -> Tensor:
        """[B, Hkv, R, N] as [U, Hkv, most * R, N], zeros where a prompt has fewer completions than another."""
        if self._slots is not None:
            spread = rows.new_zeros(len(self.lengths) * self._most, *rows.shape[1:])
            rows = spread.index_copy_(0, self._slots, rows)
        heads, _, wide = rows.shape[1:]
        by_prompt = rows.view(len(self.lengths), self._most, *rows.shape[1:]).transpose(1, 2)
        return by_prompt.reshape(len(self.lengths), heads, -1, wide)

    def _rows(self, groups: Tensor) -> Tensor:
        """The way back."""
        prompts, heads, _, wide = groups.shape
        rows = (
            groups.view(prompts, heads, self._most, -1, wide)
            .transpose(1, 2)
            .reshape(-1, heads, groups.shape[2] // self._most, wide)
        )
        return rows if self._slots is None else rows[self._slots]


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,  # rollouts run in evaluation mode
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    rollout: Shared | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query [B, Hq, T, D] after RoPE, key and value [B, Hkv, T, D].

    Returns:
        [B, T, Hq, D], and no weights.
    """
    if rollout is None or attention_mask is not None or position_bias is not None:
        raise SeqtuneError(
            f"attention '{NAME}' is for rollouts of models that read forests, and was called "
            + ("without a rollout" if rollout is None else "with a mask or a bias"),
            where="model.attention",
            hint="inside `attention(model, 'sdpa')` rollouts use the model's own cache",
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    kind = query.device.type  # autocast leaves what a norm in fp32 gave, and values that met none
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    q, k, v = (x.to(dtype) for x in (query, key, value))
    out = rollout.attend(module, q, k, v, scale=scale, window=sliding_window, softcap=softcap, sinks=s_aux)
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, lambda **_: None)
