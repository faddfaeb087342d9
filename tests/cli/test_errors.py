"""Broken command lines: what each prints, to the letter, and exit code 2."""

from __future__ import annotations

import shlex

import pytest

from seqtune_cli import catalogue
from seqtune_cli.main import main

RECIPES = ", ".join(sorted(catalogue.recipes()))

BROKEN = {
    "train recipe=gspo_qwen4b objectiv.epsilon=1": """\
error: objectiv.epsilon: there is no 'objectiv' to set (1)
  where: command line
  hint: did you mean 'objective'? (have: data, eval, model, objective, packing, parallel, peft, reward, rollout, train)
""",
    "train": f"""\
error: recipe= is missing
  where: command line
  hint: recipe=NAME ({RECIPES}), or recipe=FILE.yaml
""",
    "train recipe=gspo_qwen": f"""\
error: recipe: there is no recipe 'gspo_qwen'
  where: command line
  hint: did you mean 'gspo_qwen4b'? (have: {RECIPES}); a file is recipe=PATH.yaml
""",
    "train recipe=./nope.yaml": f"""\
error: recipe: there is no file ./nope.yaml
  where: command line
  hint: have: {RECIPES}; a file is recipe=PATH.yaml
""",
    "train recipe=gspo_qwen4b model=qwen": """\
error: model: there is no model 'qwen'
  where: command line
  hint: did you mean 'qwen3_4b'? (have: pretrained, qwen3_4b, tiny); a model by hub name or folder is \
model=pretrained model.name=qwen
""",
    "train recipe=gspo_tiny objective.name=grpo": """\
error: objective.name: 'grpo' would keep the other values of the group 'gspo'
  where: command line
  hint: objective=grpo switches the whole group
""",
    "train recipe=gspo_tiny objective.epsilon_low=1,2": """\
error: objective.epsilon_low: '1,2' asks for several runs, and a plan is one run
  where: command line
  hint: a list is written objective.epsilon_low=[1,2], a text with commas "objective.epsilon_low='1,2'"
""",
    "train recipe=gspo_tiny objective.aggregation=token_sum": """\
error: objective.ratio=sequence with objective.aggregation=token_sum: summing over tokens would weigh each completion \
by its length, while the ratio that is clipped belongs to the whole completion
  where: objective.aggregation: command line, objective.ratio: default
  hint: objective.aggregation=sequence_mean, or objective=grpo, whose ratio is that of a token
""",
    "train recipe=sft_tiny train.learning_rate=-1 train.schedule=cosin": """\
error: train.learning_rate: -1 is not above 0
  where: command line
error: train.schedule: "cosin" is not 'constant', 'linear' or 'cosine'
  where: command line
  hint: did you mean 'cosine'? (have: constant, cosine, linear)
""",
    "train recipe=sft_tiny data=prompt_completion": """\
error: data.path: has to be given
  where: seqtune_recipes/data/prompt_completion.yaml:2
  hint: data.path=VALUE
""",
    "train recipe=sft_tiny hydra.run.dir=x": """\
error: hydra.run.dir: Hydra's own settings change nothing here
  where: command line
  hint: seqtune takes only Hydra's composition; out=DIR chooses the run folder
""",
    "train recipe=sft_tiny train.seed": """\
error: 'train.seed' is not an override
  where: command line
  hint: write train.seed=VALUE, or recipe=train.seed for a recipe
""",
    "train recipe=sft_tiny 'train.adam_beta1=${train.sed}'": """\
error: train.adam_beta1: Interpolation key 'train.sed' not found
  where: command line
  hint: interpolations name another value by its dotted path: ${train.seed}
""",
    "train recipe=quickstart stages.rl.train.seed=1": """\
error: stages.rl: the recipe has no stage 'rl'
  where: command line
  hint: have: gspo, sft
""",
    "train recipe=sft_tiny out=a out=b": """\
error: out is given twice: a and b
  where: command line
""",
    "train recipe=sft_tiny --resume runs/x": """\
error: a resumed run keeps its plan; it cannot take recipe=sft_tiny
  where: command line
  hint: seqtune train --resume runs/x
""",
    "train --resume nowhere": """\
error: 'nowhere' is not a run folder: it holds no plan.yaml
  where: command line
  hint: runs/RECIPE/TIME
""",
    "eval eval=greedy": """\
error: nothing says what to evaluate
  where: command line
  hint: run=runs/RECIPE/TIME, or model=NAME of a hub model or folder
""",
    "eval run=x model=y": """\
error: run= and model= both say what to evaluate
  where: command line
  hint: run=runs/RECIPE/TIME, or model=NAME of a hub model or folder
""",
    "pack recipe=dpo_tiny": """\
error: objective 'dpo' packs no rows
  where: objective.name
  hint: a recipe with objective=sft
""",
    "export out=x": """\
error: run= is missing
  where: command line
  hint: run=runs/RECIPE/TIME
""",
    "train recipe=gspo_tiny objective@train=grpo": """\
error: objective: a group lands in the section of its own name, not in 'train'
  where: command line
""",
    "train recipe=sft_tiny ~rollout": """\
error: rollout: the recipe has none to take away
  where: command line
""",
    "train recipe=gspo_tiny ~objective.beta =3 ~rollout.tools.x": """\
error: '=3' is not an override
  where: command line
  hint: write KEY=VALUE; a text with blanks or = , ( ) [ ] { } is quoted, for the shell too: "key='a b'"
error: objective.beta: there is nothing to take away
  where: command line
  hint: what is set here: name; a default cannot be taken away
error: rollout.tools.x: there is nothing to take away
  where: command line
  hint: what is set here: nothing; a default cannot be taken away
""",
    "train --resume nowhere --dry-run": """\
error: a resumed run keeps its plan; it cannot take --dry-run
  where: command line
  hint: seqtune train --resume nowhere
""",
    "train recipe=gspo_tiny out=/dev/null/x": """\
error: the run folder cannot be made: Not a directory
  where: /dev/null/x
  hint: out=DIR names another place
""",
    "schema nowhere/s.json": """\
error: cannot write nowhere/s.json: No such file or directory
""",
    "eval model=tiny train.seed=1 +stages.a.objective=sft": """\
error: train.seed: an evaluation does not read it, it trains nothing
  where: command line
  hint: leave it out; an evaluation reads data, eval, model, reward
error: objective: an evaluation does not read it, it trains nothing
  where: command line
  hint: leave it out; an evaluation reads data, eval, model, reward
""",
    "train recipe=quickstart \"+stages.x=['sft']\"": """\
error: 'sft' is not an override
  where: command line
  hint: write sft=VALUE, or recipe=sft for a recipe
""",
    "copy recipe=gspo": f"""\
error: recipe: there is no recipe 'gspo'
  where: command line
  hint: did you mean 'gspo_tiny'? (have: {RECIPES})
""",
}


@pytest.mark.usefixtures("workdir")
@pytest.mark.parametrize("line", BROKEN)
def test_what_is_printed(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(shlex.split(line))
    printed = capsys.readouterr()
    assert printed.err == BROKEN[line]
    assert printed.out == ""
    assert stopped.value.code == 2


@pytest.mark.usefixtures("workdir")
@pytest.mark.parametrize(
    ("text", "problem", "where"),
    [
        ("train:\n  seed: 1\n seed: 2\n", "not YAML: ", "mine.yaml:3"),
        ("train: {seed: 1, seed: 2}\n", "not YAML: found duplicate key seed", "mine.yaml:1"),
        (
            "defaults:\n  - objective: gspoo\n",
            "objective: there is no objective 'gspoo'",
            "defaults of recipe mine.yaml",
        ),
        ("defaults:\n  - gspo_tinny\n", "there is no recipe 'gspo_tinny' to build on", "defaults of recipe mine.yaml"),
        ("- 1\n", "the file is no mapping of groups to values", "recipe mine.yaml"),
        ("defaults:\n  - sft_tiny\n  - _self_\nstages: [a]\n", "stages: is not a list of words", "mine.yaml:4"),
        ("defaults:\n  - sft_tiny\n  - _self_\nstages:\n  a: 3\n", "stages.a: is not a list of words", "mine.yaml:5"),
        ("defaults:\n  - sft_tiny\n  - _self_\nstages:\n  a: [train.seed=x]\n", "train.seed: ", "mine.yaml:5"),
        (
            "defaults:\n  - sft_tiny\n  - _self_\nstages:\n  'a b': []\n",
            "stages.a b: a stage's name has",
            "mine.yaml:5",
        ),
        (
            "defaults:\n  - sft_tiny\n  - _self_\nstages:\n  a: [stages.b.x=1]\n",
            "stages.b.x: a stage cannot",
            "mine.yaml:5",
        ),
    ],
)
def test_a_broken_recipe_file(text: str, problem: str, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    from pathlib import Path

    Path("mine.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        main(["train", "recipe=mine.yaml", "--dry-run"])
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {problem}")
    assert f"  where: {where}\n" in printed
    assert stopped.value.code == 2


@pytest.mark.usefixtures("workdir")
def test_a_file_with_another_ending_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    from pathlib import Path

    Path("mine.yml").write_text("defaults: [sft_tiny, _self_]\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["train", "recipe=mine.yml", "--dry-run"])
    told = "error: recipe: mine.yml ends in .yml\n  where: command line\n  hint: rename it to .yaml\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("line", ["", "trian", "train --fast", "list nothing"])
def test_a_word_that_is_no_command_exits_2(line: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(line.split())
    assert stopped.value.code == 2


def test_an_interruption_exits_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*words: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("seqtune_cli.compose.compose", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(["train", "recipe=sft_tiny"])
    assert stopped.value.code == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_bug_of_ours_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*words: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("seqtune_cli.compose.compose", broken)
    with pytest.raises(ZeroDivisionError):
        main(["train", "recipe=sft_tiny"])
