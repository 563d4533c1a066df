"""The plan of a sweep: its variants, the steps that they share, their sizes, and what the store holds of it.

`mlkv plan` prints it, `mlkv sweep` freezes it in the store and runs what is missing. Planning reads conf/ and outside
facts; it runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

from mlkv.evaluate.task_files import TaskFiles
from mlkv.training_recipes import TrainRecipe
from sweeps.planning.compose import Composer
from sweeps.planning.config import Config
from sweeps.planning.efficiency import with_efficiency
from sweeps.planning.grammar import points
from sweeps.planning.labels import labelled
from sweeps.planning.parse import Checked, parse
from sweeps.planning.resolve import Resolver
from sweeps.planning.tokens import Tokens
from sweeps.planning.training import check_read, check_training
from sweeps.planning.variant import Variant
from sweeps.planning.variants import check_teacher_line, variants_of_point
from sweeps.steps.step import Step, with_work
from sweeps.store.errors import UserError
from sweeps.store.schema import PlanFile, PlannedStep


@dataclass(frozen=True)
class Plan:
    """Every variant of a sweep, labelled, and the steps they share."""

    config: Config
    variants: list[Variant]
    unresolved: tuple[str, ...] = ()
    """Of the hub, what it did not answer (`Resolver.only_shown`)."""

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def task_files(self) -> dict[str, TaskFiles]:
        """By digest, the tasks of one's own."""
        return {files.digest: files for variant in self.variants for files in variant.task_files.values()}

    @cached_property
    def steps(self) -> dict[str, Step]:
        """Distinct steps by id, parents before children."""
        return {step.id: with_work(step, v.work(step)) for v in self.variants for step in v.steps}

    def checkpoint_bytes(self, steps: set[str]) -> int:
        """Bytes of the checkpoints among these steps, in float32."""
        parameters: dict[str, int] = {}
        for variant in self.variants:
            for step in filter(None, (variant.base, variant.elastic)):
                parameters[step.id] = variant.model.shape.parameters(variant.model.layout)
            for step in filter(None, (variant.convert, *variant.earlier, variant.uptrain)):
                # A run that can be continued also leaves its weights and the optimizer's two moments as they were
                # before the decay.
                parameters[step.id] = variant.parameters * (4 if step.slice.get("rungs") else 1)
        return sum(4 * count for id, count in parameters.items() if id in steps)

    def plan_file(self, arguments: Sequence[str]) -> PlanFile:
        """What the store holds of it: what concerns the whole sweep, and the line that made it. The store numbers and
        dates it."""
        users: dict[str, list[str]] = {}
        for variant in self.variants:
            for step in variant.steps:
                users.setdefault(step.id, []).append(variant.label)
        config = self.config
        return PlanFile(
            name=self.name,
            number=0,
            created="",
            accuracy=list(config.evaluate.accuracy),
            axis=config.evaluate.axis,
            cluster=asdict(config.cluster),
            tracking=asdict(config.tracking),
            steps={
                id: PlannedStep(kind=step.kind, label=step.label, parents=step.parents, variants=users[id])
                for id, step in self.steps.items()
            },
            command=["mlkv", "sweep", *arguments],
        )


def make_plan(composer: Composer, resolver: Resolver, arguments: Sequence[str]) -> Plan:
    """The plan of a sweep's command line. Raises UserError for what can be known to fail."""
    variants: dict[tuple[str, ...], Variant] = {}
    config: Config | None = None
    tokens, resolver.own_tasks = Tokens(resolver), composer.own_tasks
    checked: Checked = {}
    for lines, varying in points(composer, arguments):
        values = composer(lines)
        config, values = with_efficiency(tokens.settled(parse(values, checked)), values)
        for variant in variants_of_point(resolver, config, values, varying):
            ids = tuple(step.id for step in variant.steps)
            variants[ids] = _merged(variants.get(ids, variant), variant)
    if config is None or not variants:
        raise UserError("no variant is left: sweep.filter or a glob matches nothing")
    check_teacher_line(arguments, variants.values())
    check_read(trained := _trained(variants.values()))
    check_training(trained)
    resolver.save()
    ordered = sorted(variants.values(), key=lambda variant: variant.baseline is None)
    return Plan(config, list(labelled(ordered)), tuple(resolver.unresolved))


def _trained(variants: Iterable[Variant]) -> set[tuple[str, TrainRecipe]]:
    """The recipes that variants are trained with, each with the kind of step."""
    bases = {("base", variant.config.base) for variant in variants if variant.base and variant.base.parents}
    elastic = {("elastic", variant.config.elastic) for variant in variants if variant.elastic}
    return bases | elastic | {("uptrain", variant.config.uptrain) for variant in variants if variant.uptrain}


def _merged(first: Variant, again: Variant) -> Variant:
    """One variant that two points of the sweep make. Only the override lines that both have stay: a value that can be
    another and makes the same steps (`convert.merge` where nothing is merged) does not describe it."""
    return replace(first, varying=tuple(line for line in first.varying if line in again.varying))
