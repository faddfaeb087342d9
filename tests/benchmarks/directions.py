"""Direction checks: does a method differ from its neighbour as its paper says? Writes docs/directions.md.

    OMP_NUM_THREADS=1 python tests/benchmarks/directions.py [CHECK ...] [--write]

Toy tasks and models of 0.1 million weights: only the sign of a difference means something. A check takes two to
three minutes of one thread.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from common import machine, write_section
from direction_loop import Task, encode, imitate, improve, model, padded, sampled, scores, success

from seqtune.objectives.a_lol import fit_value, leftover_advantages
from seqtune.objectives.specs.a_lol import ALol
from seqtune.objectives.specs.grpo import Grpo
from seqtune.objectives.specs.gspo import Gspo
from seqtune.objectives.specs.prefix_rft import PrefixRft
from seqtune.objectives.specs.tempo import Tempo

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

DOCS = Path(__file__).parents[2] / "docs"
HEAD = """# Direction checks

A direction check asks whether a method differs from its neighbour in the direction its paper says, on a toy task that
isolates what the method is about. **Only the sign of a difference means something**: models have two layers of width 64
and random weights, tasks a few characters. No number here says anything about a benchmark or a real model.

Arms of a check start from the same weights and have the same budget, learning rate, optimiser (AdamW, gradients clipped
to norm 1), group size, prompts and seeds; they differ in the objective alone, and these numbers are fixed in
`tests/benchmarks/directions.py`. Objectives are seqtune's own (`Tempo().build_advantage()`, `.build()`), completions
come from its rollout, the loop around them is `tests/benchmarks/direction_loop.py`. Success is the exact probability
of a completion that earns 1, mean over the prompts. Tables have the mean over seeds ± the standard deviation and, in
brackets, the smallest and the largest.

Tasks, budgets and learning rates were chosen in trials with seeds 0 to 4, for all arms of a check at once; the trials
that decided are told. The tables are of seeds 10 and on; where these were seen before a set-up was changed, its section
says so.

A direction *appears* where the claim of its section holds for the mean and for at least four fifths of the seeds (of
lost runs: for their number); otherwise the section says that it does not.
"""
COLOURS = ("#2f81c7", "#d9822b", "#3f9c5a", "#b65fa8")
FIRST_SEED = 10
"""Seeds below it served to choose the set-ups."""
AGREE = 0.8
"""Share of the seeds that must show a direction."""


class Arm(NamedTuple):
    """What one run of one arm came to.

    Args:
        numbers: By column of the table; NaN where there is none.
        curves: Success by what is drawn; a point each rollout, or each ten steps.
    """

    numbers: dict[str, float]
    curves: dict[str, list[float]]


class Check(NamedTuple):
    """One direction.

    Args:
        title: Heading.
        about: Task, arms and budget, with the claim.
        axis: What the curves run over.
        run: `(seed, fraction of the budget) -> arms`.
        verdict: Of the arms of all seeds: whether the direction appears, and what was found, in a sentence.
    """

    title: str
    about: str
    axis: str
    run: Callable[[int, float], dict[str, Arm]]
    verdict: Callable[[Sequence[dict[str, Arm]]], tuple[bool, str]]


def agreed(pairs: Sequence[tuple[float, float]]) -> tuple[bool, int]:
    """Of `(better, worse)` a seed: whether the direction appears, and in how many seeds."""
    right = sum(better > worse for better, worse in pairs)
    means = [statistics.fmean(side) for side in zip(*pairs, strict=True)]
    return means[0] > means[1] and right >= AGREE * len(pairs), right


def digits(count: int, random: torch.Generator) -> str:
    """Random digits."""
    return "".join(map(str, torch.randint(10, (count,), generator=random).tolist()))


# TEMPO: credit where completions part

CORRIDORS, GOALS, STEPS = 4, 8, 10
TEMPO_ROLLOUTS = 250
ABOUT_TEMPO = f"""\
A completion names a corridor in its second token and then walks {STEPS} steps at random. Each of {GOALS} goals is
reached through one of {CORRIDORS} corridors, whatever the steps: one token decides, the others are noise. TEMPO's
credit falls on the token at which completions of a group part; GRPO's is the same on all. The policy has been taught
to walk through random corridors. Both arms: {TEMPO_ROLLOUTS} rollouts of 8 prompts with 8 completions, one update
each, learning rate 5e-4, `epsilon_high=0.28`, `aggregation=token_mean`, `beta=0`. A run that does not get to 90 %
counts {TEMPO_ROLLOUTS + 1} rollouts.

Trials with 16 goals, 6 steps and 120 rollouts: at 3e-4 neither arm got to 90 %; at 1e-3 TEMPO was first with one seed,
GRPO with another, neither got there with the third. With 8 goals the budget was raised from 150 rollouts to 250.

Claim: TEMPO gets to 90 % success in fewer rollouts.
"""


def paths(seed: int) -> tuple[Task, list[tuple[Tensor, list[int]]]]:
    """Goals, each with the corridor that leads there, and walks through random corridors."""
    random = torch.Generator().manual_seed(seed)
    prompts = torch.tensor([encode(chr(ord("a") + goal)) for goal in range(GOALS)])
    corridors = torch.randint(CORRIDORS, (GOALS,), generator=random).tolist()
    right = torch.tensor([encode(f"={corridor}") for corridor in corridors])
    walks = [
        (prompts[n % GOALS], encode(f"={int(torch.randint(CORRIDORS, (), generator=random))}{digits(STEPS, random)}."))
        for n in range(1024)
    ]
    return Task(prompts, right, STEPS + 3, {"all": torch.arange(GOALS)}), walks


def tempo(seed: int, fraction: float) -> dict[str, Arm]:
    """Rollouts until 90 % of the completions take the right corridor."""
    task, walks = paths(seed)
    start = model(seed)
    imitate(start, walks, steps=int(200 * fraction), learning_rate=1e-3, seed=seed)
    rollouts = int(TEMPO_ROLLOUTS * fraction)
    arms = {
        "GRPO": Grpo(beta=0.0, epsilon_high=0.28, aggregation="token_mean"),
        "TEMPO": Tempo(beta=0.0, epsilon_high=0.28, aggregation="token_mean"),
    }
    found = {}
    for name, objective in arms.items():
        reached = improve(start, task, objective, rollouts=rollouts, prompts=8, learning_rate=5e-4, seed=seed)
        curve = reached.success["all"]
        first = next((n for n, value in enumerate(curve) if value >= 0.9), rollouts + 1)
        numbers = {"rollouts to 90 %": float(first), "success at the start": curve[0], "at the end": curve[-1]}
        found[name] = Arm(numbers, {name: curve})
    return found


def of_tempo(seeds: Sequence[dict[str, Arm]]) -> tuple[bool, str]:
    column = "rollouts to 90 %"
    pairs = [(-arms["TEMPO"].numbers[column], -arms["GRPO"].numbers[column]) for arms in seeds]
    appears, right = agreed(pairs)
    grpo, tempo = (statistics.fmean(arms[name].numbers[column] for arms in seeds) for name in ("GRPO", "TEMPO"))
    return appears, f"TEMPO is there first in {right} of {len(pairs)} seeds: {tempo:.1f} against {grpo:.1f} rollouts."


# Prefix-RFT: demonstrations where nothing is ever right

CODE, PROMPTS = 5, 8
PREFIX_ROLLOUTS = 400
ABOUT_PREFIX = f"""\
Each of {2 * PROMPTS} prompts has a code of {CODE} random digits to be known by heart. The policy was taught codes a
third of which are right for the {PROMPTS} easy prompts, and random ones for the {PROMPTS} hard prompts: it finds such
a code once in 100,000 tries, so hardly a hard prompt's group has rewards that differ. Prefix-RFT lets one completion
of each group go on from the beginning of the right code. Both arms: {PREFIX_ROLLOUTS} rollouts of 8 prompts (easy and
hard) with 8 completions, one update each, learning rate 3e-4, `advantage=centered`, `aggregation=constant`,
`bound=3`, `beta=0`. The reward in the table is that of completions without a demonstration's help, mean over the run.

In a trial at 1e-3 (one seed, 200 rollouts) both arms were unstable: GRPO lost the easy prompts, Prefix-RFT ended at
0.4 % on the hard ones. With codes of 6 digits and 300 rollouts at 3e-4 (seeds 10 to 14) GRPO ended at 0.0 %,
Prefix-RFT at 21.9 % ± 25.7 % (0.0 % to 55.3 %): some seeds had learnt nothing yet.

Claim: GRPO's success on hard prompts stays below 1 %, Prefix-RFT's gets above it.
"""


def codes(seed: int) -> tuple[Task, list[tuple[Tensor, list[int]]]]:
    """Easy prompts, a third of whose texts are right, and hard ones, none of whose texts are."""
    random = torch.Generator().manual_seed(seed)
    prompts = torch.tensor([encode(kind + chr(ord("a") + n)) for kind in "eh" for n in range(PROMPTS)])
    secrets = [digits(CODE, random) for _ in range(2 * PROMPTS)]
    texts = []
    for n in range(2048):
        which = n % (2 * PROMPTS)
        known = which < PROMPTS and float(torch.rand((), generator=random)) < 1 / 3
        texts.append((prompts[which], encode((secrets[which] if known else digits(CODE, random)) + ".")))
    right = torch.tensor([encode(secret + ".") for secret in secrets])
    groups = {"easy": torch.arange(PROMPTS), "hard": torch.arange(PROMPTS, 2 * PROMPTS)}
    return Task(prompts, right, CODE + 1, groups), texts


def prefix_rft(seed: int, fraction: float) -> dict[str, Arm]:
    """Success on prompts that the policy never gets right by itself."""
    task, texts = codes(seed)
    start = model(seed)
    imitate(start, texts, steps=int(300 * fraction), learning_rate=1e-3, seed=seed)
    arms = {
        "GRPO": Grpo(beta=0.0, advantage="centered", aggregation="constant", bound=3.0),
        "Prefix-RFT": PrefixRft(),
    }
    found = {}
    for name, objective in arms.items():
        reached = improve(
            start,
            task,
            objective,
            rollouts=int(PREFIX_ROLLOUTS * fraction),
            prompts=8,
            learning_rate=3e-4,
            seed=seed,
        )
        rewarded = [value for value in reached.rewards["hard"] if value == value]
        numbers = {
            "hard: success at the end": reached.success["hard"][-1],
            "hard: mean reward, unaided": statistics.fmean(rewarded) if rewarded else float("nan"),
            "easy: success at the start": reached.success["easy"][0],
            "easy: at the end": reached.success["easy"][-1],
        }
        found[name] = Arm(numbers, {f"{name}, {kind}": curve for kind, curve in reached.success.items()})
    return found


LEARNT = 0.01
"""Success on hard prompts that is more than chance, by a factor of a thousand."""


def of_prefix(seeds: Sequence[dict[str, Arm]]) -> tuple[bool, str]:
    column = "hard: success at the end"
    alone, led = ([arms[name].numbers[column] for arms in seeds] for name in ("GRPO", "Prefix-RFT"))
    learnt = sum(value >= LEARNT for value in led)
    return max(alone) < LEARNT and learnt >= AGREE * len(seeds), (
        f"On hard prompts GRPO ends at {statistics.fmean(alone):.1%} (at most {max(alone):.1%}), Prefix-RFT at "
        f"{statistics.fmean(led):.1%}, with {learnt} of {len(seeds)} seeds above {LEARNT:.0%}."
    )


# GSPO: a mixture of experts under stale updates

DIGITS = 3
MOE_ROLLOUTS, UPDATES, WARM_UP = 100, 4, 20
FASTER = 5e-4
"""Learning rate at which more runs are lost."""
ABOUT_MOE = f"""\
Additions of two numbers of {DIGITS} digits, digit by digit (`123+456=05,07,09.`), by a model whose feed-forward
layers are four experts, of which each token takes one. It was taught texts in which one digit in ten is random. Each
rollout (8 prompts with 8 completions, {MOE_ROLLOUTS} of them) gives {UPDATES} updates, so three of four are off
policy; learning rate 4e-4, risen to over the first {WARM_UP} updates, `beta=0`; each method clips in its own range
(GRPO 0.2, GSPO 3e-4 and 4e-4). A run is lost when its mean success over the last tenth is below half of that over the
best tenth.

Whether runs are lost depends on the learning rate more than on the objective. Without the rise, of three trials GRPO
lost 1 and GSPO 0 at 4e-4 (120 rollouts), 3 and 1 at 5e-4; with five other seeds, 10 to 14, both lost 4 of 5 at 5e-4.
With 8 updates a rollout, 1 and 0 of three at 3e-4 (100 rollouts) and all of both at 5e-4 (60 rollouts).

Claim: GSPO loses fewer runs.
"""


def sums(seed: int, *, digits_each: int, wrong: float, texts: int) -> tuple[Task, list[tuple[Tensor, list[int]]]]:
    """Digit by digit additions, and texts in which each digit is wrong with probability `wrong`."""
    random = torch.Generator().manual_seed(seed)
    prompts, right, rows = [], [], []
    for n in range(texts):
        one, other = digits(digits_each, random), digits(digits_each, random)
        parts = [f"{int(a) + int(b):02d}" for a, b in zip(one, other, strict=True)]
        answer = ",".join(parts)
        noisy = "".join(
            digits(1, random) if letter.isdigit() and float(torch.rand((), generator=random)) < wrong else letter
            for letter in answer
        )
        prompt = torch.tensor(encode(f"{one}+{other}="))
        rows.append((prompt, encode(noisy + ".")))
        if n < 64:
            prompts.append(prompt)
            right.append(encode(answer + "."))
    task = Task(torch.stack(prompts), torch.tensor(right), len(right[0]) + 2, {"all": torch.arange(len(prompts))})
    return task, rows


ABOUT_MOE_FASTER = """\
As above, with learning rate 5e-4. Before this table, GRPO had lost 3 of 3 runs and GSPO 1 with seeds 0 to 2, and 4 of 5
and 2 with seeds 15 to 19; with it, 10 of 13 and 7: too few runs to tell.

Claim: GSPO loses fewer runs.
"""


def collapsed(curve: Sequence[float]) -> bool:
    """Whether the end (mean of the last tenth) is below half of the best stretch as long before it."""
    width = max(len(curve) // 10, 1)
    means = [statistics.fmean(curve[place : place + width]) for place in range(len(curve) - width + 1)]
    return means[-1] < max(means) / 2


def gspo_moe(seed: int, fraction: float, *, learning_rate: float = 4e-4) -> dict[str, Arm]:
    """Runs lost with one of four experts a token and many updates a rollout."""
    task, rows = sums(seed, digits_each=DIGITS, wrong=0.1, texts=4096)
    start = model(seed, experts=4)
    imitate(start, rows, steps=int(600 * fraction), learning_rate=2e-3, seed=seed)
    arms = {"GRPO": Grpo(beta=0.0), "GSPO": Gspo()}
    found = {}
    for name, objective in arms.items():
        reached = improve(
            start,
            task,
            objective,
            rollouts=int(MOE_ROLLOUTS * fraction),
            prompts=8,
            updates=UPDATES,
            warm_up=WARM_UP,
            learning_rate=learning_rate,
            seed=seed,
        )
        curve = reached.success["all"]
        numbers = {
            "collapsed": float(collapsed(curve)),
            "success at the start": curve[0],
            "best": max(curve),
            "at the end": curve[-1],
        }
        found[name] = Arm(numbers, {name: curve})
    return found


def of_moe(seeds: Sequence[dict[str, Arm]]) -> tuple[bool, str]:
    lost = {name: int(sum(arms[name].numbers["collapsed"] for arms in seeds)) for name in seeds[0]}
    return lost["GSPO"] < lost["GRPO"], f"Of {len(seeds)} runs GRPO loses {lost['GRPO']} and GSPO {lost['GSPO']}."


# A-LoL: texts of which half are wrong

LOL_STEPS = 400
ABOUT_LOL = f"""\
All sums of two digits, with eight written answers each: four right, four wrong at random, and the reward of a judge
who errs once in ten. The reference model was taught all answers alike for {LOL_STEPS} steps; every arm goes on from
it for {LOL_STEPS} steps of 64 texts at learning rate 1e-3. A-LoL weighs a text by what its reward exceeds the value
of its prompt (`fit_value` on four completions of the reference a prompt, `leftover_advantages`); SFT weighs all
alike. SFT on the texts with reward 1 stands beside them to show what the filter alone does.

Claim: A-LoL ends with more success than SFT.
"""


def logs(seed: int) -> tuple[Task, list[tuple[Tensor, list[int]]], Tensor]:
    """Sums of two digits, eight answers each of which four are wrong, and their noisy rewards `[N]`."""
    random = torch.Generator().manual_seed(seed)
    prompts = [torch.tensor(encode(f"{a}+{b}=")) for a in range(10) for b in range(10)]
    answers = [a + b for a in range(10) for b in range(10)]
    rows, rewards = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        for number in range(8):
            wrong = (answer + 1 + int(torch.randint(18, (), generator=random))) % 19
            said = answer if number % 2 else wrong
            rows.append((prompt, encode(f"{said:02d}.")))
            rewards.append(noisy(said == answer, random))
    right = torch.tensor([encode(f"{answer:02d}.") for answer in answers])
    return Task(torch.stack(prompts), right, 3, {"all": torch.arange(100)}), rows, torch.tensor(rewards)


def noisy(right: bool, random: torch.Generator) -> float:
    """A judge that is wrong once in ten."""
    return float(right != (float(torch.rand((), generator=random)) < 0.1))


def expected(reference: Any, task: Task, seed: int) -> Tensor:
    """What the reference is expected to earn for each prompt `[N]`, fitted to rewards of its own completions."""
    random = torch.Generator().manual_seed(seed)
    chosen = torch.arange(len(task.prompts)).repeat_interleave(4)
    texts = sampled(reference, task, chosen, [[]] * len(chosen), (seed, 0))
    rewards = [noisy(text == task.right[n].tolist(), random) for n, text in zip(chosen, texts, strict=True)]
    with torch.no_grad():
        hidden = reference.model(input_ids=task.prompts, use_cache=False).last_hidden_state.mean(1)  # [N, D]
    value = fit_value(hidden[chosen], torch.tensor(rewards), seed=seed)
    with torch.no_grad():
        found: Tensor = value(hidden)
    return found


def a_lol(seed: int, fraction: float) -> dict[str, Arm]:
    """Success after going on from the same reference on the same texts."""
    task, rows, rewards = logs(seed)
    reference = model(seed)
    imitate(reference, rows, steps=int(LOL_STEPS * fraction), learning_rate=1e-3, seed=seed)
    values = expected(reference, task, seed)
    which = torch.arange(len(task.prompts)).repeat_interleave(len(rows) // len(task.prompts))
    a = leftover_advantages(rewards, values[which])
    ids, _ = padded([completion for _, completion in rows])
    with torch.no_grad():
        ref_logps = scores(reference, torch.stack([prompt for prompt, _ in rows]), ids)[0]
    leftover = ALol().build()

    def advantaged(logps: Tensor, live: Tensor, chosen: Tensor) -> Tensor:
        loss: Tensor = leftover(logps, ref_logps[chosen], a[chosen], live, denominator=len(chosen))[0]
        return loss

    good = [row for row, reward in zip(rows, rewards.tolist(), strict=True) if reward > 0]
    arms = {"SFT": (rows, None), "SFT on rewarded texts": (good, None), "A-LoL": (rows, advantaged)}
    found = {}
    for name, (texts, loss) in arms.items():
        policy = copy.deepcopy(reference)
        curve = imitate(
            policy,
            texts,
            steps=int(LOL_STEPS * fraction),
            learning_rate=1e-3,
            seed=seed + 1,
            loss=loss,
            watch=lambda policy=policy: success(policy, task)["all"],
        )
        found[name] = Arm({"success at the start": curve[0], "at the end": curve[-1]}, {name: curve})
    return found


def of_lol(seeds: Sequence[dict[str, Arm]]) -> tuple[bool, str]:
    pairs = [(arms["A-LoL"].numbers["at the end"], arms["SFT"].numbers["at the end"]) for arms in seeds]
    appears, right = agreed(pairs)
    better, worse = (statistics.fmean(side) for side in zip(*pairs, strict=True))
    return appears, f"A-LoL ends at {better:.1%}, SFT at {worse:.1%}; more in {right} of {len(pairs)} seeds."


CHECKS = {
    "tempo": Check("Does TEMPO learn a deciding token sooner than GRPO?", ABOUT_TEMPO, "rollouts", tempo, of_tempo),
    "prefix_rft": Check(
        "Does Prefix-RFT learn where GRPO's reward stays 0?", ABOUT_PREFIX, "rollouts", prefix_rft, of_prefix
    ),
    "gspo_moe": Check(
        "Does GSPO lose fewer mixture-of-experts runs than GRPO?", ABOUT_MOE, "rollouts", gspo_moe, of_moe
    ),
    "gspo_moe_faster": Check(
        "Does GSPO lose fewer of them at a higher learning rate?",
        ABOUT_MOE_FASTER,
        "rollouts",
        partial(gspo_moe, learning_rate=FASTER),
        of_moe,
    ),
    "a_lol": Check("Does A-LoL learn more than SFT from half-wrong texts?", ABOUT_LOL, "tens of steps", a_lol, of_lol),
}


def cell(column: str, values: Sequence[float]) -> str:
    """Mean ± standard deviation (smallest to largest), or a count of yes and no."""
    if column == "collapsed":
        return f"{sum(map(int, values))} of {len(values)}"
    number = "{:.1f}".format if column.startswith("rollouts") else "{:.1%}".format
    spread = f" ± {number(statistics.stdev(values))}" if len(values) > 1 else ""
    return f"{number(statistics.fmean(values))}{spread} ({number(min(values))} to {number(max(values))})"


def table(seeds: Sequence[dict[str, Arm]]) -> str:
    """A row an arm."""
    columns = list(next(iter(seeds[0].values())).numbers)
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in seeds[0]:
        cells = [cell(column, [arms[name].numbers[column] for arms in seeds]) for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(check: Check, seeds: Sequence[dict[str, Arm]], path: Path) -> None:
    """Success over the run: the mean of the seeds, and the range of all of them as a band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    lines = [(name, label) for name, arm in seeds[0].items() for label in arm.curves]
    for (name, label), colour in zip(lines, COLOURS, strict=False):
        values = torch.tensor([arms[name].curves[label] for arms in seeds])
        places = range(values.shape[1])
        axes.fill_between(places, values.amin(0), values.amax(0), color=colour, alpha=0.18, linewidth=0)
        axes.plot(places, values.mean(0), color=colour, label=label, linestyle="--" if "easy" in label else "-")
    axes.set(xlabel=check.axis, ylabel="success", ylim=(-0.02, 1.02), title=check.title)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def section(name: str, seeds: Sequence[dict[str, Arm]], seconds: float) -> str:
    """What the page says of a check."""
    check = CHECKS[name]
    appears, sentence = check.verdict(seeds)
    verdict = f"**The direction {'appears' if appears else 'does not appear'}.** {sentence}"
    command = f"`OMP_NUM_THREADS=1 python tests/benchmarks/directions.py {name} --seeds {len(seeds)} --write`"
    return "\n\n".join(
        [
            check.about.strip(),
            table(seeds),
            verdict,
            f"![Success of each arm over {check.axis}: mean and range of the seeds](assets/directions-{name}.png)",
            f"{command}, {seconds / 60:.1f} minutes of processor time on {machine()}.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", choices=[*CHECKS, []], default=[], help="all of them if none is named")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="into docs/directions.md and docs/assets")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.checks or CHECKS:
        check, began = CHECKS[name], time.process_time()
        seeds = [check.run(seed, 1.0) for seed in range(FIRST_SEED, FIRST_SEED + given.seeds)]
        text = section(name, seeds, time.process_time() - began)
        print(f"{check.title}\n\n{text}\n", flush=True)
        if given.write:
            draw(check, seeds, DOCS / "assets" / f"directions-{name}.png")
            write_section(check.title, text, DOCS / "directions.md", HEAD)


if __name__ == "__main__":
    main()
