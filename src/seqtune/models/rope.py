"""Rotary positions of a model's configuration, changed as a recipe says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seqtune.config.rope import Abf, NtkAware, PositionInterpolation, Yarn
from seqtune.errors import SeqtuneError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from seqtune.config.rope import Rope

PUBLISHED = "seqtune_published_rope"
"""Key of a saved configuration: rotary parameters and positions as they were before."""


def apply(config: PreTrainedConfig, rope: Rope) -> None:
    """Change the rotary parameters of a configuration, counted from the published ones; twice is as once.

    Of a model whose layers differ, those with full attention are changed: a sliding window reads no further.

    Args:
        config: Of a causal language model; changed in place.
        rope: What to do.

    Raises:
        SeqtuneError: The model has no rotary positions, or they are already scaled and `rope` would scale them again.
    """
    text = config.get_text_config()
    if not getattr(text, "rope_parameters", None):
        raise SeqtuneError(
            f"a model of the type '{text.model_type}' has no rotary positions to change",
            where="model.rope",
            hint="leave model.rope out, or take a model with rotary positions (Llama, Qwen, Mistral, …)",
        )
    if getattr(text, PUBLISHED, None) is None:
        # A copy of its own: transformers would add keys to the one it is given.
        kept = {"rope_parameters": _copied(text.rope_parameters), "max_positions": text.max_position_embeddings}
        setattr(text, PUBLISHED, kept)
    published: dict[str, Any] = getattr(text, PUBLISHED)
    positions: int = published["max_positions"]
    parameters = _copied(published["rope_parameters"])
    nested = "rope_type" not in parameters
    for kind, of_kind in parameters.items() if nested else [("", parameters)]:
        if nested and kind != "full_attention":
            continue
        scaled = of_kind.get("rope_type", "default")
        if scaled != "default" and not isinstance(rope, Abf):
            raise SeqtuneError(
                f"the rotary positions of the model are already scaled ({scaled})",
                where="model.rope",
                hint="model.rope.name=abf changes their base and leaves the scaling",
            )
        of_kind.update(_changes(rope, of_kind, text, positions))
    text.rope_parameters = parameters
    longer = rope.max_positions or positions if isinstance(rope, Abf) else round(positions * rope.factor)
    text.max_position_embeddings = longer


def _changes(rope: Rope, parameters: dict[str, Any], config: Any, positions: int) -> dict[str, Any]:
    match rope:
        case Abf():
            return {"rope_theta": rope.base}
        case PositionInterpolation():
            return {"rope_type": "linear", "factor": rope.factor}
        case NtkAware():
            whole = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
            size = int(whole * parameters.get("partial_rotary_factor", 1.0))
            return {"rope_theta": parameters["rope_theta"] * rope.factor ** (size / (size - 2))}
        case Yarn():
            given = {} if rope.attention_factor is None else {"attention_factor": rope.attention_factor}
            return {
                "rope_type": "yarn",
                "factor": rope.factor,
                "original_max_position_embeddings": positions,
                "beta_fast": rope.beta_fast,
                "beta_slow": rope.beta_slow,
                **given,
            }


def _copied(parameters: dict[str, Any]) -> dict[str, Any]:
    return {key: dict(value) if isinstance(value, dict) else value for key, value in parameters.items()}
