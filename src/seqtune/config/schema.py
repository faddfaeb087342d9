"""The JSON Schema of recipe files, for editors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from seqtune.config.plan import REGISTERED, Stage
from seqtune.config.reading import AXIS_SPECS, registry
from seqtune.registry import load

if TYPE_CHECKING:
    from seqtune.config.spec import Spec


def recipe_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a recipe: per axis, one alternative for each registered name.

    Every field may be left out, because the groups of the `defaults` list bring the rest.
    """
    definitions: dict[str, Any] = {}
    properties: dict[str, Any] = {
        "defaults": {"type": "array", "description": "Groups the recipe is made of; `_self_` comes last."},
        "stages": {
            "type": "object",
            "description": "Stages in order: name to a list of override words.",
            "additionalProperties": {"type": "array", "items": {"type": "string"}},
        },
    }
    for axis in Stage.model_fields:
        if axis != "name":
            alternatives = [_spec(spec, definitions) for spec in _specs(axis)]
            properties[axis] = {"anyOf": alternatives} if len(alternatives) > 1 else alternatives[0]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "seqtune recipe",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "$defs": definitions,
    }


def _specs(axis: str) -> list[type[Spec]]:
    if axis not in REGISTERED:
        return list(AXIS_SPECS[axis])
    names = registry(axis)
    specs = [names.load(name) for name in names]
    return [*specs, load("seqtune.rewards.specs:Custom")] if axis == "reward" else specs


def _spec(spec: type[Spec], definitions: dict[str, Any]) -> dict[str, Any]:
    schema = TypeAdapter(spec).json_schema(ref_template="#/$defs/{model}")
    definitions |= schema.pop("$defs", {})
    schema.pop("required", None)
    definitions[spec.__name__] = schema
    return {"$ref": f"#/$defs/{spec.__name__}"}
