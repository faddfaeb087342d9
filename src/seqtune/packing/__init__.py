"""Packing: lengths in, bins out; integers only."""

from seqtune.registry import Registry

PACKINGS = Registry(
    "packings",
    {
        "best_fit": "seqtune.packing.specs:BestFit",
        "online_best_fit": "seqtune.packing.specs:OnlineBestFit",
        "none": "seqtune.packing.specs:Unpacked",
    },
)
