"""What `seqtune pack` does and shows."""

from __future__ import annotations

import re
import sys
import time
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from seqtune.errors import SeqtuneError
from seqtune.hub import quiet
from seqtune_cli import render
from seqtune_cli.words import plan_of, print_json, recipe_of, take

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from seqtune.config.plan import Plan, Stage
    from seqtune.training.pack import Progress

_EVERY = 5.0  # seconds between lines of progress where there is no terminal


def packed_stage(plan: Plan) -> Stage:
    """The stage whose data is packed: the first that trains on packed rows.

    Raises:
        SeqtuneError: There is none, or it reads a pack already.
    """
    stage = next((stage for stage in plan.stages if stage.objective.family == "sft"), None)
    if stage is None:
        name = plan.stages[0].objective.name
        raise SeqtuneError(f"objective '{name}' packs no rows", "objective.name", "a recipe with objective=sft")
    if stage.packing.path is not None:
        raise SeqtuneError("packing.path names rows that are packed already", "packing.path", "packing.path=null")
    return stage


def write(words: Sequence[str], *, inspect: int, plot: Path | None, as_json: bool) -> None:
    """Pack what the words say, and show what was asked for.

    Raises:
        SeqtuneError: The words, the data, the tokenizer or the folder is at fault.
    """
    stage, out, workers, share = _asked(words)
    from seqtune.training.pack import pack_stage, tokenizer_of

    if share != (1, 1) and (inspect or plot):
        raise SeqtuneError("a part has no rows to show", "command line", "leave --inspect and --plot to pack merge")
    quiet()
    with progress(shown=not as_json) as tell:
        summary = pack_stage(stage, out, workers=workers, share=share, progress=tell)
    _said(f"packed into {out}" if share == (1, 1) else f"tokenised into {out}", summary, as_json)
    if plot is not None:
        draw(out, plot)
    if inspect:
        show_rows(out, inspect, tokenizer_of(out))


def dry_run(words: Sequence[str], *, as_json: bool) -> None:
    """Show what packing would give.

    Raises:
        SeqtuneError: As `write`.
    """
    stage, _, workers, _ = _asked(words)
    from seqtune.training.pack import dry_run

    quiet()
    with progress(shown=not as_json) as tell:
        found = dry_run(stage, workers=workers, progress=tell)
    if as_json:
        print_json(found)
    else:
        compared(found)


def verify(words: Sequence[str], *, as_json: bool) -> None:
    """Check a pack.

    Raises:
        SeqtuneError: Something is not as it was written.
    """
    if len(words) != 1:
        raise SeqtuneError("verify takes one folder", "command line", "seqtune pack verify DIR")
    from seqtune.training.pack import verify

    quiet()
    with render.progress("checking", shown=not as_json) as tell:
        found = verify(Path(words[0]), lambda done: tell(round(100 * done), 100))
    _said(f"{words[0]} is as it was written", found, as_json)


def merge(words: Sequence[str], *, as_json: bool) -> None:
    """Make one pack of parts.

    Raises:
        SeqtuneError: A part is missing or damaged, or no folder is named.
    """
    taken, parts = take(words, "out")
    if "out" not in taken:
        raise SeqtuneError("out= is missing", "command line", "seqtune pack merge PART PART … out=FOLDER")
    from seqtune.training.pack import merge

    quiet()
    with progress(shown=not as_json) as tell:
        summary = merge([Path(part) for part in parts], Path(taken["out"]), tell)
    _said(f"merged into {taken['out']}", summary, as_json)


@contextmanager
def progress(*, shown: bool) -> Iterator[Callable[[Progress], None]]:
    """How far packing is, on stderr: a bar on a terminal, elsewhere a line every few seconds."""
    out = Console(stderr=True, highlight=False)
    if not shown:
        yield lambda now: None
    elif not out.is_terminal:
        last = time.monotonic()

        def line(now: Progress) -> None:
            nonlocal last
            if time.monotonic() - last >= _EVERY:
                last = time.monotonic()
                print(_line(now), file=sys.stderr, flush=True)

        yield line
    else:
        with Live(console=out, transient=True, refresh_per_second=4) as live:
            yield lambda now: live.update(Group(Text(_line(now)), render.bar(round(1000 * now.done), 1000, 60)))


def compared(found: Mapping[str, Any]) -> None:
    """The packings of a dry run side by side."""
    rows = []
    for name, counts in found["packings"].items():
        bound = counts["bounds"]["l2"]
        gap = f"{counts['rows'] / bound - 1:+.2%}" if bound else ""
        lost = [counts.get(what, {}) for what in ("truncated", "cropped", "split", "dropped")]
        cut = lost[0].get("tokens", 0) + lost[1].get("tokens", 0)
        rows.append(
            [
                "padding" if name == "none" else name,
                f"{counts['rows']:,}",
                f"{counts['fill']:.2%}",
                gap,
                f"{cut:,}",
                f"{lost[2].get('documents', 0):,}",
                f"{sum(lost[3].values()):,}",
                f"{counts['attention']:.3g}",
            ]
        )
    header = ("packing", "rows", "full", "above L2", "tokens cut", "split", "dropped", "attention Σl²")
    render.console().print(render.table(rows, header, numbers=tuple(range(1, len(header)))))
    counts = next(iter(found["packings"].values()))
    rest = "".join(f", {count:,} {reason}" for reason, count in found["skipped"].items())
    render.console().print(Text(f"{counts['documents']:,} documents, {counts['tokens']:,} tokens{rest}", style="dim"))


def show_rows(folder: Path, count: int, tokenizer: Any) -> None:
    """The first rows decoded: each document under its place, what is trained in green, or between ⟦ and ⟧."""
    from seqtune.packing.artefact import Rows

    out, rows = render.console(), Rows(folder)
    for number in range(min(count, len(rows))):
        row = rows[number]
        out.print(Text(f"row {number + 1} of {len(rows):,}: {len(row.input_ids):,} tokens", style="bold"))
        start = 0
        for length, document, begin in zip(row.seq_lengths, row.doc_ids, row.starts, strict=True):
            out.print(Text(f"── document {document + 1}, tokens {begin + 1} to {begin + length}", style="cyan"))
            part = slice(start, start + int(length))
            out.print(trained_text(row.input_ids[part], row.loss_mask[part], tokenizer, plain=not out.is_terminal))
            start = part.stop


def trained_text(ids: Any, mask: Any, tokenizer: Any, *, plain: bool) -> Text:
    """The text of tokens with the trained ones marked."""
    import numpy as np

    shown = Text()
    edges = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(ids)]
    for first, last in pairwise(edges):
        words = tokenizer.decode(ids[first:last].tolist())
        is_trained = bool(mask[first])
        shown.append(f"⟦{words}⟧" if plain and is_trained else words, style="green" if is_trained else None)
    return shown


def draw(folder: Path, file: Path) -> None:
    """Lengths of documents and fill of rows as PNG."""
    import numpy as np

    from seqtune.packing.artefact import Rows
    from seqtune.report.packing import plot

    rows = Rows(folder)
    every = [rows[number] for number in range(len(rows))]
    lengths = np.concatenate([row.seq_lengths for row in every])
    capacity = int(rows.manifest["packing"]["capacity"])
    plot(lengths, np.array([len(row.input_ids) for row in every]), capacity, file)


def _line(now: Progress) -> str:
    parts = [f"{now.phase} {now.done:.0%}", f"{now.documents:,} documents", f"{now.tokens:,} tokens"]
    parts += [f"{now.rate:,.0f} tokens/s"] if now.rate else []
    parts += [f"{render.clock(now.left)} left"] if now.left is not None else []
    return "  ".join(parts)


def _asked(words: Sequence[str]) -> tuple[Stage, Path, int, tuple[int, int]]:
    """What to pack, where to, in how many processes, and which part of how many."""
    taken, rest = take(words, "recipe", "out", "workers", "shard")
    file = next((word.partition("=")[2] for word in rest if word.startswith("data.path=")), None)
    if "recipe" not in taken and file is not None:
        taken["recipe"] = "sft_tiny"
        rest = rest if any(word.startswith("data=") for word in rest) else ["data=text", *rest]
        name = Path(file).name.partition(".")[0]
    else:
        name = Path(recipe_of(taken)).stem
    _, plan = plan_of(rest, taken["recipe"])
    workers = taken.get("workers", "1")
    if not re.fullmatch(r"[1-9]\d*", workers):
        raise SeqtuneError(f"workers={workers} is no number of processes", "command line", "workers=4")
    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", taken.get("shard", "1/1"))
    if found is None or int(found[1]) > int(found[2]):
        raise SeqtuneError(f"shard={taken['shard']} is no part of a whole", "command line", "shard=1/4 to shard=4/4")
    share = int(found[1]), int(found[2])
    suffix = "" if share == (1, 1) else f"-{share[0]}-of-{share[1]}"
    return packed_stage(plan), Path(taken.get("out", f"packs/{name}{suffix}")), int(workers), share


def _said(title: str, summary: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(summary)
    else:
        render.summary(title, summary)
