"""Packing: lengths in, bins out; integers only."""

from seqtune.registry import Registry

PACKINGS = Registry(
    "packings",
    {
        "best_fit": "seqtune.packing.specs:BestFit",
        "online_best_fit": "seqtune.packing.specs:OnlineBestFit",
        "dataset_decomposition": "seqtune.packing.specs:DatasetDecomposition",
        "none": "seqtune.packing.specs:Unpacked",
    },
)
