"""Packing: lengths in, bins out; integers only."""

from seqtune.registry import Registry

PACKINGS = Registry(
    "packings",
    {
        "best_fit": "seqtune.packing.specs:BestFit",
        "first_fit": "seqtune.packing.specs:FirstFit",
        "first_fit_decreasing": "seqtune.packing.specs:FirstFitDecreasing",
        "next_fit": "seqtune.packing.specs:NextFit",
        "wrapped": "seqtune.packing.specs:Wrapped",
        "spfhp": "seqtune.packing.specs:Spfhp",
        "lpfhp": "seqtune.packing.specs:Lpfhp",
        "nnlshp": "seqtune.packing.specs:Nnlshp",
        "optimal": "seqtune.packing.specs:Optimal",
        "online_best_fit": "seqtune.packing.specs:OnlineBestFit",
        "online_buffer": "seqtune.packing.specs:Buffered",
        "bos_crop": "seqtune.packing.specs:BosCrop",
        "dataset_decomposition": "seqtune.packing.specs:DatasetDecomposition",
        "none": "seqtune.packing.specs:Unpacked",
    },
)
