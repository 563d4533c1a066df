"""The parts of an lm-eval result file, read from JSON once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from analysis.data.json_values import Object, as_dict

_OTHER_TOOLS = ("config_general", "config_tasks", "summary_general", "summary_tasks")
_SUMMARIES = {"all", "average", "avg", "mean", "overall", "total"}
_MARKS = ("configs", "versions", "n-shot", "n-samples", "group_subtasks", "groups", "git_hash", "lm_eval_version")


class NotRead(ValueError):
    """Why a file is skipped, in a few words."""


@dataclass(frozen=True)
class ResultFile:
    """A result file. A part that the file lacks, or has in another form, is empty."""

    results: dict[str, Object]
    """Task or group → key (`acc,none`) → value."""
    groups: dict[str, Object]
    config: Object
    """The command line of the run."""
    configs: dict[str, Object]
    """Task → its definition."""
    samples: dict[str, Object]
    """Task → `original` and `effective` number of samples."""
    directions: dict[str, Object]
    """Task → metric → whether higher is better."""
    n_shot: Object
    versions: Object
    group_subtasks: Object
    other: Object
    """The whole file, for what it says once: the model's name, prompts, the date."""

    @property
    def has_filters(self) -> bool:
        """Whether keys have a filter's name behind a comma, as since 0.4."""
        return any("," in key for scores in self.results.values() for key in scores)


def read_file(path: Path) -> ResultFile:
    """Raises NotRead for a file that is not lm-eval's, also for a torn one."""
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise NotRead(f"is not JSON ({error})") from None
    except OSError as error:
        raise NotRead(f"cannot be read ({error.strerror})") from None
    if not isinstance(as_dict(document).get("results"), dict):
        raise NotRead("is no result file of lm-eval")
    file = ResultFile(
        results=_objects(document["results"]),
        groups=_objects(document.get("groups")),
        config=as_dict(document.get("config")),
        configs=_objects(document.get("configs")),
        samples=_objects(document.get("n-samples")),
        directions=_objects(document.get("higher_is_better")),
        n_shot=as_dict(document.get("n-shot")),
        versions=as_dict(document.get("versions")),
        group_subtasks=as_dict(document.get("group_subtasks")),
        other=document,
    )
    _check(file)
    return file


def _objects(value: object) -> dict[str, Object]:
    return {key: as_dict(each) for key, each in as_dict(value).items()}


def _check(file: ResultFile) -> None:
    """Raises NotRead for a file of another tool, and names the tool."""
    if any(key in file.other for key in _OTHER_TOOLS) or any("|" in task for task in file.results):
        raise NotRead("is a result file of lighteval or of the leaderboard, which are not read")
    if summaries := [task for task in file.results if task.lower() in _SUMMARIES]:
        raise NotRead(f"is another tool's: its results hold a summary ({summaries[0]})")
    has_config = isinstance(file.other.get("config"), dict)
    if not (has_config or file.has_filters or any(mark in file.other for mark in _MARKS)):
        raise NotRead("is no result file of lm-eval (no config, no versions)")
