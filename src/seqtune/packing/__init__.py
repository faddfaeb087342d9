"""Packing: lengths in, bins out; integers only."""

from seqtune.registry import Registry

PACKINGS = Registry(
    "packings",
    {
        "best_fit": "seqtune.packing.specs:BestFit",
        "none": "seqtune.packing.specs:Unpacked",
    },
)
