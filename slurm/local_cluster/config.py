"""The configuration files of the local cluster, as text. Every interval that a test would wait for is as short as SLURM
allows."""

from __future__ import annotations

import pwd
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

NODES = ("n1", "n2", "n3", "n4")
CPUS, GPUS, MEMORY_MB = 8, 4, 16_000
"""Per node. SLURM believes these numbers; the machine need not have as much."""


@dataclass(frozen=True)
class Site:
    """The values in the files. `options` replaces lines of slurm.conf, or adds some."""

    state: Path
    host: str
    user: str
    controller_port: int
    node_ports: tuple[int, ...]
    first_job_id: int
    accounting_port: int | None = None
    database_port: int | None = None
    database_password: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def munge_socket(self) -> Path:
        return self.state / "munge.sock"

    @property
    def slurm_conf(self) -> Path:
        return self.state / "etc" / "slurm.conf"


def files(site: Site) -> dict[str, str]:
    """File name → content, for the directory of slurm.conf."""
    texts = {"slurm.conf": slurm_conf(site), "gres.conf": gres_conf(site), "cgroup.conf": "CgroupPlugin=autodetect\n"}
    if site.accounting_port:
        texts |= {"slurmdbd.conf": slurmdbd_conf(site), "database.sql": database_sql(site)}
    return texts


def slurm_conf(site: Site) -> str:
    settings = _general(site) | _timing() | _scheduling() | _accounting(site) | dict(site.options)
    lines = [f"{key}={value}" for key, value in settings.items()]
    for node, port in zip(NODES, site.node_ports, strict=True):
        resources = f"CPUs={CPUS} RealMemory={MEMORY_MB} Gres=gpu:fake:{GPUS} Feature=fake,{node} State=UNKNOWN"
        lines.append(f"NodeName={node} NodeHostname={site.host} NodeAddr=127.0.0.1 Port={port} {resources}")
    preemptible = "Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=0 MaxTime=1-0 DefaultTime=5"
    lines.append(f"PartitionName=preemptible Nodes=ALL {preemptible}")
    lines.append("PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=60 DefaultTime=5")
    return "\n".join(lines) + "\n"


def _general(site: Site) -> dict[str, object]:
    return {
        "ClusterName": "mlkv",
        "SlurmctldHost": f"{site.host}(127.0.0.1)",
        "SlurmctldPort": site.controller_port,
        "SlurmUser": site.user,
        "SlurmdUser": site.user,
        "AuthType": "auth/munge",
        "CredType": "cred/munge",
        # SLURM derives from cred_expire (default 120 s) how long a requeued job waits before it may start again.
        "AuthInfo": f"socket={site.munge_socket},cred_expire=5",
        "StateSaveLocation": site.state / "controller",
        "SlurmdSpoolDir": site.state / "spool" / "%n",
        "SlurmctldPidFile": site.state / "slurmctld.own.pid",
        "SlurmdPidFile": site.state / "%n.own.pid",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "MpiDefault": "none",
        "GresTypes": "gpu",
        "SlurmdParameters": "config_overrides",
        "ReturnToService": 2,
        "MailProg": "/bin/true",
        # A new cluster in this directory must not give out the job ids of an earlier one again.
        "FirstJobId": site.first_job_id,
    }


def _timing() -> dict[str, object]:
    return {"MinJobAge": 20, "KillWait": 3, "SlurmdTimeout": 10, "SlurmctldTimeout": 10, "InactiveLimit": 0}


def _scheduling() -> dict[str, object]:
    return {
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU_Memory",
        "DefMemPerCPU": 100,
        "SchedulerType": "sched/backfill",
        "SchedulerParameters": "batch_sched_delay=1,sched_interval=2,sched_min_interval=0,bf_interval=2",
        "PriorityType": "priority/basic",
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
        "SlurmctldParameters": "preempt_send_user_signal",
        "JobRequeue": 1,
        "MaxArraySize": 1001,
        "MaxJobCount": 10_000,
    }


def _accounting(site: Site) -> dict[str, object]:
    if not site.accounting_port:
        return {"AccountingStorageType": "accounting_storage/none", "JobAcctGatherType": "jobacct_gather/none"}
    return {
        "AccountingStorageType": "accounting_storage/slurmdbd",
        "AccountingStorageHost": "127.0.0.1",
        "AccountingStoragePort": site.accounting_port,
        "AccountingStoragePass": site.munge_socket,
        "AccountingStorageEnforce": "associations,limits,qos",
        "JobAcctGatherType": "jobacct_gather/none",
    }


def gres_conf(site: Site) -> str:
    return f"NodeName={','.join(NODES)} Name=gpu Type=fake File={site.state}/gpu/fake[0-{GPUS - 1}]\n"


def slurmdbd_conf(site: Site) -> str:
    settings: dict[str, object] = {
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={site.munge_socket}",
        "DbdHost": site.host,
        "DbdAddr": "127.0.0.1",
        "DbdPort": site.accounting_port,
        "SlurmUser": site.user,
        "PidFile": site.state / "slurmdbd.own.pid",
        "StorageType": "accounting_storage/mysql",
        "StorageHost": "127.0.0.1",
        "StoragePort": site.database_port,
        "StorageUser": "slurm",
        "StoragePass": site.database_password,
        "StorageLoc": "slurm",
    }
    return "".join(f"{key}={value}\n" for key, value in settings.items())


def database_sql(site: Site) -> str:
    """Statements that mariadbd runs whenever it starts."""
    user = "'slurm'@'127.0.0.1'"
    return (
        "CREATE DATABASE IF NOT EXISTS slurm;\n"
        f"CREATE USER IF NOT EXISTS {user} IDENTIFIED BY '{site.database_password}';\n"
        f"GRANT ALL ON slurm.* TO {user};\n"
    )


def user_name(uid: int) -> str:
    return pwd.getpwuid(uid).pw_name
