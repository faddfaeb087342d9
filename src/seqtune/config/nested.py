"""A spec inside a spec, chosen by its `name` as a recipe writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from seqtune.errors import SeqtuneError

if TYPE_CHECKING:
    from seqtune.config.base import Spec
    from seqtune.registry import Registry

S = TypeVar("S", bound="Spec")


def named(value: object, *, kind: str, base: type[S], names: Registry, custom: type[S]) -> S:
    """The spec that a mapping's `name` chooses, read from the mapping.

    Args:
        value: A mapping, or the spec itself.
        kind: What messages call it.
        base: Of all specs of this kind.
        names: Where names are looked up.
        custom: The spec of a name with a colon: a function of the user's.

    Raises:
        ValueError: What pydantic shows as a refusal of the field: no name, an unknown one, or wrong fields.
    """
    if isinstance(value, base):
        return value
    name = value.get("name") if isinstance(value, Mapping) else None
    if not isinstance(name, str):
        raise ValueError(f"needs a name: {', '.join(names)}")
    try:
        chosen: type[S] = custom if ":" in name else names.load(name)
        return chosen.model_validate_json(json.dumps(value), strict=True)
    except SeqtuneError as error:
        raise ValueError(f"{error.problems[0].problem}; {error.problems[0].hint}") from error
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False)]
        raise ValueError(f"{kind} '{name}': {'; '.join(faults)}") from error
