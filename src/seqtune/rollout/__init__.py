"""Sampling of completions, and the tools they may call."""

from seqtune.registry import Registry

TOOLS = Registry(
    "tools",
    {
        "search": "seqtune.rollout.tool_specs:Search",
        "python": "seqtune.rollout.tool_specs:Python",
    },
)
