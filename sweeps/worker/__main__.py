"""`python -m sweeps.worker STORE STEP…`: the one way in which steps are run, on this machine and on SLURM."""

from __future__ import annotations

import sys
from pathlib import Path

from sweeps.store.store import Store
from sweeps.worker.job_context import JobContext
from sweeps.worker.rank_worker import RankWorker
from sweeps.worker.supervisor import Worker


def main() -> None:
    store, job = Store(Path(sys.argv[1])), JobContext.current()
    sys.exit(RankWorker(store, job).run(sys.argv[2:]) if job.rank else Worker(store).run(sys.argv[2:]))


if __name__ == "__main__":
    main()
