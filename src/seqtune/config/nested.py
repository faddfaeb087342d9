"""A spec inside a spec, chosen by its `name` as a recipe writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from seqtune.errors import SeqtuneError, did_you_mean

if TYPE_CHECKING:
    from seqtune.config.base import Spec
    from seqtune.registry import Registry

S = TypeVar("S", bound="Spec")


class Misread(ValueError):
    """A mapping is no such spec.

    Args:
        kind: What messages call it.
        value: The mapping.
        error: What is wrong with it: its fields, or the name it chooses.
        spec: The spec its name chooses; None where that is what is wrong.
    """

    def __init__(
        self,
        kind: str,
        value: Mapping[str, object],
        error: ValidationError | SeqtuneError,
        spec: type[Spec] | None = None,
    ) -> None:
        self.kind, self.value, self.error, self.spec = kind, value, error, spec
        if isinstance(error, SeqtuneError):
            said = f"{error.problems[0].problem}; {error.problems[0].hint}"
        else:
            faults = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False)]
            said = f"{kind} '{value['name']}': {'; '.join(faults)}"
        super().__init__(said)


def named(value: object, *, kind: str, base: type[S], names: Registry, custom: type[S]) -> S:
    """The spec that a mapping's `name` chooses, read from the mapping.

    Args:
        value: A mapping, or the spec itself.
        kind: What messages call it.
        base: Of all specs of this kind.
        names: Where names are looked up.
        custom: The spec of a name with a colon: a function of the user's.

    Raises:
        ValueError: What pydantic shows as a refusal of the field: no name.
        Misread: The same for an unknown name or wrong fields, with what is wrong.
    """
    if isinstance(value, base):
        return value
    name = value.get("name") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(name, str):
        raise ValueError(f"write {{name: {value if isinstance(value, str) else 'NAME'}}}")
    if ":" not in name and name not in names:
        raise Misread(kind, value, SeqtuneError(f"unknown {kind} '{name}'", hint=did_you_mean(name, names)))
    chosen: type[S] = custom if ":" in name else names.load(name)
    try:
        return chosen.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise Misread(kind, value, error, chosen) from error
