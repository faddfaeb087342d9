"""What a recipe can say about processes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from seqtune.config.spec import ParallelSpec


class Single(ParallelSpec):
    """One process."""

    name: Literal["single"] = "single"
    processes: Literal[1] = 1
    """Always one."""

    @field_validator("processes", mode="before")
    @classmethod
    def _one(cls, value: object) -> object:
        if isinstance(value, int) and value > 1:
            raise ValueError("there is one process; parallel=ddp has several")
        return value

    def build(self) -> dict[str, Any]:
        return {}


class Several(ParallelSpec):
    """What plans of more than one process share."""

    processes: int = Field(2, ge=1)
    """Processes on this machine, one per GPU (gloo on CPU)."""
    row_cost: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] | None = None
    """What a packed row costs a process: weights of Σl and Σl² over its documents, by which rows are dealt.
    `seqtune doctor recipe=…` measures them; None takes 6 × hidden size and 1, the ratio of their arithmetic."""


class Ddp(Several):
    """Every process holds the whole model and a share of the batch; gradients are averaged."""

    name: Literal["ddp"] = "ddp"

    def build(self) -> dict[str, Any]:
        return {"ddp_find_unused_parameters": False}


class Fsdp2(Several):
    """Weights, gradients and optimiser states are sharded over the processes (PyTorch `fully_shard`)."""

    name: Literal["fsdp2"] = "fsdp2"
    reshard_after_forward: bool = True
    """Free the gathered weights of a block between its forward and backward pass: less memory, more traffic."""

    def build(self) -> dict[str, Any]:
        return {
            "fsdp": True,
            "fsdp_config": {"version": 2, "reshard_after_forward": self.reshard_after_forward},
        }
