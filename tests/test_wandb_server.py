"""The tests' W&B server, by the real client: files, artifacts, `wandb sync`, and a key that is not the one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.processes import PATIENCE
from tests.support.wandb_server import WandbServer

CODE = """if True:
    import wandb
    open("f.txt", "w").write("hello")
    quiet = wandb.Settings(console="off", silent=True, x_disable_stats=True)
    run = wandb.init(project="mlkv", id="online", settings=quiet)
    artifact = wandb.Artifact("thing", "kind")
    artifact.add_file("f.txt")
    run.log_artifact(artifact)
    run.save("f.txt")
    run.finish()
    run = wandb.init(mode="offline", project="mlkv", id="later", settings=quiet)
    run.log({"a": 1})
    run.finish()
"""


def test_files_artifacts_and_wandbs_own_sync(tmp_path: Path) -> None:
    with WandbServer() as server:
        environment = {**os.environ, **server.environment()}
        environment.pop("WANDB_SERVICE", None)
        python = [sys.executable, "-c", CODE]
        subprocess.run(python, env=environment, cwd=tmp_path, check=True, capture_output=True, timeout=PATIENCE)
        run = server.runs["online"]
        assert run.files["f.txt"] == b"hello"
        artifact = server.backend.artifacts[run.artifacts[0]]
        assert (artifact["name"], artifact["state"], artifact["files"]["f.txt"]) == ("thing", "COMMITTED", b"hello")
        assert list(server.runs) == ["online"]
        sync = [sys.executable, "-m", "wandb", "sync", *map(str, tmp_path.glob("wandb/offline-run-*-later"))]
        subprocess.run(sync, env=environment, check=True, capture_output=True, timeout=PATIENCE)
        assert [row["a"] for row in server.runs["later"].history] == [1]
        assert not server.refused
