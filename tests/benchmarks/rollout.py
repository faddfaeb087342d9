"""Rollouts against TRL's transformers path: prompts of 512 tokens, groups of 8; writes a section of docs/benchmarks.md.

    python tests/benchmarks/rollout.py [--threads N] [--rounds N] [--prompts N] [--tokens N] [--write] [NAME ...]

NAME is one of `4x128`, `4x256`, `8x512` (layers and width). TRL's side is `GRPOTrainer._generate_single_turn` of a
trainer without vLLM. The full run takes five minutes on one quiet core.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from common import machine, paired, peak_rss_of, ratio, write_section
from datasets import Dataset
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from seqtune.models.forest import attention
from seqtune.models.tiny import tokenizer
from seqtune.rollout.attention import NAME
from seqtune.rollout.transformers import generate

if TYPE_CHECKING:
    from collections.abc import Callable

GROUP, NEW, LONGEST = 8, 64, 512
SHAPES = {"4x128": (4, 128, 259), "4x256": (4, 256, 259), "8x512": (8, 512, 8192)}
"""Layers, width and vocabulary."""
SHORTEST = {"equal": LONGEST, "mixed": LONGEST // 4}
"""Tokens of the shortest prompt."""
ABOUT = """\
{prompts} prompts, groups of {group}, completions of {new} tokens (no end token can be drawn), fp32, random weights of
the Qwen3 architecture with heads of 32 and half as many key/value heads; `4x128` has 4 layers of width 128. Prompts
have {longest} tokens (`equal`) or from {quarter} to {longest} (`mixed`). TRL is `GRPOTrainer._generate_single_turn`
with `use_vllm=False`; `own cache` is our engine for models whose attention it does not know. Tokens a second are of
completions, prompts included in the time. Greedy tokens were those of TRL's path in every case."""


def model_of(name: str) -> Qwen3ForCausalLM:
    """Random weights of a shape."""
    layers, width, vocabulary = SHAPES[name]
    torch.manual_seed(0)
    made = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            num_key_value_heads=width // 64,
            head_dim=32,
            max_position_embeddings=2 * LONGEST,
            tie_word_embeddings=False,
            initializer_range=0.1,  # greedy completions that do not repeat one token
        )
    )
    made.generation_config = GenerationConfig(pad_token_id=0)
    return made


def ways(model: Qwen3ForCausalLM, rows: list[list[int]], new: int, folder: str) -> dict[str, Callable[[bool], Any]]:
    """What is compared: each completes all rows, greedily or not."""
    columns = {"prompt": ["a"] * len(rows)}
    trainer = GRPOTrainer(
        model,
        reward_funcs=[lambda completions, **_: [0.0] * len(completions)],
        args=GRPOConfig(
            folder,
            per_device_train_batch_size=len(rows),
            num_generations=GROUP,
            max_completion_length=new,
            use_cpu=True,
            bf16=False,
            report_to="none",
        ),
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer(),
    )
    never: int = model.config.vocab_size
    trainer.eos_token_ids, trainer.generation_config.eos_token_id = [never], never
    trainer.generation_kwargs["eos_token_id"] = never

    def trl(greedy: bool) -> Any:
        trainer.generation_kwargs["do_sample"] = trainer.generation_config.do_sample = not greedy
        return trainer._generate_single_turn(rows, None, {}, GROUP)[0]

    def ours(name: str) -> Callable[[bool], Any]:
        def run(greedy: bool) -> Any:
            with attention(model, name):
                return generate(
                    model,
                    rows,
                    max_new_tokens=new,
                    eos_token_id=never,
                    pad_token_id=0,
                    greedy=greedy,
                    seeds=list(range(len(rows))),
                    batch_size=len(rows),
                )

        return run

    return {"seqtune": ours(NAME), "own cache": ours("sdpa"), "TRL": trl}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(SHAPES))
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=NEW, help="of a completion")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    lines = [
        "| model | prompts | way | seconds | tokens/s | TRL's time over it | extra memory, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in given.names:
        for lengths in ("equal",) if name == "8x512" else SHORTEST:  # it takes minutes
            model = model_of(name)
            sizes = torch.linspace(SHORTEST[lengths], LONGEST, given.prompts).long().tolist()
            rows = [ids for size in sizes for ids in [torch.randint(1, 256, (size,)).tolist()] * GROUP]
            with tempfile.TemporaryDirectory() as folder:
                runs = ways(model, rows, given.tokens, folder)
                greedy = {way: run(True) for way, run in runs.items()}
                same = all(found == greedy["TRL"] for found in greedy.values())
                sampled = {way: partial(run, False) for way, run in runs.items()}
                seconds = paired(sampled, given.rounds, warm_up=False)  # greedy runs came before
                for way, run in sampled.items():
                    median = sorted(seconds[way])[len(seconds[way]) // 2]
                    extra = peak_rss_of(run) >> 20
                    times = ratio(seconds["TRL"], seconds[way])
                    speed = len(rows) * given.tokens / median
                    lines.append(f"| {name} | {lengths} | {way} | {median:.2f} | {speed:,.0f} | {times} | {extra:,} |")
                    print(lines[-1], flush=True)
                kinds = len({token for row in greedy["TRL"] for token in row})
                print(f"greedy tokens equal to TRL's: {same} ({kinds} different tokens)", flush=True)
                if not same:
                    raise SystemExit("greedy tokens differ")
    about = ABOUT.format(
        prompts=given.prompts, group=GROUP, new=given.tokens, longest=LONGEST, quarter=SHORTEST["mixed"]
    )
    command = f"    $ python tests/benchmarks/rollout.py {' '.join(sys.argv[1:])}"
    if given.write:
        title = f"Rollouts against TRL, {given.threads} thread{'s' if given.threads > 1 else ''}"
        write_section(title, "\n\n".join([about, "\n".join(lines), f"{machine()}:", command]))


if __name__ == "__main__":
    main()
