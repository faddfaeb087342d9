"""Micro-batches as segment forests, and the log-probs a model gives their tokens.

Shapes: `T` tokens of the flat row, `M` scored tokens, `B` sequences, `L` scored tokens of the longest sequence,
`H` width, `V` vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.distributed.tensor import DTensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from trl.models.utils import _ForwardRedirection

from seqtune.errors import SeqtuneError
from seqtune.forest.build import flatten_documents, flatten_sequences
from seqtune.models.forest import forest_inputs
from seqtune_kernels.token_logprobs import token_logprobs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from seqtune.forest.build import Flattened

_redirect = _ForwardRedirection()


class Scored(NamedTuple):
    """One token sequence, and which of its tokens are scored. The first never is: nothing precedes it."""

    ids: NDArray[np.int64]
    mask: NDArray[np.bool_]


class Tokens(NamedTuple):
    """Tokens of a micro-batch, counted three ways."""

    read: int
    """Of its sequences, each in full."""
    computed: int
    """The model computes: common beginnings once, no padding."""
    padded: int
    """It would compute with every sequence in full and padded to the longest."""


@dataclass(frozen=True)
class MicroBatch:
    """Sequences laid out as one forest, on the device of the model."""

    flat: Flattened
    inputs: dict[str, Any]
    """What the model is called with: `input_ids` and `position_ids` [1, T], and the layout."""
    predictors: Tensor
    """[M] row index of the token whose hidden state predicts each scored token."""
    targets: Tensor
    """[M] id of each scored token. A token that several sequences share is scored once."""
    index: Tensor
    """[B, L] which of the M each scored token of each sequence is, -1 after the last of a shorter one."""

    @property
    def tokens(self) -> Tokens:
        """What the layout saves."""
        rows = self.flat.rows
        padded = len(rows) * max((len(row) for row in rows), default=0)
        return Tokens(self.flat.repeated_tokens, self.flat.forest.tokens, padded)

    def by_sequence(self, values: Tensor) -> Tensor:
        """[M] values as [B, L], 0 where a sequence has no token."""
        if not len(values):
            return values.new_zeros(self.index.shape)
        found = values[self.index.clamp(min=0)]
        return torch.where(self.index >= 0, found, torch.zeros((), dtype=values.dtype, device=values.device))

    def last_tokens(self) -> Tensor:
        """[B] row index of the last token of each sequence."""
        return torch.tensor([int(row[-1]) for row in self.flat.rows], device=self.targets.device)


def lay_out(sequences: Sequence[Scored], device: torch.device, *, shared: bool) -> MicroBatch:
    """Sequences as a micro-batch.

    Args:
        sequences: What the model reads.
        device: Of the model.
        shared: Lay a common beginning of several sequences out once; otherwise each is a root of its own.
    """
    ids = [sequence.ids for sequence in sequences]
    flat = flatten_sequences(ids) if shared else flatten_documents(ids)
    masks = [sequence.mask[1:] for sequence in sequences]
    rows = [row[1:][mask] for row, mask in zip(flat.rows, masks, strict=True)]
    before = [row[:-1][mask] for row, mask in zip(flat.rows, masks, strict=True)]
    nothing = np.zeros(0, np.int64)
    tokens, first, which = np.unique(np.concatenate([nothing, *rows]), return_index=True, return_inverse=True)
    counts = np.array([len(row) for row in rows], dtype=np.int64)
    index = np.full((len(rows), counts.max(initial=0)), -1, dtype=np.int64)
    index[np.arange(index.shape[1]) < counts[:, None]] = which
    return MicroBatch(
        flat=flat,
        inputs=forest_inputs(flat, device),
        predictors=torch.from_numpy(np.concatenate([nothing, *before])[first]).to(device),
        targets=torch.from_numpy(flat.input_ids[tokens]).to(device),
        index=torch.from_numpy(index).to(device),
    )


class Scores(NamedTuple):
    """What a model says of the scored tokens of a micro-batch."""

    logps: Tensor
    """[M] log-probs, nats, at least fp32."""
    entropy: Tensor | None
    """[M] entropy of the distribution each token was drawn from, nats; no gradient."""
    is_top1: Tensor
    """[M] whether the token was the likeliest."""
    aux: Tensor | None
    """Load-balancing loss of a mixture-of-experts model, not weighted."""


def token_scores(
    model: nn.Module,
    inner: PreTrainedModel | PeftModel,
    batch: MicroBatch,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    aux: bool = False,
    uniform: bool = False,
) -> Scores:
    """Log-probs of the scored tokens; logits are never built.

    Args:
        model: As accelerate wrapped it; its hooks (gradient synchronisation, gathering of sharded weights) run.
        inner: The same without accelerate's wrapper.
        batch: What to score.
        temperature: The logits are divided by it.
        entropy: Whether to compute entropies as well.
        aux: Whether to compute the load-balancing loss.
        uniform: A promise that the gradients of all log-probs will be equal, which saves work.

    Raises:
        SeqtuneError: An adapter sits on the LM head.
    """
    work = partial(_score, inner, batch, temperature=temperature, entropy=entropy, aux=aux, uniform=uniform)
    scores: Scores = through(model, inner, work)
    return scores


def through(model: nn.Module, inner: nn.Module, work: Callable[[], Any]) -> Any:
    """Run `work` as the forward pass of `model`, so that the hooks of its wrappers run around it."""
    return _redirect(model, inner, work)


def body(inner: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model inside an adapter, or the model."""
    return inner.get_base_model() if isinstance(inner, PeftModel) else inner


def _score(
    inner: PreTrainedModel | PeftModel,
    batch: MicroBatch,
    *,
    temperature: float,
    entropy: bool,
    aux: bool,
    uniform: bool,
) -> Scores:
    causal = body(inner)
    config = causal.config.get_text_config()
    extra = {"output_router_logits": True} if aux else {}
    outputs = causal.base_model(**batch.inputs, **extra)
    hidden = outputs.last_hidden_state[0].index_select(0, batch.predictors)  # [M, H]
    weight, bias = lm_head(causal)
    found = token_logprobs(
        hidden * logit_scale(config),
        weight,
        batch.targets,
        bias=bias,
        temperature=temperature,
        softcap=getattr(config, "final_logit_softcapping", None),
        entropy=entropy,
        uniform=uniform,
    )
    balance = None
    if aux:
        balance = load_balancing_loss_func(
            outputs.router_logits, config.num_experts, config.num_experts_per_tok, attention_mask=None
        )
    return Scores(found.logps, found.entropy, found.is_top1, balance)


def lm_head(causal: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    """[V, H] weight and [V] bias (or None) of the LM head, gathered when they are sharded.

    Raises:
        SeqtuneError: An adapter sits on it; its product with the hidden states would be left out.
    """
    head = causal.get_output_embeddings()
    if isinstance(head, BaseTunerLayer):
        raise SeqtuneError(
            "an adapter on the LM head is not supported: log-probs are computed from its weight alone",
            where="peft.target_modules",
            hint="leave the LM head out, e.g. peft.target_modules=all-linear",
        )
    weight, bias = head.weight, getattr(head, "bias", None)
    if isinstance(weight, DTensor):
        weight, bias = weight.full_tensor(), bias.full_tensor() if bias is not None else None
    return weight, bias


def logit_scale(config: Any) -> float:
    """What a model multiplies its logits by: Cohere, Falcon-H1 and others multiply, Granite and MiniCPM divide."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return float(scaling) if config.model_type == "hyperclovax" else 1.0 / scaling


class Unit(NamedTuple):
    """What is never cut: a packed row, a pair, a completion with its prompt."""

    tokens: int
    """Tokens of its own."""
    prefix: bytes = b""
    """Identifies the tokens it shares with neighbours of the same prefix."""
    prefix_tokens: int = 0


def split(units: Sequence[Unit], *, rows: int, tokens: int | None) -> list[range]:
    """The units of a step as micro-batches, in order.

    Args:
        units: Neighbours with the same prefix share it inside a micro-batch.
        rows: Units of a micro-batch when there is no token budget.
        tokens: Tokens a micro-batch has at most; a longer unit is a micro-batch of its own. None goes by `rows`.
    """
    if tokens is None:
        return [range(start, min(start + rows, len(units))) for start in range(0, len(units), rows)]
    found, start, used, before = [], 0, 0, b""
    for number, unit in enumerate(units):
        shared = bool(unit.prefix) and unit.prefix == before
        more = unit.tokens + (0 if shared else unit.prefix_tokens)
        if number > start and used + more > tokens:
            found.append(range(start, number))
            start, used, more = number, 0, unit.tokens + unit.prefix_tokens
        used, before = used + more, unit.prefix
    return [*found, range(start, len(units))] if units else []
