"""Which attention backends can run here, and why the others cannot."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from difflib import get_close_matches

import torch

HALF = (torch.float16, torch.bfloat16)

NAMES = ("flash_attention_3", "flash_attention_2", "sdpa", "eager", "flex_attention")
"""The names transformers takes for `attn_implementation`."""

FOREST = ("flash_attention_3", "flash_attention_2", "sdpa", "flex_attention", "eager")
"""The same names, in the order `auto` tries them for forests. `eager` builds a mask of the whole row."""

AUTO = NAMES[:4]
"""What `auto` tries, fastest first. FlexAttention is compiled per shape, which pays off only where it is asked for."""


class Unusable(ValueError):
    """A backend that was asked for cannot run; says which, why, and what can."""


@dataclass(frozen=True)
class Backend:
    """One attention backend on one kind of device.

    Args:
        name: As in `model.attention`.
        usable: Whether it can train and generate there.
        reason: Why it cannot, or under which condition it can.
    """

    name: str
    usable: bool
    reason: str


@dataclass(frozen=True)
class Choice:
    """The backend that runs.

    Args:
        name: As transformers names it.
        reasons: Why each backend tried before it was passed over, by name.
    """

    name: str
    reasons: dict[str, str]


def attention_backends(device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> list[Backend]:
    """Every backend, with whether it can run and why.

    Args:
        device: Where the weights are; None takes the accelerator of this machine, or the CPU.
        dtype: Of the weights; None leaves the question open and the reason names the dtypes a backend needs.
    """
    place = _default_device() if device is None else torch.device(device)
    found = []
    for name in NAMES:
        fault = _fault(name, place, dtype)
        found.append(Backend(name, fault is None, fault or _condition(name, dtype)))
    return found


def choose_attention(asked: str, device: torch.device | str, dtype: torch.dtype) -> Choice:
    """The backend for a model.

    Args:
        asked: A name, or `auto` for the fastest that can run.
        device: Where the weights are.
        dtype: Of the weights.

    Raises:
        Unusable: `asked` is not a backend, or cannot run there; names the nearest that can.
    """
    place = torch.device(device)
    reasons: dict[str, str] = {}
    if asked == "auto":
        for name in AUTO:
            fault = _fault(name, place, dtype)
            if fault is None:
                return Choice(name, reasons)
            reasons[name] = fault
        raise AssertionError("eager attention runs everywhere")
    if asked not in NAMES:
        close = get_close_matches(asked, NAMES, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise Unusable(f"there is no attention backend '{asked}'; {hint}(have: auto, {', '.join(NAMES)})")
    fault = _fault(asked, place, dtype)
    if fault is not None:
        nearest = choose_attention("auto", place, dtype).name
        raise Unusable(f"attention backend '{asked}' cannot run here: {fault}; the nearest that can is '{nearest}'")
    return Choice(asked, reasons)


def choose_forest_attention(
    asked: str, device: torch.device | str, dtype: torch.dtype, *, softcap: bool = False
) -> Choice:
    """The backend that computes forests (`seqtune_kernels.forest_attention`), by the names of `model.attention`.

    Args:
        asked: A name, or `auto` for the fastest that can run.
        device: Where the weights are.
        dtype: Of the weights.
        softcap: Whether the model caps its attention scores.

    Raises:
        Unusable: `asked` is not a backend, or cannot compute forests there; names the nearest that can.
    """
    place = torch.device(device)
    faults = {name: _forest_fault(name, place, dtype, softcap) for name in FOREST}
    if asked == "auto":
        name = next(name for name, fault in faults.items() if fault is None)
        return Choice(name, {name: fault for name, fault in faults.items() if fault is not None})
    if asked not in NAMES:
        return choose_attention(asked, place, dtype)  # raises, and says which names there are
    fault = faults[asked]
    if fault is not None:
        nearest = choose_forest_attention("auto", place, dtype, softcap=softcap).name
        message = f"attention backend '{asked}' cannot compute forests here: {fault}"
        raise Unusable(f"{message}; the nearest that can is '{nearest}'")
    return Choice(asked, {})


def _forest_fault(name: str, device: torch.device, dtype: torch.dtype, softcap: bool) -> str | None:
    """Why a backend cannot compute forests, or None."""
    if name == "flash_attention_3":
        return "forests are computed by the interface of FlashAttention 2"
    if name == "sdpa" and device.type == "cuda":
        if softcap:
            return "PyTorch's flash kernels for CUDA have no soft-cap, which this model needs"
        if dtype not in HALF:
            return f"PyTorch's flash kernels for CUDA compute in float16 or bfloat16, not {_short(dtype)}"
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            return f"it needs compute capability 8.0 (Ampere) or newer, and this GPU has {major}.{minor}"
        return None
    if name == "sdpa" and device.type != "cpu":
        return f"PyTorch's flash kernels run on CUDA and CPU, and this is {device.type}"
    return _fault(name, device, dtype)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _default_device() -> torch.device:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator if accelerator is not None else torch.device("cpu")


def _fault(name: str, device: torch.device, dtype: torch.dtype | None) -> str | None:
    """Why a backend cannot run, or None."""
    if name in ("sdpa", "eager"):
        return None
    if device.type != "cuda":
        if name == "flex_attention":
            return f"it needs a CUDA device: PyTorch has no backward pass for it on {device.type}"
        return f"it needs a CUDA device, and this is {device.type}"
    if name == "flex_attention":
        return None
    module = "flash_attn" if name == "flash_attention_2" else "flash_attn_interface"
    package = "flash-attn (pip install 'seqtune[flash]')" if module == "flash_attn" else "flash-attn-3"
    if importlib.util.find_spec(module) is None:
        return f"it needs the package {package}, which is not installed"
    major, minor = torch.cuda.get_device_capability(device)
    if name == "flash_attention_2" and major < 8:
        return f"it needs compute capability 8.0 (Ampere) or newer, and this GPU has {major}.{minor}"
    if name == "flash_attention_3" and major != 9:
        return f"it needs compute capability 9.0 (Hopper), and this GPU has {major}.{minor}"
    if dtype is not None and dtype not in HALF:
        return f"it computes in float16 or bfloat16, and the weights are {_short(dtype)}"
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:  # built for another torch or CUDA: the linker's complaint says which
        return f"{module} is installed but cannot be imported: {error}"
    return None


def _condition(name: str, dtype: torch.dtype | None) -> str:
    if name.startswith("flash_attention") and dtype is None:
        return "with weights in float16 or bfloat16"
    return {
        "sdpa": "PyTorch's own fused attention, on every device",
        "eager": "plain matrix products, on every device; the reference, and the slowest",
        "flex_attention": "compiled for each shape of batch; never chosen by auto",
    }.get(name, "the fastest for this GPU")
