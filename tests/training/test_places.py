"""Files and columns that a plan names: all of them are looked for before the first stage trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from seqtune.config.reading import read
from seqtune.errors import SeqtuneError
from seqtune.training.places import check_columns, check_files
from seqtune_cli.compose import compose
from seqtune_cli.main import main


def missing(*words: str, recipe: str = "gspo_tiny") -> list[tuple[str, str]]:
    with pytest.raises(SeqtuneError) as caught:
        check_files(read(compose(words, recipe)).stages)
    return [(problem.problem, problem.where) for problem in caught.value.problems]


@pytest.mark.usefixtures("workdir")
def test_a_typo_in_the_last_stage_is_told_before_the_first_trains(capsys: pytest.CaptureFixture[str]) -> None:
    stages = "+stages={a:['objective=sft','packing=best_fit'],b:['reward=custom','reward.name=typo.py:f']}"
    with pytest.raises(SystemExit) as stopped:
        main(["train", "recipe=gspo_tiny", stages])
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: there is no file 'typo.py'\n  where: reward.name=typo.py:f\n")
    assert not printed.out
    assert not Path("runs").exists()


@pytest.mark.usefixtures("workdir")
def test_files_of_data_rewards_and_tools_are_told_together() -> None:
    Path("here.py").touch()
    scored = "correct:{name:'x.py:f'}"
    parts = f"a:{{name:'here.py:f'}},b:{{name:'gone.py:f'}},c:{{name:cosine_length,max_length:9,{scored}}}"
    tools = "rollout.tools={s:{name:search,path:corpus.jsonl},t:{name:'tool.py:f'}}"
    data = ("data=prompt_answer", "data.path=none.jsonl", "data.eval_path=held.jsonl", "data.eval_size=0")
    assert missing("reward=combined", f"reward.parts={{{parts}}}", tools, *data) == [
        ("there is no file 'none.jsonl'", "data.path"),
        ("there is no file 'held.jsonl'", "data.eval_path"),
        ("there is no file 'gone.py'", "reward.name=gone.py:f"),
        ("there is no file 'x.py'", "reward.name=x.py:f"),
        ("there is no file 'corpus.jsonl'", "rollout.tools.s.path"),
        ("there is no file 'tool.py'", "rollout.tools.t.name"),
    ]
    assert missing("data.sources=[{path:one.jsonl},{path:two.jsonl}]", recipe="mixture_tiny") == [
        ("there is no file 'one.jsonl'", "data.sources"),
        ("there is no file 'two.jsonl'", "data.sources"),
    ]


@pytest.mark.usefixtures("workdir")
def test_folders_of_models_are_told_and_hub_names_are_left_alone() -> None:
    words = ["model=pretrained", "model.name=/gone/model", "model.tokenizer=./gone"]
    assert missing(*words) == [
        ("there is no folder '/gone/model'", "model.name"),
        ("there is no folder './gone'", "model.tokenizer"),
    ]
    check_files(read(compose(["model=pretrained", "model.name=Qwen/Qwen3-4B"], "gspo_tiny")).stages)


@pytest.mark.usefixtures("workdir")
def test_what_a_stage_does_not_read_need_not_be_there() -> None:
    words = ["reward=custom", "reward.name=gone.py:f"]
    check_files(read(compose(words, "sft_tiny")).stages)
    with pytest.raises(SeqtuneError, match=r"gone\.py"):
        check_files(read(compose([*words, "eval.between_stages=true"], "sft_tiny")).stages)
    packed = ["data=prompt_completion", "data.path=gone.jsonl", "packing.path=packs/x"]
    check_files(read(compose(packed, "sft_tiny")).stages)


@pytest.mark.parametrize(
    ("words", "column"),
    [
        (["reward=code_exec"], "tests"),
        (["reward=code_exec", "reward.tests=unit"], "unit"),
        (["reward=list_ndcg"], "relevant"),
        (["reward=math_equiv"], "answer"),
        (["reward=exact"], "answer"),
        (["reward=f1"], "answer"),
        (["reward=cosine_length", "reward.max_length=9"], "answer"),
        (["reward=combined", "reward.parts={a:{name:repetition},b:{name:list_ndcg}}"], "relevant"),
    ],
)
def test_a_column_that_a_reward_reads_has_to_be_there(words: list[str], column: str) -> None:
    (stage,) = read(compose(words, "gspo_tiny")).stages
    with pytest.raises(SeqtuneError, match=f"reads the column '{column}'") as caught:
        check_columns(stage, ["prompt", "_where"])
    assert caught.value.problems[0].hint.startswith("columns at hand: prompt;")
    check_columns(stage, ["prompt", column])
