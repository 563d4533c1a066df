"""A config directory of one's own, as `mlkv init` writes it: commented files in which what is given is filled in, and
the rest is `???`, which a plan refuses with the name of the file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from os.path import abspath, expanduser
from pathlib import Path
from tempfile import TemporaryDirectory

from mlkv.evaluate.definitions import read_definition
from mlkv.evaluate.task_files import members, name_of
from mlkv.layout import KVLayout
from mlkv.patterns import budgets, of_budget
from mlkv.registry import load_extensions
from sweeps.planning.compose import Composer
from sweeps.planning.config import ModelConfig
from sweeps.planning.json_schema import NAME as SCHEMA
from sweeps.planning.json_schema import text as schema_text
from sweeps.planning.own_tasks import OwnTasks, accuracy_of
from sweeps.planning.plan import Plan, make_plan
from sweeps.planning.resolve import Model, Resolver
from sweeps.store.code import CONF
from sweeps.store.errors import UserError
from sweeps.store.store import Store

NAME = "mine"
"""Of every file, and of the sweep."""
BITS = "bits_per_byte"
"""The task that every text has."""
_YAML = tuple(f"{group}/{NAME}.yaml" for group in ("model", "corpus", "evaluate", "uptrain", "experiment"))
FILES = (*_YAML, SCHEMA)
_TEMPLATES = Path(__file__).with_name("templates")
_LONGEST_ROW = 512
"""Tokens. Models have contexts of up to a million, which no first look should train on."""
_PATTERN = "even"
"""That of conf/layout/mha.yaml, with which an experiment begins."""


@dataclass(frozen=True)
class Given:
    """What the configuration is to be about; the rest is left to be filled in."""

    model: str | None = None
    """A directory with a checkpoint."""
    text: tuple[str, ...] = ()
    """Files, globs and folders."""
    tasks: str | None = None
    """A YAML file of lm-eval, or a folder of such."""

    @property
    def nothing(self) -> bool:
        return not (self.model or self.text or self.tasks)

    @property
    def all(self) -> bool:
        return bool(self.model and self.text and self.tasks)

    def stand_ins(self) -> list[str]:
        """Override lines that put something else in the place of what is not given."""
        model = [] if self.model else ["model=tiny", "base=small", "corpus.vocab_size=2048"]
        text = [] if self.text else ["corpus=python_stdlib", "corpus.task_items=0"]
        return [*model, *text, *([] if self.tasks else [f"evaluate.tasks=[{BITS}]"])]


def new_config(given: Given) -> dict[str, str]:
    """The files of the directory by name. Raises UserError for what cannot be used."""
    files = {name: (_TEMPLATES / name).read_text("utf-8") for name in _YAML}
    if given.model:
        model = _model(given.model)
        files[f"model/{NAME}.yaml"] = _filled(files[f"model/{NAME}.yaml"], path=_absolute(given.model))
        row = min(model.shape.context, _LONGEST_ROW)
        files[f"corpus/{NAME}.yaml"] = _filled(files[f"corpus/{NAME}.yaml"], sequence_length=row)
        shares = f"[{', '.join(map(str, _shares(model.layout)))}]"
        files[f"experiment/{NAME}.yaml"] = files[f"experiment/{NAME}.yaml"].replace("[1/2, 1/4]", shares)
    if given.text:
        paths = [_absolute(path) for path in given.text]
        files[f"corpus/{NAME}.yaml"] = _filled(files[f"corpus/{NAME}.yaml"], files=paths)
    if given.tasks:
        files[f"evaluate/{NAME}.yaml"] = _filled(files[f"evaluate/{NAME}.yaml"], **_tasks(given.tasks))
    return {**files, SCHEMA: schema_text() if load_extensions() else (CONF / SCHEMA).read_text("utf-8")}


def unset(text: str) -> list[str]:
    """The keys of a file that are to be filled in."""
    return re.findall(r"^(\w+): \?\?\?$", text, re.MULTILINE)


def check(files: Mapping[str, str], given: Given) -> Plan | None:
    """The plan of the experiment in `files`, with something else in the place of what is not given; None where nothing
    is. Raises UserError for what a plan refuses."""
    if given.nothing:
        return None
    with TemporaryDirectory() as folder:
        for name, text in files.items():
            (path := Path(folder) / name).parent.mkdir(exist_ok=True)
            path.write_text(text, "utf-8")
        resolver = Resolver(Store(Path(folder) / "store"), only_shown=True)
        return make_plan(Composer(Path(folder)), resolver, [f"experiment={NAME}", *given.stand_ins()])


def _model(path: str) -> Model:
    with TemporaryDirectory() as folder:
        return Resolver(Store(Path(folder))).model(ModelConfig(NAME, path=path))


def _shares(layout: KVLayout) -> list[Fraction]:
    """Half and a quarter of a base's cache, or what is nearest to them. Raises UserError where it cannot be smaller."""
    whole = Fraction(layout.budget)
    possible = [b for b in budgets(_PATTERN, layout) if b < whole and of_budget(_PATTERN, b, layout)]
    if not possible:
        raise UserError(f"--model: its cache of {layout.budget} KV heads cannot become smaller")
    near = (min(possible, key=lambda budget: abs(budget / whole - Fraction(1, part))) for part in (2, 4))
    return list(dict.fromkeys(budget / whole for budget in near))


def _tasks(given: str) -> dict[str, object]:
    path = Path(_absolute(given))
    if path.is_dir():
        own = OwnTasks()
        found = own.definitions("", str(path))
        inside = {name for definition in found.values() for name in members(read_definition(definition))}
        if not (names := [name for name in found if name not in inside]):
            raise UserError("; ".join([f"--tasks = {given}: no file in it defines a task", *own.faults(str(path))[:1]]))
        return {"tasks": [*names, BITS], "include_path": str(path), **_scores([found[name] for name in names])}
    if not path.is_file():
        raise UserError(f"--tasks = {given}: no such file or folder; tasks of lm-eval are named in the written file")
    return {"tasks": [str(path), BITS], **_scores([path])}


def _scores(definitions: Sequence[Path]) -> dict[str, object]:
    try:
        found = [(name_of(path), accuracy_of(read_definition(path))) for path in definitions]
    except ValueError as error:
        raise UserError(f"--tasks: {error}") from None
    return {"accuracy": [[name, metric] for name, metric in found if metric]}


def _absolute(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"{path}: is not UTF-8, which a configuration cannot hold; rename it") from None
    return abspath(expanduser(path))


def _filled(template: str, **values: object) -> str:
    """A template with other values for keys at the beginning of a line."""
    for key, value in values.items():
        line = f"{key}: {_yaml(value)}"
        [place] = re.findall(rf"^{key}: .*$", template, re.MULTILINE)
        template = template.replace(f"\n{place}\n", f"\n{line}\n")
    return template


def _yaml(value: object) -> str:
    """JSON is YAML; and what OmegaConf would read as an interpolation is escaped."""
    return json.dumps(_escaped(value), ensure_ascii=False)


def _escaped(value: object) -> object:
    if isinstance(value, list):
        return [_escaped(each) for each in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value
