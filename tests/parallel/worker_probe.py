"""What a test launches: `MODE`, in processes that only talk to their launcher."""

import os
import sys
import time

from seqtune.errors import SeqtuneError
from seqtune.parallel.launch import to_launcher

with to_launcher() as send:
    mode, rank = sys.argv[1], int(os.environ["RANK"])
    send({"rank": rank, "pid": os.getpid(), "processes": os.environ["WORLD_SIZE"]})
    if mode == "mend" and rank == 1:
        raise SeqtuneError("the row is bad", "rows.jsonl:3", "mend it")
    if mode == "bug" and rank == 1:
        raise ValueError("nobody thought of this")
    if mode == "hang":
        print(f"PID {os.getpid()}", flush=True)
        time.sleep(600)
    send({"long": "x" * 200_000})
