"""Dry-run every recipe of an installed seqtune: `python dry_run.py SITE_PACKAGES`, in an empty directory.

Fails unless all four packages come from SITE_PACKAGES, so that what is tried is what was installed.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

from shipped_recipes import shipped


def main(site: Path) -> None:
    """Raise SystemExit with what went wrong, or print one line a recipe."""
    for name in ("seqtune", "seqtune_cli", "seqtune_kernels", "seqtune_recipes"):
        file = Path(str(importlib.import_module(name).__file__))
        if not file.is_relative_to(site):
            raise SystemExit(f"{name} comes from {file}, not from {site}")
    recipes = shipped(site / "seqtune_recipes")
    if not recipes:
        raise SystemExit(f"no recipe in {site / 'seqtune_recipes'}")
    seqtune = Path(sys.executable).with_name("seqtune")
    for recipe in recipes:
        command = [str(seqtune), "train", f"recipe={recipe.name}", *recipe.words, "--dry-run"]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} exited {done.returncode}\n{done.stdout}{done.stderr}")
        print(f"dry run of {recipe.name}: ok")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
