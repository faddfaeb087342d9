"""What the wheel holds: four typed packages, the recipes, and no name that shadows someone else's."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"seqtune": "src", "seqtune_cli": "cli", "seqtune_kernels": "kernels", "seqtune_recipes": "recipes"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        ".",
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return zipfile.ZipFile(next(out.glob("seqtune-*.whl")))


def test_top_level_names(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_of_a_package_is_in_it(wheel: zipfile.ZipFile, package: str) -> None:
    folder = ROOT / PACKAGES[package]
    source = {
        file.relative_to(folder).as_posix()
        for file in (folder / package).rglob("*")
        if file.suffix in {".py", ".yaml", ".typed"} and "__pycache__" not in file.parts
    }
    assert f"{package}/py.typed" in source
    assert {name for name in wheel.namelist() if name.startswith(f"{package}/")} >= source


def test_one_command_and_its_licence(wheel: zipfile.ZipFile) -> None:
    info = next(name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name)
    assert wheel.read(f"{info}/entry_points.txt").decode().split() == [
        "[console_scripts]",
        "seqtune",
        "=",
        "seqtune_cli.main:main",
    ]
    assert b"Apache License" in wheel.read(f"{info}/licenses/LICENSE")


@pytest.mark.parametrize("folder", ["cli", "kernels", "recipes"])
def test_no_package_shadows_another(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists(), (
        f"a top-level package '{folder}' would shadow others of the name"
    )
