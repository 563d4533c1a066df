"""The environment of a process that computes: the shell's, without what would make a step wait, crash or give other
numbers. What a step needs of this kind it is given on purpose (the process group by its request, child_main.py)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from sweeps.store.code import ROOT, import_variables
from sweeps.worker.forked_process import ADDRESS

_PROCESS_GROUP = (
    # torch.distributed and torchrun (torch/distributed/elastic/agent/server/local_elastic_agent.py).
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "NODE_RANK",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "ROLE_NAME",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_",
    "TORCH_ELASTIC_",
    "TORCHCOMM_",
    # accelerate (accelerate/utils/environment.py, state.py) reads MPI's too; transformers reads SageMaker's.
    "ACCELERATE_",
    "PARALLELISM_CONFIG_",
    "MEGATRON_LM_",
    "FSDP_",
    "DEEPSPEED_",
    "FORK_LAUNCHED",
    "NPROC",
    "PMI_",
    "PMIX_",
    "OMPI_",
    "MV2_COMM_WORLD_",
    "MPI_LOCALRANKID",
    "MPI_LOCALNRANKS",
    "I_MPI_",
    "SM_",
    "SMDATAPARALLEL_",
    # SLURM's of a task; those of the job stay.
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_NTASKS",
    "SLURM_NTASKS_",
    "SLURM_NPROCS",
    "SLURM_TASKS_PER_NODE",
    "SLURM_TASK_PID",
    "SLURM_GTIDS",
    "SLURM_STEPID",
    "SLURM_STEP_",
    "SLURM_SRUN_COMM_",
    "SLURM_LAUNCH_NODE_IPADDR",
)
_NUMBERS = (
    # Other arithmetic than the recipe says.
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "XLA_USE_BF16",
    "XLA_DOWNCAST_BF16",
)
_LIBRARIES = (
    # Switch off a library that a step needs (datasets/config.py, transformers/utils/import_utils.py).
    "USE_TORCH",
    "USE_TF",
    "USE_JAX",
    # Trackers that a library may report to by itself; runs are mirrored by another process, which has the key.
    "WANDB_",
    "MLFLOW_",
    "COMET_",
    "CLEARML_",
    "NEPTUNE_",
    # Make a library's warning an error, or keep the process when its work is over.
    "PYTHONWARNINGS",
    "PYTHONINSPECT",
    "PYTHONBREAKPOINT",
)
_ALL = (*_PROCESS_GROUP, *_NUMBERS, *_LIBRARIES, ADDRESS)
_OWN = {
    # A library that prints "±" into its log must not fail.
    "PYTHONIOENCODING": "utf-8",
    # pyarrow's spare allocator starts no thread when it is imported, which a fork would lose (fork_server.py).
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}


def computing(inherited: Mapping[str, str] = os.environ, root: Path = ROOT) -> dict[str, str]:
    """The environment for a process that computes, by that of its supervisor. root: where the code of both lies."""
    passed_on = {name: value for name, value in inherited.items() if not _left_out(name)}
    return {**passed_on, **import_variables(root, inherited), **_OWN}


def _left_out(name: str) -> bool:
    """By its name, or by a beginning that ends with `_`."""
    return any(name == each or (each.endswith("_") and name.startswith(each)) for each in _ALL)
