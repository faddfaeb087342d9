"""Help, completion and plug-ins, each in a process of its own: what is imported, what is offered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

HEAVY = {"torch", "hydra", "omegaconf", "transformers", "rich", "datasets", "trl", "peft", "accelerate", "numpy"}


def python(code: str, *, path: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, `path` on its import path."""
    known = {**os.environ, **env}
    if path is not None:
        known["PYTHONPATH"] = str(path)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=known, timeout=120)


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["eval", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = f"""
import sys
from seqtune_cli.main import main
try:
    main({words})
except SystemExit as stopped:
    print(stopped.code, sorted({HEAVY} & set(sys.modules)))
"""
    done = python(code)
    assert done.stdout.splitlines()[-1] == "0 []", done.stdout + done.stderr


def test_a_refused_command_line_imports_no_torch() -> None:
    code = """
import sys
from seqtune_cli.main import main
try:
    main(["train", "recipe=gspo_qwen4b", "objectiv.epsilon=1"])
except SystemExit as stopped:
    print(stopped.code, sorted({"torch", "transformers", "datasets", "trl", "rich"} & set(sys.modules)))
"""
    assert python(code).stdout == "2 []\n"


def offered(*words: str) -> list[str]:
    """What bash is offered for the last word."""
    code = """
import sys
from seqtune_cli.main import main
try:
    main()
finally:
    loaded = {"torch", "hydra", "omegaconf", "transformers", "rich"} & set(sys.modules)
    print("loaded", sorted(loaded))
"""
    done = python(
        code,
        _SEQTUNE_COMPLETE="complete_bash",
        COMP_WORDS="\n".join(["seqtune", *words]),
        COMP_CWORD=str(len(words)),
    )
    *found, loaded = done.stdout.splitlines()
    assert loaded == "loaded []", done.stderr
    return found


def test_completion_knows_recipes_groups_and_fields() -> None:
    # bash cuts words at the sign and wants only the last part back
    assert offered("train", "recipe", "=", "gspo_t") == ["gspo_tiny"]
    assert "sft_tiny" in offered("train", "recipe", "=")
    assert offered("train", "objective=gs") == ["objective=gspo", "objective=gspo_token"]
    assert {"objective.epsilon_low=", "objective.epsilon_high="} <= set(offered("train", "objective.epsilon"))
    assert offered("train", "data.chat") == ["data.chat=true", "data.chat=false"]
    assert offered("train", "pac")[0].startswith("packing=")
    assert {"recipe=", "out=", "objective="} <= set(offered("train", ""))


@pytest.fixture
def plug_in(tmp_path: Path) -> Path:
    """A folder to import from that holds an installed distribution with a recipe and a group of its own."""
    package = tmp_path / "acme_recipes"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "house.yaml").write_text(
        "# Purpose: what we train at Acme.\n"
        "defaults:\n  - sft_tiny\n  - override data: house\n  - _self_\n"
        "train:\n  seed: 7\n",
        encoding="utf-8",
    )
    (package / "data" / "house.yaml").write_text("name: template_math\nsize: 99\n", encoding="utf-8")
    info = tmp_path / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[seqtune.recipes]\nacme = acme_recipes\n", encoding="utf-8")
    return tmp_path


RUN = "from seqtune_cli.main import main; main({})"


def test_recipes_of_another_package(plug_in: Path) -> None:
    listed = json.loads(python(RUN.format(["list", "recipes", "--json"]), path=plug_in).stdout)["recipes"]
    assert {"name": "house", "origin": "acme", "about": "what we train at Acme."} in listed
    shown = python(RUN.format(["show", "recipe=house", "--json"]), path=plug_in)
    values = json.loads(shown.stdout)["stages"][0]["values"]
    assert values["train.seed"] == {"value": 7, "origin": "acme_recipes/house.yaml:7"}
    assert values["data.size"] == {"value": 99, "origin": "acme_recipes/data/house.yaml:2"}
    # its group serves the shipped recipes too
    swapped = python(RUN.format(["train", "recipe=gspo_tiny", "data=house", "--dry-run", "--json"]), path=plug_in)
    assert json.loads(swapped.stdout)["stages"][0]["data"]["size"] == 99


def test_two_packages_with_one_recipe_name_are_both_named(plug_in: Path) -> None:
    (plug_in / "acme_recipes" / "house.yaml").rename(plug_in / "acme_recipes" / "sft_tiny.yaml")
    done = python(RUN.format(["train", "recipe=sft_tiny", "--dry-run"]), path=plug_in)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the recipe 'sft_tiny' is shipped twice\n  where: seqtune and acme\n")


def test_a_recipe_package_that_cannot_be_imported_is_named(plug_in: Path) -> None:
    (plug_in / "acme_recipes" / "__init__.py").write_text("import nothing_of_that_name\n", encoding="utf-8")
    done = python(RUN.format(["list", "recipes"]), path=plug_in)
    assert done.returncode == 2
    assert "the recipes of 'acme' cannot be loaded: No module named 'nothing_of_that_name'" in done.stderr
