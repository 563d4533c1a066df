"""The plan of a sweep: its variants, the steps that they share, their sizes, and what the store holds of it.

`mlkv plan` prints it, `mlkv sweep` freezes it in the store and runs what is missing. Planning reads conf/ and outside
facts; it runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

from mlkv.evaluate.task_files import TaskFiles
from mlkv.training_recipes import TrainRecipe
from sweeps.planning.compose import Composer
from sweeps.planning.config import Config
from sweeps.planning.efficiency import with_efficiency
from sweeps.planning.grammar import points
from sweeps.planning.labels import RULE, key_of, labelled
from sweeps.planning.overruled import overruled
from sweeps.planning.parse import Checked, parse
from sweeps.planning.plain_config import Values
from sweeps.planning.resolve import Resolver
from sweeps.planning.searched import SearchedLayouts
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
    command: str = "sweep"
    """The subcommand whose line made it."""
    stopped: Mapping[str, str] = field(default_factory=dict)
    """Steps that are not to be run: id → the reason, in one line."""
    driven: bool = False
    """Whether a driver decides what is run next."""
    following: int = 0
    """How many layouts follow by rule from these steps: then the variants are what the rules read, and the same line is
    planned again when they are done."""
    overruled: tuple[str, ...] = ()
    """Options of the line of which the experiment replaces values, each in one line."""
    expected: tuple[Variant, ...] = ()
    """Variants of that size in place of those that follow: what they read from the internet is known by them."""

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def task_files(self) -> dict[str, TaskFiles]:
        """By digest, the tasks of one's own."""
        every = (*self.variants, *self.expected)
        return {files.digest: files for variant in every for files in variant.task_files.values()}

    @cached_property
    def steps(self) -> dict[str, Step]:
        """Distinct steps by id, parents before children."""
        return {step.id: with_work(step, v.work(step)) for v in self.variants for step in v.steps}

    @property
    def with_expected(self) -> dict[str, Step]:
        """The same, and steps in place of those that follow."""
        return {**self.steps, **{step.id: step for variant in self.expected for step in variant.steps}}

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
            following=self.following or None,
            command=["mlkv", self.command, *arguments],
            stopped=dict(self.stopped) or None,
            driven=self.driven or None,
        )


def make_plan(composer: Composer, resolver: Resolver, arguments: Sequence[str]) -> Plan:
    """The plan of a sweep's command line. Raises UserError for what can be known to fail."""
    planner, variants = Planner(composer, resolver), list[Variant]()
    config: Config | None = None
    first: Sequence[str] = ()
    for lines, varying in points(composer, arguments):
        first = first or lines
        config, of_point = planner.variants(lines, varying)
        variants += of_point
    if config is None or not variants:
        raise UserError("no variant is left: sweep.filter or a glob matches nothing")
    return replace(planner.plan(config, variants, arguments), overruled=tuple(overruled(composer, first, arguments)))


class Planner:
    """Plans points one after another; what they share is found once."""

    def __init__(self, composer: Composer, resolver: Resolver) -> None:
        self._composer, self._resolver = composer, resolver
        self._tokens, resolver.own_tasks = Tokens(resolver), composer.own_tasks
        self._search = SearchedLayouts(resolver.store)
        self._checked: Checked = {}

    def config(self, lines: Sequence[str]) -> tuple[Config, Values]:
        """The checked configuration of override lines without sweeps. Raises UserError."""
        values = self._composer(lines)
        return with_efficiency(self._tokens.settled(parse(values, self._checked)), values)

    def variants(
        self, lines: Sequence[str], varying: Sequence[str], *, baselines: bool = True
    ) -> tuple[Config, list[Variant]]:
        """The variants of a point, which may be none, and its configuration. Raises UserError."""
        config, values = self.config(lines)
        return config, list(
            variants_of_point(self._resolver, self._search, config, values, varying, baselines=baselines)
        )

    def plan(self, config: Config, variants: Iterable[Variant], arguments: Sequence[str]) -> Plan:
        """The plan of some points' variants, with their labels. Raises UserError."""
        distinct: dict[tuple[str, ...], Variant] = {}
        for variant in variants:
            ids = tuple(step.id for step in variant.steps)
            distinct[ids] = _merged(distinct.get(ids, variant), variant)
        search = self._search
        search.check_read()
        check_teacher_line(arguments, distinct.values())
        check_read(trained := _trained(distinct.values()))
        check_training(trained)
        self._resolver.save()
        shown = search.inputs or distinct
        ordered = sorted(shown.values(), key=lambda variant: variant.baseline is None)
        unresolved, following = tuple(self._resolver.unresolved), len(search.following)
        expected = tuple(distinct.values()) if search.inputs else ()
        return Plan(config, list(labelled(ordered)), unresolved, following=following, expected=expected)


def _trained(variants: Iterable[Variant]) -> set[tuple[str, TrainRecipe]]:
    """The recipes that variants are trained with, each with the kind of step."""
    bases = {("base", variant.config.base) for variant in variants if variant.base and variant.base.parents}
    elastic = {("elastic", variant.config.elastic) for variant in variants if variant.elastic}
    return bases | elastic | {("uptrain", variant.config.uptrain) for variant in variants if variant.uptrain}


def _merged(first: Variant, again: Variant) -> Variant:
    """One variant that two points of the sweep make. Only the override lines that both have stay: a value that can be
    another and makes the same steps (`convert.merge` where nothing is merged) does not describe it; but of rules that
    make the same layout, each does."""
    varying = [line for line in first.varying if line in again.varying and key_of(line) != RULE]
    lines = [line for each in (first, again) for line in each.varying if key_of(line) == RULE]
    rules = dict.fromkeys(rule for line in lines for rule in line.partition("=")[2].split(","))
    return replace(first, varying=(*varying, *([f"{RULE}={','.join(rules)}"] if rules else [])))
