"""The JSON Schema of recipe files, for editors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seqtune.config.plan import REGISTERED, Stage
from seqtune.config.reading import AXIS_SPECS, registry
from seqtune.registry import load

if TYPE_CHECKING:
    from seqtune.config.spec import Spec

LATER = {
    "type": "string",
    "pattern": r"^(\?\?\?|.*\$\{.+\}.*)$",
    "description": "`???`: has to be given on the command line; `${path}`: the value of another field.",
}

CUSTOM = "custom"
"""Key of the reward that is a user's own function, which no name in a registry chooses."""


def recipe_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a recipe: per axis, one alternative for each registered name.

    Every field may be left out, because the groups of the `defaults` list bring the rest. The schema of a group's own
    file is `$defs/<axis>`.
    """
    definitions: dict[str, Any] = {"later": LATER}
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
            alternatives = [_spec(axis, name, spec, definitions) for name, spec in _specs(axis).items()]
            definitions[axis] = {"anyOf": alternatives} if len(alternatives) > 1 else alternatives[0]
            properties[axis] = {"$ref": f"#/$defs/{axis}"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "seqtune recipe",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "$defs": definitions,
    }


def _specs(axis: str) -> dict[str, type[Spec]]:
    """The specs of an axis by the name that chooses them."""
    if axis not in REGISTERED:
        return {spec.__name__: spec for spec in AXIS_SPECS[axis]}
    names = registry(axis)
    specs = {name: names.load(name) for name in names}
    return {**specs, CUSTOM: load("seqtune.rewards.specs:Custom")} if axis == "reward" else specs


def _spec(axis: str, chosen: str, spec: type[Spec], definitions: dict[str, Any]) -> dict[str, Any]:
    key = f"{axis}.{chosen}"
    schema = spec.model_json_schema(ref_template="#/$defs/{model}")
    definitions |= schema.pop("$defs", {})
    schema.pop("required", None)
    for name, field in schema["properties"].items():
        about = {word: field.pop(word) for word in ("description", "default", "title") if word in field}
        choices = field["anyOf"] if set(field) == {"anyOf"} else [field]
        schema["properties"][name] = {**about, "anyOf": [*choices, {"$ref": "#/$defs/later"}]}
    if axis in REGISTERED and chosen != CUSTOM:
        schema["properties"]["name"] = {"const": chosen, "description": spec.__doc__}
    definitions[key] = schema
    return {"$ref": f"#/$defs/{key}"}
