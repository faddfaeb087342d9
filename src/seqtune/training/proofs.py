"""Checks of a stage on its own model, data and backend: what `seqtune doctor` runs, and a part of it before a run.

Shapes: `B` sequences, `L` tokens of the longest.
"""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from seqtune.errors import SeqtuneError
from seqtune.models.forest import attention
from seqtune.packing.balance import calibrated
from seqtune.training.audit import Proof
from seqtune.training.forest import Scored, body, lay_out

if TYPE_CHECKING:
    from torch import Tensor

    from seqtune.training.forest import MicroBatch
    from seqtune.training.staged import Staged

QUICK = (4, 192)
"""Sequences, and tokens of each, that are checked before a run."""
FULL = (16, 1024)
"""The same for `seqtune doctor`."""

MARGIN = 8
"""How many times the reference's own rounding error a difference may be. Rounding differs from one order of summation
to the next by a small factor; a mask, a position or a denominator that is wrong differs by orders of magnitude.
"""

WIDE_PARAMETERS = 300_000_000
"""Models up to this size are compared with a float64 copy of themselves."""


def prove(trainer: Staged, *, quick: bool) -> list[Proof]:
    """Check isolation, equivalence, masks and, if not `quick`, that the gradient does not depend on the micro-batches.

    The model is left as it was, without gradients; no random number is drawn.

    Args:
        trainer: Of the stage, its model not yet wrapped by accelerate.
        quick: Few and short sequences, a second or two for a small model.
    """
    sequences, tokens = QUICK if quick else FULL
    sample = [_start(one, tokens) for one in trainer.sample(sequences)]
    inner = body(trainer.trainer.model)
    training = trainer.trainer.model.training
    trainer.trainer.model.eval()
    try:
        with torch.no_grad():
            found = [_isolation(trainer, sample), _equivalence(trainer, inner, sample)]
        found += trainer.audit()
        if not quick:
            found.append(_normalisation(trainer))
            if trainer.run.stage.objective.family == "sft":
                found.append(_row_cost(trainer))
        return found
    finally:
        trainer.trainer.model.train(training)


def check(trainer: Staged) -> list[dict[str, Any]]:
    """`prove` quickly, and stop when a check fails.

    Returns:
        The proofs, for the run's records.

    Raises:
        SeqtuneError: A check failed; nothing has been trained.
    """
    proofs = prove(trainer, quick=True)
    for proof in proofs:
        if not proof.passed:
            raise SeqtuneError(
                f"{proof.name}: {proof.detail}", where=f"stage '{trainer.run.stage.name}'", hint=proof.hint
            )
    told = ", ".join(f"{one.name} ({one.found:.1e} of {one.limit:.1e})" if one.limit else one.name for one in proofs)
    trainer.run.notice(f"checked on this model and data: {told}")
    return [asdict(proof) for proof in proofs]


def _start(sequence: Scored, tokens: int) -> Scored:
    """The beginning of a sequence with every token scored: more is seen than what happens to be trained."""
    ids = sequence.ids[:tokens]
    return Scored(ids, np.arange(len(ids)) > 0)


def _values(trainer: Staged, sample: list[Scored]) -> tuple[Tensor, MicroBatch]:
    batch = lay_out(sample, trainer.trainer.accelerator.device, shared=trainer.shared)
    return trainer.values(batch), batch


def _isolation(trainer: Staged, sample: list[Scored]) -> Proof:
    before, batch = _values(trainer, sample)
    forest = batch.flat.forest
    inner = set(forest.parents.tolist())  # the longest leaf: after a single last token there is nothing to move
    leaf = max((n for n in range(len(forest)) if n not in inner), key=lambda n: int(forest.lengths[n]))
    start, end = int(forest.cu_seqlens[leaf]), int(forest.cu_seqlens[leaf + 1])
    changed = batch.inputs["input_ids"].clone()
    changed[:, start:end] = (changed[:, start:end] + 1) % len(trainer.run.tokenizer)
    after = trainer.values(replace(batch, inputs={**batch.inputs, "input_ids": changed}))
    others = torch.tensor([not ((row >= start) & (row < end)).any() for row in batch.flat.rows], device=before.device)
    moved = float((before - after)[others].abs().max()) if others.any() else 0.0
    reacted = bool((before != after)[~others].any())
    # Experts take the tokens routed to them together: one more or less changes the shape of the product.
    limit = 1e-4 if hasattr(body(trainer.trainer.model).config.get_text_config(), "num_experts") else 0.0
    return Proof(
        "isolation",
        moved <= limit and reacted,
        moved,
        limit,
        f"{end - start} tokens of one sequence changed, the other {int(others.sum())} moved by {moved:.1e}"
        + ("" if reacted else "; the changed sequence itself did not move"),
        "use another backend, model.attention=auto, and report this model",
    )


def _equivalence(trainer: Staged, inner: Any, sample: list[Scored]) -> Proof:
    values, batch = _values(trainer, sample)
    with attention(inner, trainer.plain_attention):
        plain = trainer.plain_values(inner, sample)
    count = sum(p.numel() for p in inner.parameters())
    if count <= WIDE_PARAMETERS:
        exact = copy.deepcopy(inner).double()
        vars(exact).pop("forward", None)  # the one TRL hung into `inner` would go on calling `inner`
        with attention(exact, "eager"):
            wide, against = trainer.plain_values(exact, sample), "float64"
    else:
        with attention(inner, "eager"):
            wide, against = trainer.plain_values(inner, sample), "eager attention"
    own = float((plain.double() - wide.double()).abs().max())
    found = float((values.double() - wide.double()).abs().max())
    limit = MARGIN * own + 1e-7
    return Proof(
        "equivalence",
        found <= limit,
        found,
        limit,
        f"{len(sample)} sequences, {batch.tokens.computed} of {batch.tokens.padded} tokens computed: differ from "
        f"{against}, one sequence at a time, by {found:.1e}; the plain model itself by {own:.1e}",
        "use another backend, model.attention=auto, and report this model",
    )


def _normalisation(trainer: Staged) -> Proof:
    units = trainer.units()
    whole = _gradients(trainer, [units])
    turned = _gradients(trainer, [units[::-1]])
    single = _gradients(trainer, [[unit] for unit in units])
    size = float(torch.linalg.vector_norm(whole))
    noise = float(torch.linalg.vector_norm(whole - turned)) / (size or 1.0)
    found = float(torch.linalg.vector_norm(whole - single)) / (size or 1.0)
    limit = MARGIN * noise + 1e-6
    return Proof(
        "normalisation",
        size > 0 and found <= limit,
        found,
        limit,
        f"gradient of {len(units)} rows together and one at a time: relative difference {found:.1e}; "
        f"the same rows turned around: {noise:.1e}" + ("" if size else "; the gradient is zero"),
        "the objective's denominator must be the count of the whole step",
    )


def _row_cost(trainer: Staged) -> Proof:
    """What a row of so many and so long documents takes, forward and backward: nothing to fail, but to know."""
    capacity, vocabulary = trainer.run.stage.packing.capacity, len(trainer.run.tokenizer)
    cuts = [[capacity // number] * number for number in (1, 2, 4, 16) if capacity >= 2 * number]
    cuts.append([max(2, capacity // 2)])
    random, seconds = np.random.default_rng(0), []
    for lengths in cuts:
        parts = [Scored(random.integers(0, vocabulary, length), np.arange(length) > 0) for length in lengths]
        batch = lay_out(parts, trainer.trainer.accelerator.device, shared=False)
        times = [_seconds(trainer, batch) for _ in range(3)]
        seconds.append(min(times[1:]))  # the first also sets things up
    cost = calibrated([sum(one) for one in cuts], [sum(n * n for n in one) for one in cuts], seconds)
    said = [float(f"{part:.3g}") for part in cost]
    return Proof(
        "row cost",
        True,
        max(seconds),
        0.0,
        f"{said[0]:.2g} s a token and {said[1]:.2g} s a pair of tokens of one document; with several processes "
        f"'parallel.row_cost=[{said[0]},{said[1]}]' deals rows by it",
    )


def _seconds(trainer: Staged, batch: MicroBatch) -> float:
    """Time of one forward and backward pass."""
    model, device = trainer.trainer.model, trainer.trainer.accelerator.device
    began = time.perf_counter()
    trainer.trainer.accelerator.backward(trainer.measure(model, batch, trainer.count(batch)).loss)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - began


def _gradients(trainer: Staged, parts: list[list[Any]]) -> Tensor:
    """All gradients of one step as one vector, cut into the given micro-batches."""
    model = trainer.trainer.model
    batches = [trainer.lay(part) for part in parts]
    denominator = sum(trainer.count(batch) for batch in batches)
    model.zero_grad(set_to_none=True)
    for batch in batches:
        trainer.trainer.accelerator.backward(trainer.measure(model, batch, denominator).loss)
    found = torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return found
