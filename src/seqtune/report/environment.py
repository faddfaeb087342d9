"""What a run ran on: versions, machine, accelerators, state of the user's git repository."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = (
    "seqtune",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "hydra-core",
    "math-verify",
    "flash-attn",
    "flash-attn-3",
    "triton",
    "vllm",
    "deepspeed",
)


def describe() -> dict[str, Any]:
    """The environment of this process, as JSON.

    Returns:
        `python`, `platform`, `cpus` (usable by this process), `packages` (versions of those installed),
        `accelerators` (name, memory in GiB, compute capability) and `git` (commit and whether files differ from it;
        None outside a repository).
    """
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cpus": _cpus(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "accelerators": _accelerators(),
        "git": _git(),
    }


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _accelerators() -> list[dict[str, Any]]:
    import torch

    if torch.cuda.is_available():
        found = []
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            found.append(
                {
                    "name": properties.name,
                    "memory_gib": round(properties.total_memory / 2**30, 1),
                    "compute_capability": f"{properties.major}.{properties.minor}",
                }
            )
        return found
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return [{"name": accelerator.type}] if accelerator is not None else []


def _git() -> dict[str, Any] | None:
    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=5, check=False)
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    if commit is None:
        return None
    changes = ask("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": None if changes is None else bool(changes)}
