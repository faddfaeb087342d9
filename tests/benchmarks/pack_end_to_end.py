"""From files to packed rows on disk: `seqtune pack` against the preparation of TRL's `SFTTrainer`.

    python tests/benchmarks/pack_end_to_end.py [--times 50] [--workers 2] [--repeats 3] [--write]

Both sides get the same documents, the same trained BPE tokenizer and the same number of processes. TRL starts from a
data set that is loaded already and is timed over `SFTTrainer._prepare_dataset`; seqtune is timed over reading, hashing,
tokenising, packing and writing with `fsync`. Then, on seqtune's pack: gathering and writing the rows alone, and reading
rows at random.
"""

from __future__ import annotations

import argparse
import json
import os
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from seqtune.config.plan import Stage

DATA = Path(os.environ.get("SEQTUNE_DATA", Path(__file__).parents[3] / "shared" / "data"))
CAPACITY = 4096


def gsm8k(folder: Path, times: int) -> Path:
    """Questions and answers, each `times` times."""
    rows = [json.loads(line) for line in (DATA / "gsm8k_train.jsonl").read_text().splitlines()]
    lines = [json.dumps({"prompt": row["question"] + "\n", "completion": row["answer"]}) for row in rows]
    path = folder / "gsm8k.jsonl"
    with path.open("w") as file:
        for _ in range(times):
            file.writelines(f"{line}\n" for line in lines)
    return path


def stdlib(folder: Path) -> Path:
    """The sources of Python's standard library, a document each."""
    path = folder / "stdlib.jsonl"
    with path.open("w") as file:
        for source in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
            if "site-packages" in source.parts:
                continue
            try:
                text = source.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
            if text.strip():
                file.write(json.dumps({"text": text}) + "\n")
    return path


def tokenizer_of(folder: Path, files: list[Path]) -> Path:
    """A byte-level BPE of 8,192 tokens, trained on the first documents of the files."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rules = Tokenizer(models.BPE())
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=8192, initial_alphabet=alphabet, special_tokens=["<end>"])
    texts = []
    for path in files:
        with path.open() as file:
            texts += [" ".join(json.loads(line).values()) for line, _ in zip(file, range(2000), strict=False)]
    rules.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=rules, eos_token="<end>", pad_token="<end>").save_pretrained(
        folder / "bpe"
    )
    return folder / "bpe"


def stage_of(path: Path, tokenizer: Path, form: str) -> Stage:
    from seqtune.config.axes import DataSpec, ModelSpec
    from seqtune.packing.specs import BestFit
    from seqtune_cli.words import plan_of

    _, plan = plan_of([], "sft_tiny")
    return plan.stages[0].model_copy(
        update={
            "model": ModelSpec(name=str(tokenizer)),
            "data": DataSpec(path=str(path), format=form),
            "packing": BestFit(capacity=CAPACITY, on_overflow="split"),
        }
    )


def trl_of(path: Path, tokenizer: Path, workers: int) -> Callable[[], Any]:
    """TRL's preparation of the documents, on a data set that is loaded already."""
    import datasets
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from seqtune.config.axes import TinyModelSpec
    from seqtune.models.load import load_model

    found = AutoTokenizer.from_pretrained(tokenizer)
    rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(path.parent / "cache"))
    datasets.disable_caching()
    config = SFTConfig(
        output_dir=str(path.parent / "trl"),
        packing=True,
        packing_strategy="bfd_split",
        padding_free=True,
        max_length=CAPACITY,
        dataset_num_proc=workers if workers > 1 else None,
        use_cpu=True,
        report_to="none",
    )
    small = TinyModelSpec(name="tiny", hidden_size=32, layers=1, heads=2, kv_heads=1, intermediate_size=32)
    trainer = SFTTrainer(
        model=load_model(small, device="cpu"), args=config, train_dataset=rows.select(range(8)), processing_class=found
    )
    return lambda: trainer._prepare_dataset(rows, found, config, True, None, "train")


def compared(name: str, path: Path, form: str, tokenizer: Path, workers: int, repeats: int) -> list[str]:
    from common import paired, ratio

    from seqtune.training.pack import pack_stage

    stage, made = stage_of(path, tokenizer, form), iter(range(1000))
    theirs_run = trl_of(path, tokenizer, workers)
    ours: list[dict[str, Any]] = []
    theirs: list[int] = []

    def seqtune() -> None:
        ours.append(pack_stage(stage, path.parent / f"{name}-{next(made)}", workers=workers))

    def trl() -> None:
        rows = theirs_run()
        theirs.append(sum(map(sum, rows["seq_lengths"][:])) if not theirs else theirs[0])

    seconds = paired({"TRL": trl, "seqtune": seqtune}, repeats, warm_up=False)
    counts, faster = ours[0], ratio(seconds["TRL"], seconds["seqtune"])
    speeds = {"TRL": theirs[0] / np.median(seconds["TRL"]), "seqtune": counts["tokens"] / np.median(seconds["seqtune"])}
    print(f"{name}: {counts['documents']:,} documents, {counts['tokens']:,} tokens (TRL {theirs[0]:,})")
    for side, speed in speeds.items():
        print(f"  {side}: {speed / 1e6:.2f} Mtok/s ({np.median(seconds[side]):.1f} s)")
    print(f"  seqtune is {faster} times as fast")
    return [
        f"| {name} | {counts['documents']:,} | {counts['tokens'] / 1e6:.1f} M | {speeds['TRL'] / 1e6:.2f} "
        f"| {speeds['seqtune'] / 1e6:.2f} | {faster} |"
    ]


def materialised(folder: Path, path: Path, tokenizer: Path) -> tuple[float, float]:
    """Tokens a second of gathering and writing rows, and rows a second of reading them at random."""
    from seqtune.packing import artefact
    from seqtune.training import pack

    stage = stage_of(path, tokenizer, "prompt_completion")
    found, spec, origin = pack._prepared(stage)
    part = pack._tokenised(stage, found, origin, folder / "tokens", 1, (1, 1), lambda now: None)
    store, _ = pack._store([(folder / "tokens", part)])
    arranged = pack._arranged(store, spec)
    speeds = []
    for _ in range(3):
        began = time.perf_counter()
        artefact.write(folder / "rows", arranged, store, spec, origin, arranged.counts)
        speeds.append(arranged.counts["tokens"] / (time.perf_counter() - began))
    rows = artefact.Rows(folder / "rows")
    full = [number for number in range(len(rows)) if len(rows[number].input_ids) > 0.99 * CAPACITY]
    chosen = np.random.default_rng(0).choice(full, 200_000).tolist()
    ids, mask = np.empty(CAPACITY, dtype=np.int32), np.empty(CAPACITY, dtype=np.uint8)
    began = time.perf_counter()
    for number in chosen:
        row = rows[number]
        size = len(row.input_ids)
        ids[:size], mask[:size] = row.input_ids, row.loss_mask
    read = len(chosen) / (time.perf_counter() - began)
    print(f"rows alone: {float(np.median(speeds)) / 1e6:.0f} Mtok/s gathered, hashed and written")
    print(f"random rows of {CAPACITY} tokens, copied: {read:,.0f} rows/s ({len(full):,} rows)")
    return float(np.median(speeds)), read


def main() -> None:
    said = argparse.ArgumentParser(description=__doc__)
    said.add_argument("--times", type=int, default=50)
    said.add_argument("--workers", type=int, default=2)
    said.add_argument("--repeats", type=int, default=3)
    said.add_argument("--write", action="store_true", help="put the results into docs/benchmarks.md")
    asked = said.parse_args()
    from seqtune.hub import quiet

    quiet()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        talks, code = gsm8k(folder, asked.times), stdlib(folder)
        tokenizer = tokenizer_of(folder, [talks, code])
        table = compared(f"GSM8K ×{asked.times}", talks, "prompt_completion", tokenizer, asked.workers, asked.repeats)
        table += compared("Python library", code, "text", tokenizer, asked.workers, asked.repeats)
        speed, read = materialised(folder, talks, tokenizer)
    if asked.write:
        from common import machine, write_section

        head = "| documents of | how many | tokens | TRL, Mtok/s | seqtune, Mtok/s | times as fast |"
        command = f"python tests/benchmarks/pack_end_to_end.py --times {asked.times} --workers {asked.workers} --write"
        write_section(
            "Packing from files",
            f"Command: `{command}`. {machine()}, {asked.workers} processes on both sides. TRL: "
            "`SFTTrainer._prepare_dataset` on a data set in memory-mapped Arrow; seqtune: `seqtune pack` on the jsonl "
            f"file.\n\n{head}\n|---|---|---|---|---|---|\n" + "\n".join(table) + "\n\n"
            f"Gathering, hashing and writing rows alone, one process: {speed / 1e6:.0f} Mtok/s. Copying rows of "
            f"{CAPACITY:,} tokens at random out of the mapped shards: {read:,.0f} rows/s.",
        )


if __name__ == "__main__":
    main()
