"""`python -m sweeps.worker STORE STEP…`: the one way in which steps are run, on this machine and on SLURM."""

from __future__ import annotations

import sys
import traceback
from contextlib import suppress
from pathlib import Path

from sweeps.store.console import say
from sweeps.store.outside import in_one_line
from sweeps.store.store import Store
from sweeps.worker.job_context import JobContext
from sweeps.worker.rank_worker import RankWorker
from sweeps.worker.supervisor import FAILED, Worker


def main() -> None:
    store, steps = Store(Path(sys.argv[1])), sys.argv[2:]
    try:
        job = JobContext.current()
        status = RankWorker(store, job).run(steps) if job.rank else Worker(store).run(steps)
    except Exception as error:  # before the first step: the job's environment is not what it has to be
        reason, log = f"its job could not begin: {in_one_line(error)}", traceback.format_exc()
        say(f"{log}{reason}", sys.stderr)
        for id in steps:
            with suppress(OSError):
                store.step(id).note_not_begun("interrupted", reason, log)
        status = FAILED
    sys.exit(status)


if __name__ == "__main__":
    main()
