"""Optimiser steps on segment forests against TRL's, both in this process; writes a section of docs/benchmarks.md.

    python tests/benchmarks/forest.py [--threads N] [--write | [--quick] [groups] [pairs] [documents] [attention]]

The full run takes about seven minutes on one quiet core. `--quick` takes every step once and says little.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
os.environ.update(HF_DATASETS_DISABLE_PROGRESS_BARS="1", TRANSFORMERS_VERBOSITY="error", TRL_EXPERIMENTAL_SILENCE="1")

import numpy as np
import torch
from common import machine, paired, peak_rss_of, ratio, write_section
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from trl.trainer import utils as trl_utils

from seqtune.config.axes import DataSpec, EvalSpec, ModelSpec, RolloutSpec, TrainSpec
from seqtune.config.plan import Stage
from seqtune.data.sources import Examples
from seqtune.forest import flatten_groups
from seqtune.objectives.specs.dpo import Dpo
from seqtune.objectives.specs.gspo import Gspo
from seqtune.objectives.specs.sft import Sft
from seqtune.packing.specs import BestFit, Unpacked
from seqtune.parallel.specs import Single
from seqtune.peft.specs import Full
from seqtune.report.run_folder import RunFolder
from seqtune.rewards.specs import Format
from seqtune.training import policy, preference, sft
from seqtune.training.scorer import Scorer
from seqtune.training.stage import CHECKPOINTING, StageRun, stage_folder
from seqtune.training.supervised import StepRows
from seqtune_kernels.forest_attention import Layout, forest_attention

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from seqtune.forest import Flattened
    from seqtune.forest.layout import Piece

DATA = Path(os.environ.get("SEQTUNE_DATA", Path(__file__).parents[3] / "shared" / "data"))
ABOUT = """\
Optimiser steps of seqtune's trainers and TRL's on the same sequences: forward, backward, clipping and AdamW, beginning
with what the data loader hands over, so laying out a forest and padding a batch count. Both sides find the same loss.
The model is a Qwen3 of 6 layers, 512 wide (8 query heads, 4 key/value heads, feed-forward 1,536), fp32, random weights;
its 4,096 tokens are byte-pair encoding learnt from GSM8K. On a CPU TRL computes logits at every position, on a GPU at
trained tokens only; seqtune always does the latter, and "head as on a GPU" is TRL made to.

The share of attention is the time PyTorch's kernel takes for each piece of the row by itself, in the memory layout that
suits it best and with nothing to merge, divided by the time the forest takes."""

VOCABULARY, WIDTH, HEADS, KV_HEADS = 4096, 512, 8, 4
PROMPT, GROUP, COMPLETION = 512, 8, 64
PAIRS = 16
CAPACITY, ROWS = 1024, 2
"""Tokens of a packed row, and packed rows of an optimiser step."""


# The model, the data and the trainers


@cache
def read(name: str) -> list[dict[str, Any]]:
    """The rows of a file of real data."""
    if not (DATA / name).is_file():
        raise SystemExit(f"{DATA / name} is not there; SEQTUNE_DATA=FOLDER says where it is")
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-pair encoding of 4,096 tokens learnt from the training questions and answers."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        (f"{row['question']}\n{row['answer']}" for row in read("gsm8k_train.jsonl")),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<pad>", "<eos>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")


def model() -> Qwen3ForCausalLM:
    """The same random weights every time."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=6,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=WIDTH // HEADS,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        pad_token_id=0,
        eos_token_id=1,
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config)


def run_of(folder: Path, examples: Dataset, **axes: Any) -> StageRun:
    """A stage of seqtune about to run on the model."""
    given = {"packing": Unpacked(capacity=CAPACITY), "peft": Full(), "parallel": Single(), "eval": EvalSpec(), **axes}
    stage = Stage(name="benchmark", model=ModelSpec(name="benchmark", dtype="float32"), data=DataSpec(), **given)
    made = RunFolder(folder)
    stage_folder(made, stage.name).mkdir(parents=True)
    return StageRun(
        stage=stage,
        index=0,
        stages=1,
        folder=made,
        watch=lambda event: None,
        model=model(),
        tokenizer=tokenizer(),
        examples=Examples(examples, examples.select([]), {}),
        checkpoint=None,
    )


def settings(folder: Path, rows: int) -> dict[str, Any]:
    """What every configuration of TRL gets."""
    return {
        "output_dir": str(folder / "trl"),
        "per_device_train_batch_size": rows,
        "max_steps": 10,
        "learning_rate": 1e-6,
        CHECKPOINTING: False,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def training(rows: int) -> TrainSpec:
    """The same for seqtune."""
    return TrainSpec(learning_rate=1e-6, max_steps=10, batch_size=rows)


class Side:
    """A trainer, taken step by step.

    Args:
        trainer: Of seqtune or of TRL.
        prepare: What the data loader hands over, as what `training_step` takes, and the trained tokens of it where TRL
            divides by them.
    """

    def __init__(self, trainer: Any, prepare: Callable[[Any], tuple[Any, Any]]) -> None:
        self.trainer, self.prepare = trainer, prepare
        trainer.create_optimizer_and_scheduler(1000)
        trainer.current_gradient_accumulation_steps = 1

    def __call__(self, batches: Sequence[Any]) -> list[float]:
        """Optimiser steps on some batches; returns their losses."""
        return [self._step(batch) for batch in batches]

    def _step(self, batch: Any) -> float:
        one = self.trainer
        inputs, items = self.prepare(batch)
        loss = one.training_step(one.model, inputs, items)
        one.accelerator.clip_grad_norm_(one.model.parameters(), 1.0)
        one.optimizer.step()
        one.model.zero_grad()
        return float(loss)


# Results


def measure(
    title: str, sides: dict[str, tuple[Callable[[], Any], int]], repeats: int, targets: dict[str, float]
) -> list[str]:
    """Time the sides in turn, the first one being seqtune, and say how they compare.

    Args:
        title: Of the table.
        sides: What to run, and the tokens the model computes in it.
        repeats: Runs of each.
        targets: For another side, how many times faster seqtune is to be.

    Returns:
        The lines of a heading and a table.
    """
    ours = next(iter(sides))
    seconds = paired({name: run for name, (run, _) in sides.items()}, repeats, warm_up=False)
    lines = [f"### {title}", ""]
    lines += ["| | tokens computed | seconds | extra memory, MB | seqtune is faster by |", "|---|---:|---:|---:|---:|"]
    for name, (run, tokens) in sides.items():
        memory = peak_rss_of(run)
        faster = "" if name == ours else ratio(seconds[name], seconds[ours])
        wanted = f" (wanted: {targets[name]})" if name in targets else ""
        lines.append(
            f"| {name} | {tokens:,} | {np.median(seconds[name]):.2f} | {memory / 1e6:,.0f} | {faster}{wanted} |"
        )
    print(*lines, "", sep="\n", flush=True)
    return lines


def same_loss(sides: dict[str, Callable[[], list[float]]]) -> None:
    """Warm up, and stop unless all sides find the same losses in their steps, from the same weights."""
    ours, *others = ((name, run()) for name, run in sides.items())
    for name, losses in others:
        if not np.isclose(np.mean(losses), np.mean(ours[1]), rtol=2e-4, atol=1e-6):
            raise SystemExit(f"{name} has the loss {np.mean(losses)}, {ours[0]} {np.mean(ours[1])}")


# What is measured


def groups(folder: Path, repeats: int) -> list[str]:
    """One prompt with eight completions: a step of policy training on given completions."""
    prompts = Dataset.from_list([{"prompt": row["question"]} for row in read("gsm8k_train.jsonl")[:64]])
    run = run_of(
        folder,
        prompts,
        objective=Gspo(group_size=GROUP),
        rollout=RolloutSpec(max_new_tokens=COMPLETION),
        reward=Format(pattern=".*"),
        train=training(GROUP),
    )
    ours = policy.trainer(run)
    theirs = GRPOTrainer(
        model=model(),
        reward_funcs=[Scorer(run)],
        args=GRPOConfig(
            **settings(folder, GROUP),
            num_generations=GROUP,
            max_completion_length=COMPLETION,
            importance_sampling_level="sequence",
            loss_type="grpo",
            epsilon=3e-4,
            epsilon_high=4e-4,
            beta=0.0,
        ),
        train_dataset=prompts,
        processing_class=tokenizer(),
    )
    random = np.random.default_rng(0)
    tokens = np.concatenate([tokenizer()(row["question"])["input_ids"] for row in read("gsm8k_train.jsonl")[:32]])
    batch = {
        "prompt_ids": torch.from_numpy(tokens[:PROMPT]).repeat(GROUP, 1),
        "prompt_mask": torch.ones(GROUP, PROMPT, dtype=torch.long),
        "completion_ids": torch.from_numpy(random.integers(2, VOCABULARY, (GROUP, COMPLETION))),
        "completion_mask": torch.ones(GROUP, COMPLETION, dtype=torch.long),
        "advantages": torch.from_numpy(random.normal(size=GROUP)).float(),
        "num_items_in_batch": torch.tensor(GROUP * COMPLETION),
    }
    for one in (ours, theirs):
        one._prepare_inputs = lambda given: given
    padded = GROUP * (PROMPT + COMPLETION)
    sides = {
        "seqtune": (Side(ours, lambda given: (given, None)), PROMPT + GROUP * COMPLETION),
        "TRL `GRPOTrainer`": (Side(theirs, lambda given: (given, None)), padded),
    }
    runs = {name: (lambda side=side: side([batch]), count) for name, (side, count) in sides.items()}
    same_loss({name: run for name, (run, _) in runs.items()})
    title = f"Groups: a prompt of {PROMPT} tokens, {GROUP} completions of {COMPLETION}"
    return measure(title, with_head_of(runs), repeats, {"TRL `GRPOTrainer`": 3.8})


def pairs(folder: Path, repeats: int) -> list[str]:
    """Preference pairs of real solutions, right against wrong, with the reference in the step."""
    found = []
    for row in read("gsm8k_model_solutions.jsonl"):
        solutions = [value for value in row.values() if isinstance(value, dict)]
        right, wrong = ([s["solution"] for s in solutions if s["is_correct"] is kind] for kind in (True, False))
        found += [
            {"prompt": row["question"] + "\n", "chosen": chosen, "rejected": rejected}
            for chosen in right
            for rejected in wrong
        ]
    order = np.random.default_rng(0).permutation(len(found))
    examples = Dataset.from_list(found).select(order[: 65 * PAIRS])
    run = run_of(folder, examples, objective=Dpo(), train=training(PAIRS))
    theirs = DPOTrainer(
        model=model(),
        ref_model=model(),
        args=DPOConfig(**settings(folder, PAIRS), max_length=None),
        train_dataset=examples,
        processing_class=tokenizer(),
    )
    ours = preference.trainer(run)
    rows = ours.train_dataset.to_list()
    batches = [rows[start : start + PAIRS] for start in range(0, len(rows), PAIRS)]
    counts = [ours.lay(batch).tokens for batch in batches]
    saving = [count.padded / count.computed for count in counts]
    typical = int(np.argsort(saving)[len(saving) // 2])
    sides = {
        "seqtune": (Side(ours, lambda given: (StepRows(given), None)), counts[typical].computed),
        "TRL `DPOTrainer`": (Side(theirs, lambda given: (theirs.data_collator(given), None)), counts[typical].padded),
    }
    runs = {name: (lambda side=side: side([batches[typical]]), count) for name, (side, count) in sides.items()}
    same_loss({name: run for name, (run, _) in runs.items()})
    title = (
        f"Preference pairs: {PAIRS} of them, the reference included; the batch whose saving is the median of "
        f"{len(batches)} drawn at random (they save {min(saving):.2f} to {max(saving):.2f} times)"
    )
    return measure(title, with_head_of(runs), min(repeats, 2), {"TRL `DPOTrainer`": 1.8})


def documents(folder: Path, repeats: int) -> list[str]:
    """Worked answers: packed rows, and the same documents padded in random batches."""
    made = [{"prompt": row["question"] + "\n", "completion": row["answer"]} for row in read("gsm8k_train.jsonl")]
    order = np.random.default_rng(0).permutation(len(made))
    examples = Dataset.from_list(made).select(order[: 12 if repeats < 3 else 24])
    run = run_of(folder, examples, objective=Sft(), packing=BestFit(capacity=CAPACITY), train=training(ROWS))
    ours = sft.trainer(run)
    common = {**settings(folder, ROWS), "completion_only_loss": True, "shuffle_dataset": False}
    free = SFTTrainer(
        model=model(),
        args=SFTConfig(**common, packing=True, packing_strategy="bfd", padding_free=True, max_length=CAPACITY),
        train_dataset=examples,
        processing_class=tokenizer(),
    )
    rows = [row | {"loss_mask": [label != -100 for label in row["labels"]]} for row in free.train_dataset]
    batches = [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]
    padded = SFTTrainer(
        model=model(),
        args=SFTConfig(**common, packing=False, padding_free=False, max_length=None),
        train_dataset=examples,
        processing_class=tokenizer(),
    )
    alone = padded.train_dataset.to_list()
    size = -(-len(alone) // len(batches))
    in_batches = [alone[start : start + size] for start in range(0, len(alone), size)]
    filled = sum(len(some) * max(len(row["input_ids"]) for row in some) for some in in_batches)

    def collated(side: Any) -> Callable[[Any], tuple[Any, Any]]:
        def prepare(given: Any) -> tuple[Any, Any]:
            inputs = side.data_collator(given)
            return inputs, (inputs["labels"][..., 1:] != -100).sum()

        return prepare

    together = sum(len(row["input_ids"]) for row in rows)
    ours_side = Side(ours, lambda given: (StepRows(given), None))
    free_side, padded_side = Side(free, collated(free)), Side(padded, collated(padded))
    same_loss({"seqtune": lambda: ours_side(batches[:1]), "TRL padding-free": lambda: free_side(batches[:1])})
    runs = {
        "seqtune": (lambda: ours_side(batches), together),
        "TRL `SFTTrainer`, padding-free": (lambda: free_side(batches), together),
        "TRL `SFTTrainer`, padded": (lambda: padded_side(in_batches), filled),
    }
    title = (
        f"Documents: {len(alone)} of them in {len(batches)} steps; rows of {CAPACITY} tokens, {ROWS} a step, "
        f"or {size} documents a step padded to the longest"
    )
    targets = {"TRL `SFTTrainer`, padding-free": 1.0, "TRL `SFTTrainer`, padded": 1.5}
    return measure(title, with_head_of(runs), repeats, targets)


def with_head_of(runs: dict[str, tuple[Callable[[], Any], int]]) -> dict[str, tuple[Callable[[], Any], int]]:
    """The runs, and TRL's once more with the LM head on trained tokens only.

    That is what TRL does on a GPU. On a CPU it computes logits at every position; seqtune never does.
    """
    every = dict(runs)
    for name, (run, tokens) in runs.items():
        if name != "seqtune":

            def compact(run: Callable[[], Any] = run) -> Any:
                before, trl_utils._use_triton = trl_utils._use_triton, lambda device: True
                try:
                    return run()
                finally:
                    trl_utils._use_triton = before

            every[f"{name}, head as on a GPU"] = (compact, tokens)
    return every


def attention(folder: Path, repeats: int) -> list[str]:
    """Attention by itself against the speed of PyTorch's kernel on each of its pieces alone."""
    lengths = [155, 221, 98, 243, 180, 127]
    layouts = {
        f"group, {PROMPT} + {GROUP} x {COMPLETION}": flatten_groups(
            [np.zeros(PROMPT, np.int64)], [[np.zeros(COMPLETION, np.int64)] * GROUP]
        ),
        "16 pairs, 63 + 2 x 102": flatten_groups([np.zeros(63, np.int64)] * 16, [[np.zeros(102, np.int64)] * 2] * 16),
        f"6 documents, {sum(lengths):,} tokens": flatten_groups(
            [np.zeros(length, np.int64) for length in lengths], [[]] * len(lengths)
        ),
    }
    lines = ["### Attention alone, forward and backward of one layer", ""]
    lines += ["| | GFLOP | seconds | its pieces one by one | share of that speed |", "|---|---:|---:|---:|---:|"]
    for name, flat in layouts.items():
        whole, alone = attend(flat), [attend_alone(piece) for piece in flat.forest.pieces]
        seconds = paired({"forest": whole, "pieces": lambda alone=alone: [run() for run in alone]}, 10 * repeats)
        work = 4 * 3.5 * flat.forest.pairs * WIDTH / 1e9  # 2 products forward, 5 backward, 2 operations each
        medians = [np.median(seconds[side]) for side in ("forest", "pieces")]
        lines.append(
            f"| {name} | {work:.2f} | {medians[0]:.4f} | {medians[1]:.4f} | "
            f"{ratio(seconds['pieces'], seconds['forest'])} (wanted: 0.9) |"
        )
    print(*lines, "", sep="\n", flush=True)
    return lines


def attend(flat: Flattened) -> Callable[[], Any]:
    """Forward and backward of the attention of a whole forest."""
    tokens, head = flat.forest.tokens, WIDTH // HEADS
    q, k, v = (torch.randn(tokens, heads, head, requires_grad=True) for heads in (HEADS, KV_HEADS, KV_HEADS))
    upstream = torch.randn(tokens, HEADS, head)
    layout = Layout(flat.forest.pieces, flat.forest.position_ids)
    return lambda: torch.autograd.grad(
        forest_attention(q, k, v, layout, scale=head**-0.5, backend="sdpa"), (q, k, v), upstream
    )


def attend_alone(piece: Piece) -> Callable[[], Any]:
    """Forward and backward of PyTorch's own attention on one piece, in the memory layout that suits it best."""
    head = WIDTH // HEADS
    rows, columns = piece.q_end - piece.q_start, piece.k_end - piece.k_start
    q = torch.randn(1, HEADS, rows, head, requires_grad=True)
    k, v = (torch.randn(1, HEADS, columns, head, requires_grad=True) for _ in range(2))
    upstream = torch.randn(1, HEADS, rows, head)
    return lambda: torch.autograd.grad(
        torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=piece.causal), (q, k, v), upstream
    )


SECTIONS: dict[str, Callable[[Path, int], list[str]]] = {
    "groups": groups,
    "pairs": pairs,
    "documents": documents,
    "attention": attention,
}


def main() -> None:
    """Measure what the command line names, or everything."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="what to measure; everything if none")
    words.add_argument("--quick", action="store_true", help="one repeat, fewer steps: to try it out")
    words.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    words.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    given = words.parse_args()
    if given.write and (given.sections or given.quick):
        words.error("--write wants every table, measured in full")
    torch.set_num_threads(given.threads)
    tables = []
    for name in given.sections or SECTIONS:
        with TemporaryDirectory() as folder:
            tables.append(SECTIONS[name](Path(folder), 1 if given.quick else 3))
    if given.write:
        intro = f"`python tests/benchmarks/forest.py --write --threads {given.threads}` on {machine()}.\n{ABOUT}"
        title = f"Segment forests against TRL, {given.threads} thread{'s' if given.threads > 1 else ''}"
        write_section(title, "\n\n".join([intro, *("\n".join(table) for table in tables)]))


if __name__ == "__main__":
    sys.exit(main())
