"""What a tool of a rollout is configured by, and how a recipe names one."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny, WithJsonSchema

from seqtune.config.base import Spec
from seqtune.config.nested import named
from seqtune.registry import load


class ToolSpec(Spec):
    """What a policy may call while it writes. `build()` returns a function of a batch of queries."""

    name: str
    """Name in the registry `tools`, or `module:function`, or `file.py:function`."""
    open: str = Field("<tool>", min_length=1)
    """Text that begins a call."""
    close: str = Field("</tool>", min_length=1)
    """Text that ends a call; what stands between is the query."""
    result_open: str = "<result>"
    """Text put before the result."""
    result_close: str = "</result>"
    """Text put after the result."""
    max_calls: int = Field(4, ge=1)
    """Calls a completion may make; markers of a further call are text like any other."""
    max_result_tokens: int = Field(256, ge=1)
    """Tokens of a result that are kept."""

    def build(self) -> Any:
        """`tool(queries) -> list[seqtune.rollout.tools.Answer]`, one an answer; raises for what the user can mend only.

        Raises:
            SeqtuneError: The tool cannot work at all.
        """
        raise NotImplementedError


def _tool(value: object) -> ToolSpec:
    """A tool of a rollout: its fields as a recipe writes them, read by the spec that its name chooses."""
    custom: type[ToolSpec] = load("seqtune.rollout.tool_specs:Custom")
    return named(value, kind="tool", base=ToolSpec, names=load("seqtune.rollout:TOOLS"), custom=custom)


_SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
Tool = Annotated[SerializeAsAny[ToolSpec], BeforeValidator(_tool), WithJsonSchema(_SCHEMA)]
"""A tool as a field: a mapping with its `name` and fields."""
