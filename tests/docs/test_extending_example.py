"""The worked example of docs/extending.md, installed and used as its reader would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "acme"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--target", str(site)]
    run(sys.executable, "-m", "pip", "install", *options, str(EXAMPLE))
    return site


def run(*command: str, site: Path | None = None, cwd: Path | None = None) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site)} if site else None
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def seqtune(*words: str, site: Path, cwd: Path) -> str:
    return run(str(Path(sys.executable).with_name("seqtune")), *words, site=site, cwd=cwd)


def test_it_is_listed_with_its_distribution(site: Path, tmp_path: Path) -> None:
    listed = seqtune("list", "objectives", site=site, cwd=tmp_path)
    ours = [line.split()[:2] for line in listed.splitlines() if " acme-seqtune " in line]
    assert ours == [["gmpo", "acme-seqtune"], ["ipo", "acme-seqtune"]]


def test_they_train_by_their_names(site: Path, tmp_path: Path) -> None:
    ipo = "'objective=ipo', 'objective.tau=0.2', 'data=template_pairs', 'train.batch_size=4'"
    gmpo = "'objective=gmpo', 'rollout.updates=2', 'train.batch_size=8'"
    small = ["model.layers=1", "model.hidden_size=32", "model.intermediate_size=32", "rollout.max_new_tokens=4"]
    words = [*small, "data.size=16", "data.eval_size=4", "train.max_steps=2", f"+stages={{a: [{ipo}], b: [{gmpo}]}}"]
    seqtune("train", "recipe=gspo_tiny", *words, "out=run", "--quiet", site=site, cwd=tmp_path)
    assert "tau: 0.2" in (tmp_path / "run" / "plan.yaml").read_text(encoding="utf-8")
    assert "policy/weight_mean" in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")


def test_what_a_loss_does_not_read_is_refused(site: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"objective\.clip: \"soft\" is not 'pessimistic'"):
        seqtune("show", "recipe=gspo_tiny", "objective=gmpo", "objective.clip=soft", site=site, cwd=tmp_path)


def test_its_own_tests_pass(site: Path) -> None:
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(EXAMPLE)]
    assert "4 passed" in run(sys.executable, "-m", "pytest", *options, str(EXAMPLE / "tests"), site=site)
