"""docs/tools.md names every shipped tool and every field of it, with its default."""

from __future__ import annotations

from pathlib import Path

import pytest

from seqtune.config.tools import ToolSpec
from seqtune.rollout import TOOLS
from seqtune.rollout.tool_specs import Custom

PAGE = (Path(__file__).parents[2] / "docs" / "tools.md").read_text(encoding="utf-8")


def rows(text: str) -> list[list[str]]:
    lines = [line.strip("|") for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def test_every_tool_is_named() -> None:
    assert {row[0].strip("`") for row in rows(PAGE.partition("\n## ")[0])} >= set(TOOLS)


@pytest.mark.parametrize("title", [*TOOLS, "A function of yours"])
def test_every_field_has_its_default(title: str) -> None:
    spec: type[ToolSpec] = TOOLS.load(title) if title in TOOLS else Custom
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    own = {name: field for name, field in spec.model_fields.items() if name not in ToolSpec.model_fields}
    told = {row[0].strip("`"): row[1] for row in rows(section)}
    wanted = {name: "required" if field.is_required() else f"{field.default:g}" for name, field in own.items()}
    assert told == wanted


def test_the_fields_of_all_have_their_defaults() -> None:
    section = PAGE.partition("\n## Markers and limits\n")[2].partition("\n## ")[0]
    told = {name: row[1] for row in rows(section) for name in row[0].replace("`", "").split(", ")}
    assert told.keys() == ToolSpec.model_fields.keys() - {"name"}
    for name in ("max_calls", "max_result_tokens"):
        assert told[name] == str(ToolSpec.model_fields[name].default)
    for spec in (Custom, *(TOOLS.load(name) for name in TOOLS)):
        for name in ("open", "close", "result_open", "result_close"):
            assert f"`{spec.model_fields[name].default}`" in told[name]
