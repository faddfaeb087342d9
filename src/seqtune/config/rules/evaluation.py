"""Rules of evaluations, between stages, during training and alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seqtune.config.rules.violation import Violation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from seqtune.config.plan import Stage


def evaluation_judges(stage: Stage) -> Iterator[Violation]:
    if stage.eval.name == "perplexity":
        return
    if stage.reward is None:
        yield Violation(
            f"eval '{stage.eval.name}' needs a reward to judge completions",
            ("eval.name", "reward"),
            "reward=math_equiv, or eval=perplexity",
        )
    if stage.data.format not in ("prompt_answer", "prompt_completion", "groups"):
        yield Violation(
            f"eval '{stage.eval.name}' needs prompts to complete; data of the format '{stage.data.format}' has none",
            ("data.format", "eval.name"),
            "data of the format prompt_answer or prompt_completion, or eval=perplexity",
        )


def eval_samples(stage: Stage) -> Iterator[Violation]:
    spec = stage.eval
    if spec.name == "pass_at_k":
        if max(spec.k) > spec.samples:
            yield Violation(
                f"pass@{max(spec.k)} needs at least {max(spec.k)} samples a prompt, eval.samples is {spec.samples}",
                ("eval.samples", "eval.k"),
                f"eval.samples={max(spec.k)}",
            )
        return
    if spec.samples != 1 or spec.k != (1,):
        yield Violation(
            f"eval '{spec.name}' takes one completion a prompt",
            ("eval.samples", "eval.k", "eval.name"),
            "eval=pass_at_k",
        )
    if spec.temperature != 1.0:
        yield Violation(f"eval '{spec.name}' samples nothing", ("eval.temperature", "eval.name"), "eval=pass_at_k")


def eval_entropy(stage: Stage) -> Iterator[Violation]:
    spec = stage.eval
    if spec.name != "perplexity":
        return
    for field, asked in (("stop_entropy", spec.stop_entropy is not None), ("entropy", spec.entropy)):
        if asked:
            yield Violation(
                f"eval 'perplexity' makes no completions, so eval.{field} has none to look at",
                (f"eval.{field}", "eval.name"),
                "eval=greedy",
            )


def eval_between_stages(stage: Stage) -> Iterator[Violation]:
    if not stage.eval.between_stages:
        return
    yield from evaluation_judges(stage)
    if not stage.data.eval_size and getattr(stage.data, "eval_path", None) is None:
        yield Violation(
            "eval.between_stages needs held-out examples, and none are held out",
            ("eval.between_stages", "data.eval_size"),
            "data.eval_size=500, or data.eval_path=FILE",
        )


def evaluates_during_training(stage: Stage) -> Iterator[Violation]:
    if stage.train.eval_every and not stage.data.eval_size and getattr(stage.data, "eval_path", None) is None:
        yield Violation(
            "train.eval_every needs held-out examples, and none are held out",
            ("train.eval_every", "data.eval_size"),
            "data.eval_size=200, or data.eval_path=FILE",
        )
