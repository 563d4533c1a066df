"""Sends a checkpoint to W&B as an artifact of the run that made it, with those that it was made from as its inputs."""

from __future__ import annotations

import wandb

from sweeps.tracking.checkpoints import TYPE, Checkpoint


def send(run: wandb.Run, checkpoint: Checkpoint) -> None:
    """Wait until W&B has all of it. Sent again, it becomes no second version, and no file is uploaded twice. Raises
    whatever W&B's client raises, also where an input is not in the project."""
    artifact = wandb.Artifact(
        checkpoint.name(),
        type=TYPE,
        description=f"{checkpoint.kind} {'in the store' if checkpoint.way == 'reference' else 'with all files'}",
        metadata={
            "step": checkpoint.step,
            "kind": checkpoint.kind,
            "sha256": {name: file.sha256 for name, file in checkpoint.files.items()},
        },
    )
    for name in checkpoint.files:
        path = checkpoint.folder / name
        if checkpoint.way == "reference":
            artifact.add_reference(path.as_uri(), name=name)
        else:
            # A file of a finished step is never changed, and neither a copy to send from nor one to keep is needed.
            artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)
    run.log_artifact(artifact).wait()
    for step in checkpoint.inputs:
        run.use_artifact(f"{run.entity}/{run.project}/{checkpoint.name(step)}:latest", type=TYPE)
