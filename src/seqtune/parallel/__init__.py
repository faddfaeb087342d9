"""How processes share the work."""

from seqtune.registry import Registry

PARALLEL_PLANS = Registry(
    "parallel_plans",
    {
        "single": "seqtune.parallel.specs:Single",
        "ddp": "seqtune.parallel.specs:Ddp",
        "fsdp2": "seqtune.parallel.specs:Fsdp2",
    },
)
