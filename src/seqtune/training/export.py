"""A run's model as one plain folder that anything reading safetensors can load."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from seqtune.config.reading import load
from seqtune.errors import SeqtuneError
from seqtune.training import ends

if TYPE_CHECKING:
    from pathlib import Path

    from seqtune.report.run_folder import RunFolder


def export(folder: RunFolder, out: Path) -> Path:
    """Write the model the last finished stage of a run left, with adapters merged into the weights, and its tokenizer.

    Args:
        folder: The run; stages after the last finished one are not looked at.
        out: A folder that does not exist yet, or is empty; it appears whole or not at all.

    Returns:
        `out`.

    Raises:
        SeqtuneError: No stage is finished, `out` holds something, or the disk refuses.
    """
    plan = load(folder.plan_text())
    finished = [index for index, stage in enumerate(plan.stages) if ends.final(folder, stage.name).is_dir()]
    if not finished:
        raise SeqtuneError(
            f"no stage of {folder.path} is finished",
            where="run",
            hint=f"finish one: seqtune train --resume {folder.path}",
        )
    out = out.expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SeqtuneError(f"'{out}' is there already", where="out", hint="give a new folder: out=FOLDER")
    model, tokenizer = ends.load_end(plan, folder, finished[-1])
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.replace(out)
    except OSError as error:
        raise SeqtuneError(f"the model cannot be written: {error.strerror or error}", where=str(out)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out
