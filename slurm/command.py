"""The one place that runs SLURM's commands. Whatever becomes of a command (it is missing, it does not answer, it fails,
it prints something else), its caller gets an answer or a QueueError of one line.

Sites put wrappers around these commands, and notes before and after what they print. So a table is what follows its own
header, and of an error message only those lines count that SLURM's programs write.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

PATIENCE_SECONDS = 60.0
"""How long a command may take. SLURM's own commands give up on a controller after about that time (MessageTimeout)."""

_FORMATS = ("SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_", "SCONTROL_", "SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN")
"""Variables that would change what the commands print, or which jobs they are about."""


_PREFIX = r"allocation failure: |slurm_\w+ error: "


class QueueError(RuntimeError):
    """A SLURM command failed, did not answer, or printed something else; one line, with SLURM's own words in it."""


class NoAnswerError(QueueError):
    """The command did not end in time: what it was to do may be done all the same. `output`: what it wrote."""

    def __init__(self, program: str, output: str) -> None:
        super().__init__(f"{program} did not answer within {PATIENCE_SECONDS:.0f} s")
        self.output = output


@dataclass(frozen=True)
class Answer:
    """What a command printed, and its exit status."""

    program: str
    status: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """Why it failed, in one line: what SLURM's programs wrote of it, without prefixes and repetitions; where they
        wrote nothing, the first line that there is."""
        lines = [line.strip() for line in [*self.err.splitlines(), *self.out.splitlines()] if line.strip()]
        own = re.compile(rf"(?:{re.escape(self.program)}: (?:(?:error|fatal): )?|{_PREFIX})+")
        own_lines = [line[match.end() :] for line in lines if (match := own.match(line))]
        return "; ".join(dict.fromkeys(own_lines or lines[:1])) or f"exit status {self.status}"


def answer(*argv: str, environment: Mapping[str, str] | None = None) -> Answer:
    """Run a SLURM command and wait for its end, whatever that is. Raises QueueError where it cannot be run,
    NoAnswerError where it does not end in PATIENCE_SECONDS."""
    env = _plain_environment() if environment is None else environment
    try:
        done = subprocess.run(
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=PATIENCE_SECONDS,
        )
    except FileNotFoundError:
        raise QueueError(f"{argv[0]} is not installed here") from None
    except subprocess.TimeoutExpired as error:
        raise NoAnswerError(argv[0], (error.stderr or b"").decode(errors="replace")) from None
    except OSError as error:
        raise QueueError(f"{argv[0]} cannot be run: {error.strerror}") from None
    return Answer(argv[0], done.returncode, done.stdout, done.stderr)


def output(*argv: str) -> str:
    """What a SLURM command prints. Raises QueueError where it fails."""
    given = answer(*argv)
    if given.status:
        raise QueueError(f"{argv[0]}: {given.complaint}")
    return given.out


def table(*argv: str, columns: tuple[str, ...]) -> list[list[str]]:
    """The rows that a SLURM command prints below its header, cell by cell; cells are separated by `|`.

    columns: the header's names. Raises QueueError where the command fails or prints no such header, so that nothing
    printed and nothing there are told apart.
    """
    shown = output(*argv)
    lines = [line.strip() for line in shown.splitlines()]
    header = "|".join(columns)
    if header not in lines:
        first = next(filter(None, lines), "")
        raise QueueError(f"{argv[0]} printed {first[:60]!r} instead of a table with the columns {', '.join(columns)}")
    rows = [line.split("|", len(columns) - 1) for line in lines[lines.index(header) + 1 :]]
    return [row for row in rows if len(row) == len(columns) and row != list(columns)]


def _plain_environment() -> dict[str, str]:
    plain = {key: value for key, value in os.environ.items() if not key.startswith(_FORMATS)}
    if "SBATCH_CLUSTERS" in plain:  # where sbatch puts the jobs, the other commands look for them
        plain.setdefault("SLURM_CLUSTERS", plain["SBATCH_CLUSTERS"])
    return plain | {"SLURM_BITSTR_LEN": "0"}
