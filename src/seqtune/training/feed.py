"""What hands a trainer the rows of each optimiser step when they are not simply shuffled."""

from __future__ import annotations

import math
import os
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from seqtune.config.order import Shuffle
from seqtune.data.stream import Mixture
from seqtune.data.tokenize import tokenize
from seqtune.errors import SeqtuneError
from seqtune.packing import order
from seqtune.packing.balance import Cost, balance, default_cost
from seqtune.parallel.specs import Several
from seqtune.training.stream import PackedStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import datasets
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from seqtune.data.rows import BadRows
    from seqtune.packing.bins import Bins
    from seqtune.training.stage import StageRun


class Ordered(Sampler[list[int]]):
    """The rows that one process takes of each step.

    Every process takes as many, dealt so that none waits long for another. A step whose rows are no multiple of the
    processes is dealt in the order given; one with fewer rows leaves some of them none.

    Args:
        steps: Rows of each step of all processes together.
        rank: Of this process.
        processes: How many there are.
        costs: Of each row of the data set, in any unit. [rows]
    """

    def __init__(self, steps: Bins, rank: int, processes: int, costs: NDArray[np.float64]) -> None:
        self.steps, self.rank, self.processes, self.costs = steps, rank, processes, costs

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            yield (
                deal(step, self.rank, self.processes)
                if len(step) % self.processes
                else step[balance(self.costs[step], self.processes).slots[:, self.rank]]
            ).tolist()

    def waiting(self) -> tuple[float, float]:
        """Share of all processes' time spent waiting for the slowest, over all steps: rows in the order given, and as
        they are dealt.
        """
        found = [
            (dealt.before, dealt.after)
            for step in self.steps
            if not len(step) % self.processes
            for dealt in [balance(self.costs[step], self.processes)]
        ]
        before, after = np.mean(found, axis=0) if found else (0.0, 0.0)
        return float(before), float(after)


def deal(rows: NDArray[np.int64], rank: int, processes: int) -> NDArray[np.int64]:
    """The part of a step's rows that one process takes: neighbours, as many as the others take, or one less."""
    return np.array_split(rows, processes)[rank]


class StreamSteps(Dataset[list[dict[str, Any]]]):
    """The steps of a packed stream, to be asked for in order; every process reads the same stream and keeps its part.

    Args:
        make: Opens the stream at its beginning.
        rows: Rows a step takes of each process.
        count: Steps.
        rank: Of this process.
        processes: How many there are.
        state: What `state` gave after an earlier step; None begins at the first.
    """

    def __init__(
        self,
        make: Callable[[], PackedStream],
        *,
        rows: int,
        count: int,
        rank: int,
        processes: int,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.rows, self.count, self.rank, self.processes = rows, count, rank, processes
        self.stream = make()
        self.at = 0
        """Steps that were given."""
        if state is not None:
            self.stream.restore(state["stream"])
            self.at = state["step"]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, step: int) -> list[dict[str, Any]]:
        if step != self.at:
            raise ValueError(f"step {step} of a stream is asked for, which stands at step {self.at}")
        whole = take(self.stream, self.rows * self.processes)
        if len(whole) < self.rows * self.processes:
            raise SeqtuneError(
                f"the data ends after {step} steps; {self.count} were asked for",
                "train.max_steps and data.stop",
                f"train.max_steps={step}, or data.stop=cycle",
            )
        self.at += 1
        return whole[self.rank * self.rows : (self.rank + 1) * self.rows]

    def state(self) -> dict[str, Any]:
        """Where the stream stands after the steps given so far, as plain JSON; the same in every process."""
        return {"step": self.at, "stream": self.stream.state()}


def ordered(run: StageRun, rows: datasets.Dataset) -> Ordered:
    """The steps of a stage whose rows are all there, in the order its packing names."""
    stage = run.stage
    train, spec, processes = stage.train, stage.packing, stage.parallel.processes
    each = train.batch_size * train.accumulate * processes
    lengths = np.fromiter(map(sum, rows["seq_lengths"]), np.int64, len(rows))
    sizes = {"rows": each, "tokens": each * spec.capacity, "seed": train.seed}
    count = train.max_steps
    if count is None:
        if isinstance(spec.order, Shuffle):  # whose passes need not end with a step
            count = max(1, math.ceil(train.epochs * len(rows) / each))
        else:
            count = max(1, math.ceil(train.epochs * order.steps_of_a_pass(spec.order, lengths, **sizes)))
    documents = rows["seq_lengths"]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in documents])])
    each_length = np.fromiter(chain.from_iterable(documents), np.int64, int(offsets[-1]))
    measured = stage.parallel.row_cost if isinstance(stage.parallel, Several) else None
    cost = Cost(*measured) if measured else default_cost(run.model.config.get_text_config().hidden_size)
    costs = cost.of(each_length, offsets)
    feed = Ordered(order.steps(spec.order, lengths, count=count, **sizes), _rank(), processes, costs)
    if processes > 1:
        before, after = feed.waiting()
        run.notice(
            f"rows dealt by attention cost: waiting for the slowest process {before:.1%} before, {after:.1%} after"
        )
    return feed


def open_stream(run: StageRun) -> PackedStream:
    """The packed stream of a stage, at its beginning."""
    spec = run.stage.packing
    encode = partial(_encode, run.tokenizer)
    return PackedStream(Mixture(run.stage.data, encode), spec.online(), spec)  # type: ignore[arg-type]  # a rule


def stream_steps(run: StageRun, state: dict[str, Any] | None) -> StreamSteps:
    """The steps of a stage whose rows come out of a stream.

    Without `train.max_steps` the stream is read once to its end to count them: the learning rate needs to know.
    """
    train, processes = run.stage.train, run.stage.parallel.processes
    each = train.batch_size * train.accumulate
    count = train.max_steps
    if count is None:
        count = sum(1 for _ in open_stream(run)) // (each * processes)
        if not count:
            raise SeqtuneError(
                "the data ends before the first step is full",
                "train.batch_size and data.stop",
                "a smaller train.batch_size, or data.stop=cycle with train.max_steps",
            )
    return StreamSteps(
        partial(open_stream, run), rows=each, count=count, rank=_rank(), processes=processes, state=state
    )


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _encode(tokenizer: PreTrainedTokenizerBase, examples: datasets.Dataset, bad: BadRows) -> datasets.Dataset:
    return tokenize(examples, tokenizer, bad)


def take(stream: PackedStream, count: int) -> list[dict[str, Any]]:
    """The next rows, fewer at the end."""
    return [row for _, row in zip(range(count), stream, strict=False)]
