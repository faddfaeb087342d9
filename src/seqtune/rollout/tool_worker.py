"""The process that runs a user's tool: a JSON value a line each way."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from seqtune.errors import SeqtuneError
from seqtune.sandbox.functions import load_function


def main() -> None:
    """Load the tool that the command line names, then answer queries until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the tool prints is no answer

    def say(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    sys.path.insert(0, os.getcwd())
    try:
        tool = load_function(sys.argv[1], "rollout.tools")
    except SeqtuneError as error:
        say({"refused": error.problems[0].problem, "hint": error.problems[0].hint})
        return
    say("ready")
    for line in sys.stdin:
        try:
            text = tool(json.loads(line))
        except Exception as error:  # a user's code may raise anything; the model is told
            say({"problem": f"{type(error).__name__}: {error}"})
        else:
            say(
                {"text": text}
                if isinstance(text, str)
                else {"problem": f"the tool gave {type(text).__name__}, no text"}
            )


if __name__ == "__main__":
    main()
