"""What the report page says, read from the store; templates/report.html only arranges it.

Everything here is plain data. Names, reasons and log lines come from users and are escaped by the template.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.data.gather import Steps
from analysis.page.page_json import Links, PageJson, page_json
from analysis.statistics.sources import Source
from analysis.tables.elastic_table import elastic
from analysis.tables.results_table import results_table
from analysis.tables.similarity_table import similarity
from analysis.tables.table import Table
from sweeps.store.schema import PlanFile, Record
from sweeps.store.states import StepState
from sweeps.store.store import Store

_SECTIONS = (
    ("elastic", "Cut from one elastic training, and trained separately", elastic),
    ("similarity", "Layers of the base: how alike two are, and the damage where one reads the other", similarity),
)


@dataclass(frozen=True)
class Failure:
    step: str
    label: str
    state: str
    reason: str
    variants: list[str]
    log: list[str]
    log_link: str | None


@dataclass(frozen=True)
class KindProgress:
    kind: str
    states: dict[str, int]
    device_seconds: float
    wall_seconds: float

    @property
    def total(self) -> int:
        return sum(self.states.values())

    @property
    def done(self) -> int:
        return self.states.get("DONE", 0)


@dataclass(frozen=True)
class Page:
    name: str
    number: int
    created: str
    command: str
    table: Table
    variants: list[str]
    finished: int
    progress: list[KindProgress]
    failures: list[Failure]
    common: list[tuple[str, str]]
    provenance: list[tuple[str, list[tuple[str, int]]]]
    data: PageJson
    notes: list[str]
    """What a reader of any of these results should know (Source.notes)."""
    sections: list[tuple[str, str, Table]]
    """Further tables, where a sweep has what they show: id, heading and table."""

    @property
    def steps(self) -> int:
        return sum(kind.total for kind in self.progress)

    @property
    def done(self) -> int:
        return sum(kind.done for kind in self.progress)

    @property
    def states(self) -> dict[str, int]:
        """How many distinct steps are in each state."""
        return dict(sum((Counter(kind.states) for kind in self.progress), Counter[str]()))

    @property
    def device_hours(self) -> float:
        return sum(kind.device_seconds for kind in self.progress) / 3600

    @property
    def hours_of(self) -> str:
        """`GPU-hours`, where all that finished was computed on processors `CPU-hours`, and of both `device-hours`."""
        devices = [device for name, values in self.provenance if name == "device" for device, _ in values]
        kinds = {"GPU-hours" if device.startswith("cuda") else "CPU-hours" for device in devices} or {"GPU-hours"}
        return kinds.pop() if len(kinds) == 1 else "device-hours"


def page(store: Store, source: Source, out_dir: Path, printed: Table | None = None) -> Page:
    """The page of a sweep; its links lead from `out_dir` to the store's files. `printed`: its results table, where the
    caller has it already. Raises ValueError for other results."""
    sweep, steps, results = source.sweep, source.steps, source.results
    if sweep is None or steps is None:
        raise ValueError(f"{source.name}: only a sweep has steps to show")
    plan, printed, rows = sweep.plan, printed or results_table(results), results.frame["variant"]
    configs = [flatten(variant.config) for variant in sweep.variants]
    common = shared_items(configs)
    own = [sorted(f"{key}={value}" for key, value in config.items() - common.items()) for config in configs]
    links = Links(store, sweep, out_dir)
    return Page(
        name=sweep.name,
        number=sweep.number,
        created=plan.created,
        command=" ".join(plan.command or []),
        table=printed,
        variants=[variant.variant for variant in sweep.variants],
        finished=sum(row["state"] == "DONE" for name in rows for row in results.estimates.members[name]),
        progress=[_progress(kind, plan, steps) for kind in dict.fromkeys(each.kind for each in plan.steps.values())],
        failures=list(_failures(plan, steps, links)),
        common=sorted(common.items()),
        provenance=provenance(record for step in plan.steps if (record := steps.record(step))),
        data=page_json(sweep, steps, results, printed, own, links),
        notes=source.notes,
        sections=[(name, heading, table) for name, heading, make in _SECTIONS if (table := make(source, None))],
    )


def flatten(config: Any, prefix: str = "") -> dict[str, str]:
    """A nested config as dotted keys and printed values: `uptrain.lr` → `0.001`."""
    if not isinstance(config, Mapping) or not config:
        return {prefix: "" if config is None else str(config)} if prefix else {}
    return {
        key: value
        for name, inner in config.items()
        for key, value in flatten(inner, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def shared_items(configs: list[dict[str, str]]) -> dict[str, str]:
    """What all configs agree on."""
    if not configs:
        return {}
    shared = set(configs[0].items())
    for config in configs[1:]:
        shared &= config.items()
    return dict(shared)


def _progress(kind: str, plan: PlanFile, steps: Steps) -> KindProgress:
    ids = [step for step, planned in plan.steps.items() if planned.kind == kind]
    records = [record for step in ids if (record := steps.record(step))]
    return KindProgress(
        kind=kind,
        states=dict(Counter(steps.state_of(step)[0] for step in ids)),
        device_seconds=sum(record.device_seconds for record in records),
        wall_seconds=sum(record.wall_seconds for record in records),
    )


def _failures(plan: PlanFile, steps: Steps, links: Links) -> Iterator[Failure]:
    for step, planned in plan.steps.items():
        state, reason = steps.state_of(step)
        if state in (StepState.FAILED, StepState.LOST):
            link, log = links.log(step)
            yield Failure(step, planned.label, state, reason or "", planned.variants, log, link)


def provenance(records: Iterable[Record]) -> list[tuple[str, list[tuple[str, int]]]]:
    """What made the finished steps: for each fact its values, the commonest first, with how many steps have it."""
    counts: dict[str, Counter[str]] = {}
    for record in records:
        facts = {"code": record.code, "host": record.host, "device": record.device, **record.versions}
        for name, value in facts.items():
            if value:
                counts.setdefault(name, Counter())[value] += 1
    return [(name, values.most_common()) for name, values in counts.items()]
