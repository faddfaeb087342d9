"""A process that packs a file, for tests that kill it: `pack_process.py DATA OUT [SHARD_TOKENS]`."""

from __future__ import annotations

import sys
from pathlib import Path

from seqtune.config.axes import DataSpec, TinyModelSpec
from seqtune.hub import quiet
from seqtune.packing import tokens
from seqtune.packing.specs import BestFit
from seqtune.training import pack
from seqtune_cli.words import plan_of


def main() -> None:
    data, out, *rest = sys.argv[1:]
    quiet()
    _, plan = plan_of([], "sft_tiny")
    stage = plan.stages[0].model_copy(
        update={
            "model": TinyModelSpec(name="tiny"),
            "data": DataSpec(path=data, format="prompt_completion"),
            "packing": BestFit(capacity=256),
        }
    )
    tokens.SHARD_TOKENS = int(rest[0]) if rest else 2000
    pack._BLOCK_ROWS = 16
    print("began", flush=True)
    pack.pack_stage(stage, Path(out))


if __name__ == "__main__":
    main()
