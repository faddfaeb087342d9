"""The Triton kernel of log-probs, run by Triton's interpreter on a CPU, against fp64.

Triton reads `TRITON_INTERPRET` when it is imported, which another test may have done: this file runs itself in a
process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from test_token_logprobs import compared, drawn

from seqtune_kernels.capability import Unusable
from seqtune_kernels.token_logprobs import token_logprobs

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
inside = pytest.mark.skipif(not INTERPRETED, reason="run by test_in_the_interpreter, in a process of its own")


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="the package triton is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-cov", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout
    assert " passed" in done.stdout


@pytest.mark.skipif(INTERPRETED, reason="there a CPU is enough")
def test_without_a_gpu_it_is_refused_and_auto_does_without() -> None:
    tensors = drawn(3, 5, 4, bias=False, dtype=torch.float32)
    with pytest.raises(Unusable, match=r"cannot use Triton here: (it needs a CUDA device|the package triton)"):
        token_logprobs(**tensors, implementation="triton")
    assert torch.equal(token_logprobs(**tensors).logps, token_logprobs(**tensors, implementation="torch").logps)


@inside
@pytest.mark.parametrize("size", [(1, 1, 3), (7, 13, 8), (5, 257, 24)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.7}, {"temperature": 2.0, "softcap": 0.8}, {"fp32_head": True}], ids=str
)
def test_values_and_gradients(size: tuple[int, int, int], dtype: torch.dtype, options: dict[str, Any]) -> None:
    upstream = torch.linspace(-1, 1, size[0], dtype=torch.float64)
    compared(drawn(*size, bias=True), upstream, dtype, implementation="triton", **options)


@inside
@pytest.mark.parametrize("block", [16, 64, 128])
def test_no_block_boundary_shows(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets and the largest logit on either side of where one block of a row ends and the next begins."""
    from seqtune_kernels.token_logprobs import scan_triton

    monkeypatch.setattr(scan_triton, "BLOCK", block)
    tensors = drawn(8, 129, 6, bias=True)
    tensors["targets"] = torch.tensor([0, 15, 16, 63, 64, 127, 128, 127])
    with torch.no_grad():
        tensors["bias"][torch.tensor([0, 127, 128])] += 9.0
    compared(tensors, torch.linspace(0.5, -1, 8, dtype=torch.float64), torch.float32, implementation="triton")


@inside
def test_fp64_is_refused() -> None:
    with pytest.raises(Unusable, match="float64"):
        token_logprobs(**drawn(3, 5, 4, bias=False), implementation="triton")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "softcap": 1.5}, {"fp32_head": True}], ids=str)
def test_on_a_gpu(dtype: torch.dtype, options: dict[str, Any]) -> None:
    moved = {
        name: x.detach().cuda() if isinstance(x, torch.Tensor) else x
        for name, x in drawn(300, 5000, 64, bias=True).items()
    }
    upstream = torch.linspace(-1, 1, 300, dtype=torch.float64, device="cuda")
    for implementation in ("torch", "triton"):
        compared(moved, upstream, dtype, implementation=implementation, **options)
