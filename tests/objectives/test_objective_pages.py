"""A page for every objective: it names each field it sets apart, each metric its loss logs, and stands in the menu."""

from pathlib import Path

import pytest

from seqtune.objectives import OBJECTIVES
from seqtune.testing import example, outcome

ROOT = Path(__file__).parents[2]
PARTS = {
    "policy": {},
    "minirl": {"rejection": "mean"},
    "grpo": {"beta": 0.1},
}


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_the_page(name: str) -> None:
    page = (ROOT / "docs" / "objectives" / f"{name}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {name}\n")
    assert f'"objectives/{name}.md"' in (ROOT / "zensical.toml").read_text(encoding="utf-8")
    assert f"`{name}`" in (ROOT / "docs" / "objectives" / "index.md").read_text(encoding="utf-8")
    spec = OBJECTIVES.load(name)(name=name, **PARTS.get(name, {}))
    assert spec.source.removeprefix("https://arxiv.org/abs/") in page or spec.family not in ("policy", "offline")
    if spec.family in ("policy", "offline"):
        batch = example(spec.family, also=getattr(spec, "loss_inputs", frozenset()))
        missing = [key for key in outcome(spec.build(), batch, 8).metrics if f"`{key}`" not in page]
        assert not missing, missing


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if OBJECTIVES.load(name)(name=name).family != "sft"])
def test_fields_of_its_own_are_on_the_page(name: str) -> None:
    kind = OBJECTIVES.load(name)
    parent = kind.__mro__[1].model_fields
    own = [field for field in kind.model_fields if field not in parent]
    page = (ROOT / "docs" / "objectives" / f"{name}.md").read_text(encoding="utf-8")
    missing = [field for field in own if f"`objective.{field}`" not in page]
    assert not missing, missing
