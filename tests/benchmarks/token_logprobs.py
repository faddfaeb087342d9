"""Log-probs without logits against logits in memory and against TRL's; writes a section of docs/benchmarks.md.

    python tests/benchmarks/token_logprobs.py [--quick] [--threads N] [--rounds N] [--write] [equal] [unequal] [frozen]

The full run takes half an hour on one quiet core, a kind with `--rounds 1` six minutes, and 12 GiB of memory. `--quick`
is a tenth of it, and says little.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

import torch
from common import machine, paired, peak_rss_of, ratio, write_section
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from seqtune_kernels.token_logprobs import token_logprobs, token_logprobs_reference

if TYPE_CHECKING:
    from collections.abc import Callable

TOKENS, VOCABULARY, WIDTH = 4096, 151_936, 1024
TRL_CHUNK = 8192
"""Of the vocabulary, what TRL's trainers pass."""
ABOUT = """\
Forward and backward of the log-probs of chosen tokens, fp32: {tokens:,} tokens, vocabulary {vocabulary:,}, width
{width:,}. Logits in memory is `linear`, `log_softmax`, `gather` and autograd. `equal`: the gradients of all log-probs
are the same number, as supervised training's are, and the head is trained; `unequal`: they differ, which costs a fourth
matrix product; `frozen`: the head is not trained. Memory leaves out the gradient of the head, and counts the
gradient of the hidden states; the logits alone would be {logits:,.0f} MiB."""


def cases(tokens: int) -> dict[str, dict[str, Callable[[], None]]]:
    """What is timed: three ways to the same gradients, for each kind of gradient."""
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, generator=random).requires_grad_()
    weight = (torch.randn(VOCABULARY, WIDTH, generator=random) / WIDTH**0.5).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (tokens,), generator=random)
    upstream = {"equal": torch.full((tokens,), 1 / tokens), "unequal": torch.randn(tokens, generator=random)}
    upstream["frozen"] = upstream["unequal"]

    def run(ways: Callable[..., torch.Tensor], kind: str) -> Callable[[], None]:
        def step() -> None:
            head = weight.detach() if kind == "frozen" else weight
            inputs = [hidden] if kind == "frozen" else [hidden, weight]
            torch.autograd.grad(ways(head, kind), inputs, upstream[kind])

        return step

    def ours(head: torch.Tensor, kind: str) -> torch.Tensor:
        return token_logprobs(hidden, head, targets, uniform=kind == "equal").logps

    def logits(head: torch.Tensor, kind: str) -> torch.Tensor:
        return token_logprobs_reference(hidden, head, targets).logps

    def trl(head: torch.Tensor, kind: str) -> torch.Tensor:
        found: torch.Tensor = ChunkedLogProbFunction.apply(hidden, head, None, targets, 1.0, TRL_CHUNK, None, 1.0, ())[
            0
        ]
        return found

    ways: dict[str, Any] = {"seqtune": ours, "logits in memory": logits, "TRL chunked": trl}
    return {kind: {name: run(way, kind) for name, way in ways.items()} for kind in upstream}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=["equal", "unequal", "frozen"])
    parser.add_argument("--quick", action="store_true", help="a tenth of the tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    tokens = TOKENS // 10 if given.quick else TOKENS
    lines = [
        "| gradients | way | seconds | times ours | extra memory, MiB | of the logits |",
        "|---|---|---|---|---|---|",
    ]
    size = tokens * VOCABULARY * 4
    for kind, runs in cases(tokens).items():
        if kind not in given.kinds:
            continue
        seconds = paired(runs, given.rounds, warm_up=False)
        for name, step in runs.items():
            peak = peak_rss_of(step) - (0 if kind == "frozen" else VOCABULARY * WIDTH * 4)
            times = ratio(seconds[name], seconds["seqtune"])
            median = sorted(seconds[name])[len(seconds[name]) // 2]
            lines.append(f"| {kind} | {name} | {median:.1f} | {times} | {peak >> 20:,} | {peak / size:.1%} |")
            print(lines[-1], flush=True)
    about = ABOUT.format(tokens=tokens, vocabulary=VOCABULARY, width=WIDTH, logits=size / 2**20)
    command = f"    $ python tests/benchmarks/token_logprobs.py {' '.join(sys.argv[1:])}"
    if given.write:
        title = f"Log-probs without logits, {given.threads} thread{'s' if given.threads > 1 else ''}"
        write_section(title, "\n\n".join([about, "\n".join(lines), f"{machine()}:", command]))


if __name__ == "__main__":
    main()
