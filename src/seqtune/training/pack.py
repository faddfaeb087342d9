"""From the examples of a stage to packed rows: what `seqtune pack` writes and what an SFT stage trains on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqtune.config.axes import DataSpec, TemplateMathSpec
from seqtune.data import sources
from seqtune.data.rows import BadRows
from seqtune.data.tokenize import fingerprints, tokenize
from seqtune.packing import artefact
from seqtune.packing.pack import pack

if TYPE_CHECKING:
    from collections.abc import Callable

    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from seqtune.config.plan import Stage
    from seqtune.packing.pack import Packed


def packed_for(stage: Stage, examples: Dataset, tokenizer: PreTrainedTokenizerBase, *, heldout: bool = False) -> Packed:
    """The rows of a stage: read from `packing.path`, or tokenised and packed here.

    Args:
        stage: Says how rows are packed, and of what.
        examples: Training or held-out examples; not looked at when they are read from a pack.
        tokenizer: Of the model.
        heldout: Whether these are the held-out examples, which a pack does not hold.

    Returns:
        The rows; `counts` has `skipped` (by reason) when the chat template could not write some examples.

    Raises:
        SeqtuneError: As `tokenize` and `pack`; or the pack is damaged, or was made otherwise than the stage says.
    """
    if stage.packing.path is not None and not heldout:
        return artefact.read(Path(stage.packing.path).expanduser(), stage.packing, _origin(stage, tokenizer))
    bad = BadRows(stage.data.on_error if isinstance(stage.data, DataSpec) else "error")
    sequences = tokenize(examples, tokenizer, bad)
    skipped = bad.close()
    packed = pack(sequences, stage.packing)
    return replace(packed, counts={**packed.counts, "skipped": skipped}) if skipped else packed


def pack_stage(stage: Stage, out: Path, progress: Callable[[float], None] | None = None) -> dict[str, Any]:
    """Tokenise and pack the training examples of a stage into a folder.

    Args:
        stage: Its model gives the tokenizer.
        out: The folder; a pack that is there is replaced.
        progress: Told the part done, 0 to 1.

    Returns:
        The counts of `Packed`, `skipped` (bad rows by reason) and `folder`.

    Raises:
        SeqtuneError: The data, the tokenizer or the folder is at fault.
    """
    from seqtune.models.load import load_tokenizer

    spec = stage.packing.model_copy(update={"path": None})
    tell = progress or (lambda done: None)
    tokenizer = load_tokenizer(stage.model)
    examples = sources.load(stage.data)
    tell(0.2)
    packed = _packed(stage, examples.train, tokenizer)
    tell(0.8)
    artefact.write(out, packed, spec, _origin(stage, tokenizer))
    tell(1.0)
    skipped = Counter(examples.skipped) + Counter(packed.counts.get("skipped", {}))
    return {"folder": str(out), **packed.counts, "skipped": dict(skipped)}


def _packed(stage: Stage, examples: Dataset, tokenizer: PreTrainedTokenizerBase) -> Packed:
    bad = BadRows("error" if isinstance(stage.data, TemplateMathSpec) else stage.data.on_error)
    sequences = tokenize(examples, tokenizer, bad)
    untrained = bad.close()
    packed = pack(sequences, stage.packing)
    if untrained:
        packed.counts["dropped"] = {**packed.counts.get("dropped", {}), **untrained}
    return packed


def _origin(stage: Stage, tokenizer: PreTrainedTokenizerBase) -> artefact.Origin:
    rules, template = fingerprints(tokenizer)
    return artefact.Origin(rules, template, stage.data.model_dump(mode="json"), sources.fingerprints(stage.data))
