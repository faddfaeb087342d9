"""Models that read a segment forest: an attention function of transformers, registered under one name per backend.

Every other part of a decoder works token by token, so a model computes a forest once it is given position ids that
follow the tree and attention that sees each token's own segment and ancestors. That includes the routing of a
mixture of experts; its load-balancing loss, a mean over the tokens of a batch, counts a shared prefix once instead of
once per sequence.
"""

from __future__ import annotations

import inspect
import sys
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedConfig,
)

from seqtune.errors import SeqtuneError
from seqtune_kernels.capability import Choice, Unusable, choose_forest_attention
from seqtune_kernels.forest_attention import Layout, forest_attention

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from seqtune.forest import Flattened, SegmentForest

NAME = "seqtune_forest"
"""The attention implementation that reads forests with PyTorch's own kernels."""

NAMES = {"sdpa": NAME} | {
    backend: f"{NAME}_{short}"
    for backend, short in [("flash_attention_2", "fa2"), ("flex_attention", "flex"), ("eager", "eager")]
}
"""Attention implementation by backend. None contains "flash", which models take for transformers' own function."""

_BY_DISTANCE = {"full_attention", "sliding_attention"}
"""Layer types where a token sees the tokens before it, all or those near enough."""

_CARRYING = {"linear_attention", "conv", "hybrid", "hybrid_sliding", "moe"}
"""Layer types that carry a state along the row; `moe` occurs only between such layers."""

_BY_LENGTH = ("dynamic", "longrope")
"""RoPE types whose angles depend on the longest sequence of the batch once it is beyond the original length."""


class ForestRow:
    """What the attention of every layer needs of one row; passed to the model as `forest=`.

    Args:
        forest: The layout of the row.
    """

    def __init__(self, forest: SegmentForest) -> None:
        self.forest = forest
        self.layout = Layout(forest.pieces, forest.position_ids)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return int(self.forest.position_ids.max(initial=-1)) + 1


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    forest: ForestRow | None = None,
    position_bias: Tensor | None = None,
    *,
    backend: str,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query [1, Hq, T, D] after RoPE, key and value [1, Hkv, T, D].

    Returns:
        [1, T, Hq, D], and no weights.
    """
    if forest is None:
        raise SeqtuneError(
            "a model that is set to read forests was called without one",
            hint="call it with `forest_inputs(...)`, or inside `attention(model, 'sdpa')`; an architecture that keeps "
            "arguments it does not know from its attention cannot read forests",
        )
    if query.shape[0] != 1 or query.shape[2] != forest.forest.tokens or key.shape[2] != forest.forest.tokens:
        raise SeqtuneError(
            f"a forest is one row of {forest.forest.tokens} tokens, and attention got {query.shape[0]} rows of "
            f"{query.shape[2]} queries and {key.shape[2]} keys",
            hint="no batch dimension, no cache: call the model with `forest_inputs(...)`",
        )
    fault = _fault_of_call(module, dropout, attention_mask, position_bias)
    if fault is None and (config := getattr(module, "config", None)) is not None:
        fault = _fault_of_length(config, forest.longest)
    if fault is not None:
        raise SeqtuneError(f"this model cannot read this batch as a forest: {fault}", where="model")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    kind = query.device.type  # autocast leaves what a norm in fp32 gave, and values that met none
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    q, k, v = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))
    width = value.shape[-1]
    if width != query.shape[-1]:  # kernels take one width for all
        widest = max(width, query.shape[-1])
        q, k, v = (pad(x, (0, widest - x.shape[-1])) for x in (q, k, v))
    out = forest_attention(
        q, k, v, forest.layout, scale=scale, window=sliding_window, softcap=softcap, sinks=s_aux, backend=backend
    )
    return out[None, ..., :width], None


def _fault_of_call(
    module: nn.Module, dropout: float, attention_mask: Tensor | None, position_bias: Tensor | None
) -> str | None:
    if dropout and module.training:
        return f"attention dropout is {dropout}, and a shared prefix has one draw for all its sequences"
    if attention_mask is not None:
        return "it brings an attention mask of its own"
    if position_bias is not None:
        return "it adds a bias to the scores by position"
    if not getattr(module, "is_causal", True):
        return "its attention is not causal"
    return None


for _backend, _name in NAMES.items():
    AttentionInterface.register(_name, partial(_attend, backend=_backend))
    AttentionMaskInterface.register(_name, lambda **_: None)


def forest_inputs(flat: Flattened, device: torch.device | str) -> dict[str, Any]:
    """What a model that reads forests is called with: `model(**forest_inputs(flat, device))`.

    Args:
        flat: The sequences.
        device: Of the model's embeddings.

    Returns:
        `input_ids` and `position_ids` [1, T], `forest` for the attention function, and `use_cache` off.
    """
    return {
        "input_ids": torch.from_numpy(flat.input_ids)[None].to(device),
        "position_ids": torch.from_numpy(flat.forest.position_ids)[None].to(device),
        "forest": ForestRow(flat.forest),
        "use_cache": False,
    }


def refusal(config: PreTrainedConfig, *, shared: bool, longest: int | None = None) -> str | None:
    """Why a model cannot read forests, or None.

    Allowed is every architecture of transformers that hands its attention to `AttentionInterface` with the arguments
    it was called with, has no other path from token to token, and tells the attention function of every limit it puts
    on what a token sees.

    Args:
        config: Of the model.
        shared: Whether sequences share prefixes; otherwise every sequence is a root of its own.
        longest: Tokens of the longest sequence, where it is known; RoPE that depends on it is refused beyond the length
            the model began with.
    """
    text = config.get_text_config()
    kind = text.model_type
    name = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None) or MODEL_FOR_CAUSAL_LM_MAPPING.get(type(text), None)
    if name is None:
        return f"its architecture '{kind}' is not one of transformers' own, so nothing is known of its attention"
    model = name[0] if isinstance(name, tuple) else name
    layers = getattr(text, "layer_types", None)
    if carrying := sorted(set(layers) & _CARRYING) if layers else model._is_stateful:
        what = f"layers of type {', '.join(carrying)}" if layers else "recurrent layers"
        if shared:
            return f"'{kind}' has {what}, whose state runs along the row and cannot branch where sequences do"
        return (
            f"'{kind}' has {what}, which carry one document into the next: the model separates documents only inside "
            "optional CUDA kernels, and its own PyTorch code ignores their borders"
        )
    if foreign := sorted(set(layers or ()) - _BY_DISTANCE):
        return f"'{kind}' has layers of type {', '.join(foreign)}, where other things than distance limit what is seen"
    if not model._supports_attention_backend:
        return f"'{kind}' does not hand its attention to transformers' AttentionInterface"
    source = inspect.getsource(sys.modules[model.__module__])
    if getattr(text, "sliding_window", None) is not None and "sliding_window=" not in source:
        return f"'{kind}' has a sliding window that it does not tell its attention function about"
    if getattr(text, "alibi", False) or "position_bias=" in source:
        return f"'{kind}' adds a bias to its attention scores by position"
    if not getattr(text, "is_causal", True) or getattr(text, "use_bidirectional_attention", None):
        return f"the attention of '{kind}' is not causal"
    dropout = max(getattr(text, "attention_dropout", None) or 0.0, getattr(text, "attn_pdrop", None) or 0.0)
    if dropout:
        return f"its attention dropout is {dropout}; dropped scores cannot be the same for sequences apart and together"
    return _fault_of_length(text, longest) if longest is not None else None


def _fault_of_length(config: PreTrainedConfig, longest: int) -> str | None:
    """Why the RoPE of a model forbids sequences of this many tokens: one would turn the angles of its neighbours."""
    rope = getattr(config, "rope_parameters", None) or {}
    for one in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if one.get("rope_type") in _BY_LENGTH:
            original = one.get("original_max_position_embeddings") or config.max_position_embeddings
            if longest > original:
                return (
                    f"its RoPE ({one['rope_type']}) depends on the longest sequence of a batch beyond {original} "
                    f"tokens, and one has {longest}"
                )
    return None


@contextmanager
def attention(model: nn.Module, name: str) -> Iterator[None]:
    """Run a model with another attention implementation, on the same weights.

    Args:
        model: The model, or an adapter around it.
        name: As transformers knows it (`sdpa`, `seqtune_forest`).
    """
    before = [(config, config._attn_implementation) for config in _configs(model)]
    _set_attention(model, name)
    try:
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation


def use_forest(model: PreTrainedModel, asked: str = "auto") -> Choice:
    """Make a model read forests from here on.

    Args:
        model: On its device, in its dtype.
        asked: `model.attention`.

    Returns:
        The backend that computes them, and why the others do not.

    Raises:
        SeqtuneError: The backend asked for cannot read forests here.
    """
    weight = next(model.parameters())
    softcap = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
    try:
        choice = choose_forest_attention(asked, weight.device, weight.dtype, softcap=softcap)
    except Unusable as error:
        raise SeqtuneError(str(error), where="model.attention", hint="model.attention=auto") from error
    _set_attention(model, NAMES[choice.name])
    return choice


def _set_attention(model: nn.Module, name: str) -> None:
    for config in _configs(model):
        config._attn_implementation = name


def _configs(model: nn.Module) -> list[PreTrainedConfig]:
    """The configurations the layers of a model read, outer ones first: setting one sets those inside it."""
    found = {
        id(m.config): m.config for m in model.modules() if isinstance(getattr(m, "config", None), PreTrainedConfig)
    }
    return list(found.values())
