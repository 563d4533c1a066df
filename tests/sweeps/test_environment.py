"""What a shell may hold, and what reaches the processes that compute and those that write to W&B."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sweeps.store.code import ROOT
from sweeps.tracking.environment import clean_own_environment, environment
from sweeps.tracking.target import Target, TrackingConfig
from sweeps.worker.environment import computing
from tests.support.faults import SMALL, weights
from tests.support.shell import Shell

LEFT_BEHIND = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "10.255.255.1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_TORCH_DEVICE": "cuda:7",
    "FSDP_OFFLOAD_PARAMS": "true",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "PMI_RANK": "1",
    "PMI_SIZE": "2",
    "SLURM_PROCID": "1",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "2",
    "NVIDIA_TF32_OVERRIDE": "1",
    "USE_TORCH": "0",
    "WANDB_MODE": "",
    "WANDB_RUN_ID": "theirs",
    "WANDB_SWEEP_ID": "theirs",
    "WANDB_API_KEY": "secret",
    "PYTHONWARNINGS": "error",
    "PYTHONIOENCODING": "ascii",
}
"""By torchrun, accelerate, mpirun, srun, `wandb agent`, or a person."""


def test_a_step_has_no_process_group_but_its_own() -> None:
    kept = {
        "CUDA_VISIBLE_DEVICES": "0",
        "OMP_NUM_THREADS": "4",
        "HF_HOME": "/hf",
        "NCCL_SOCKET_IFNAME": "ib0",
        "SLURM_JOB_ID": "7",
        "RANKING": "1",
        "SMALL": "1",
    }
    made = computing({**LEFT_BEHIND, **kept})
    own = {"PYTHONPATH", "PYTHONSAFEPATH", "PYTHONIOENCODING", "JE_ARROW_MALLOC_CONF"}
    assert {name: value for name, value in made.items() if name not in own} == kept
    assert made["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)
    assert (made["PYTHONSAFEPATH"], made["PYTHONIOENCODING"]) == ("1", "utf-8")


def test_of_wandbs_variables_only_those_of_the_server_reach_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**LEFT_BEHIND, "WANDB_TAGS": "a", "WANDB_ENTITY": "", "WANDB_BASE_URL": "http://x"}.items():
        monkeypatch.setenv(name, value)
    made = environment(Target(TrackingConfig()))
    wandb = {name: value for name, value in made.items() if name.startswith("WANDB_")}
    assert wandb == {"WANDB_API_KEY": "secret", "WANDB_BASE_URL": "http://x", "WANDB_SILENT": "true"}


@pytest.mark.long(minutes=1)
def test_what_other_launchers_left_in_the_shell_changes_nothing(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = [*tiny, *SMALL, "uptrain.steps=4", "cluster.slots=1", "tracking=offline"]
    for name, left in {"clean": {}, "left": LEFT_BEHIND}.items():
        (tmp_path / name).mkdir()
        for variable, value in left.items():
            if variable != "PYTHONIOENCODING":  # that of the terminal
                monkeypatch.setenv(variable, value)
        for module in ("torch.py", "wandb.py", "transformers.py"):
            (tmp_path / name / module).write_text("raise SystemExit('not this one')")
        Shell(tmp_path / name)("sweep", *line)
    assert weights(Shell(tmp_path / "clean").store) == weights(Shell(tmp_path / "left").store)


def test_a_client_in_this_process_has_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WANDB_MODE": "", "WANDB_CONSOLE": "x", "WANDB_BASE_URL": "http://x", "HOME": "/h"}.items():
        monkeypatch.setenv(name, value)
    clean_own_environment()
    left = {name: os.environ.get(name) for name in ("WANDB_MODE", "WANDB_CONSOLE", "WANDB_BASE_URL", "HOME")}
    assert left == {"WANDB_MODE": None, "WANDB_CONSOLE": None, "WANDB_BASE_URL": "http://x", "HOME": "/h"}
