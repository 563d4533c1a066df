"""A step that the kernel kills for want of memory, on a node that limits a job by a control group, as sites do."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from slurm.local_cluster.cluster import LocalCluster
from tests.support.faults import all_done, faulty, wait, weights
from tests.support.processes import eventually
from tests.support.shell import Shell

MIB = 2**20
GROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryGroup:
    """A control group of version 1 or 2."""

    path: Path
    file: str

    def limit(self, size: int) -> None:
        (self.path / self.file).write_text(str(size))

    def interpreter(self, script: Path) -> Path:
        """A python whose processes belong to the group."""
        script.write_text(f'#!/bin/sh\necho $$ > {self.path}/cgroup.procs\nexec {sys.executable} "$@"\n')
        script.chmod(0o755)
        return script


@pytest.fixture
def group() -> Iterator[MemoryGroup]:
    first = (GROUPS / "memory").is_dir()
    path = (GROUPS / "memory" if first else GROUPS) / f"mlkv-test-{uuid.uuid4().hex[:8]}"
    try:
        if not first:
            (GROUPS / "cgroup.subtree_control").write_text("+memory")
        path.mkdir()
        made = MemoryGroup(path, "memory.limit_in_bytes" if first else "memory.max")
        made.limit(2**33)
    except OSError as error:
        with suppress(OSError):
            path.rmdir()
        pytest.skip(f"no control group can be made here: {error}")
    yield made
    for _ in range(100):
        with suppress(OSError):
            path.rmdir()
            return
        time.sleep(0.1)


@pytest.mark.long
def test_memory_that_runs_out_is_named_and_the_step_goes_on_with_more(
    tiny: list[str], undisturbed: Shell, cluster: LocalCluster, tmp_path: Path, group: MemoryGroup
) -> None:
    python = group.interpreter(tmp_path / "python")
    group.limit(160 * MIB)  # the supervisor fits, torch does not
    starved = faulty("starved", tmp_path, undisturbed, tiny, cluster, f"cluster.python={python}")
    wait(lambda: starved.step.state().name == "FAILED", starved)
    printed = starved.shell("why", "tiny", "MQA-2")
    assert "out of memory: the kernel killed it at" in printed
    assert "cluster.resources.KIND.memory_gb" in printed
    assert len(starved.step.attempts()) == 1, "more of the same would not help"
    job = starved.job()
    assert eventually(lambda: "JobState=FAILED" in cluster.run("scontrol", "show", "job", job), every=0.2)
    group.limit(8192 * MIB)
    starved.shell("retry", "tiny")
    wait(all_done(starved.shell.store), starved)
    assert starved.weights() == weights(undisturbed.store)
