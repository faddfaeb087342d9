"""The process that runs a user's reward on single rows: a JSON value a line each way."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from seqtune.errors import SeqtuneError
from seqtune.rewards.custom import load
from seqtune.rewards.score import score


def main() -> None:
    """Load the reward that the command line names, then score rows until standard input ends."""
    questions, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # what the reward reads is no question
    os.dup2(2, 1)  # and what it prints no answer

    def say(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    name = sys.argv[1]
    sys.path.append(os.getcwd())
    try:
        reward = load(name)
    except SeqtuneError as error:
        say({"refused": error.problems[0].problem, "hint": error.problems[0].hint})
        return
    say("ready")
    for line in questions:
        row = json.loads(line)
        try:
            columns = {key: [value] for key, value in row["columns"].items()}
            [value] = score(reward, [row["prompt"]], [row["completion"]], columns, name=name, vectors=True)
        except SeqtuneError as error:
            say({"problem": error.problems[0].problem, "hint": error.problems[0].hint})
        else:
            say({"score": value})


if __name__ == "__main__":
    main()
