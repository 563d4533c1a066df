"""From override strings to configurations: Hydra composes once per set of group choices, values are set on copies.

Composing the groups takes tens of milliseconds and setting values a fraction of one, so sweeps of thousands of variants
plan in seconds. Overrides that do more than set a value or merge a mapping (`+`, `++`, `~`, packages) go through Hydra.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigTypeError, MissingMandatoryValue, OmegaConfBaseException

from mlkv.layout_rules import LAYOUT_RULES
from mlkv.patterns import PATTERNS
from mlkv.registry import FOLDER
from mlkv.training_recipes import LENGTHS
from sweeps.planning.config import TRAINED, is_hashed
from sweeps.planning.layout_config import SIZES
from sweeps.planning.own_tasks import OwnTasks
from sweeps.planning.plain_config import Values, select, with_values
from sweeps.planning.scalars import leaves
from sweeps.planning.yaml_files import our_files, read
from sweeps.steps.registry import BUILT_IN
from sweeps.store.code import CONF
from sweeps.store.errors import UserError, choices, shown

_CHOSEN = ("model", "layout", *BUILT_IN, "cluster", "tracking", "stopping", "search", "experiment", "scale")
"""Groups of which conf/config.yaml chooses one already."""
FULL = "full"
"""The scale at which an experiment is what conf/experiment/NAME.yaml says."""


def parse_overrides(lines: Sequence[str]) -> list[Override]:
    """Hydra's own grammar. Raises UserError naming the line that is not in it."""
    return [_parse_override(line) for line in lines]


@cache
def _parse_override(line: str) -> Override:
    try:
        override = OverridesParser.create().parse_override(line)
        if not override.key_or_group:
            raise ValueError("the key is missing")
    except (HydraException, ValueError, RecursionError) as error:
        reason = (str(error).splitlines() or ["nested too deeply"])[0]
        raise UserError(
            f"{shown(line)}: not an override KEY=VALUE ({reason}); quote a value that holds brackets, commas, colons "
            """or quotes: 'KEY="VALUE"'"""
        ) from None
    if override.key_or_group.partition(".")[0].partition("/")[0] == "hydra":
        raise UserError(f"{shown(line)}: mlkv composes with Hydra and runs without it, so its settings change nothing")
    return override


class Composer:
    """Composes configurations from conf/ and, if given, a user's own directory of the same shape."""

    def __init__(self, config_dir: Path | None = None) -> None:
        self._extra = config_dir
        self.own_tasks = OwnTasks(config_dir)
        self._by_groups: dict[tuple[str, ...], DictConfig] = {}
        self._plain_by_groups: dict[tuple[str, ...], Values] = {}
        folders = [*CONF.iterdir(), *(config_dir.glob("*") if config_dir else ())]
        self.groups = {path.name for path in folders if path.is_dir() and path.name != FOLDER}

    def __call__(self, lines: Sequence[str]) -> Values:
        """The resolved configuration of override lines without sweeps. Raises UserError."""
        overrides = parse_overrides(lines)
        groups = tuple(line for line, o in zip(lines, overrides, strict=True) if not self._is_value(o))
        values = {o.key_or_group: o.value() for o in overrides if self._is_value(o)}
        chosen = {o.key_or_group for o in overrides} - values.keys()
        if _needs_local(self._plain(groups), values) and "model" not in chosen:
            groups = (*groups, "model=local")
        plain = self._plain(groups)
        for key, value in values.items():
            _refuse_changing(key, value)
        changes = {**_replaced_size(plain, values), **_replaced_length(plain, values), **values}
        config = with_values(plain, changes)
        if config is None:
            config = self._through_omegaconf(groups, changes)
        return self.own_tasks.named(_named(config), lines)

    def whole(self, lines: Sequence[str]) -> Values:
        """The same through Hydra alone: slower, and the measure of the fast way."""
        return self.own_tasks.named(self._container(self._compose(tuple(lines))), lines)

    def plain(self, groups: Sequence[str]) -> Values:
        """What some choices of options compose to, with references as they are written. Raises UserError."""
        return self._plain(tuple(groups))

    def options(self, group: str) -> list[str]:
        directories = [CONF / group, *([self._extra / group] if self._extra else [])]
        return sorted({path.stem for directory in directories for path in directory.glob("[!_]*.yaml")})

    def _is_value(self, override: Override) -> bool:
        plain = override.type is OverrideType.CHANGE and override.package is None
        return plain and override.key_or_group not in self.groups

    def _composed(self, groups: tuple[str, ...]) -> DictConfig:
        # Results are shared and not Hydra's own cache of files: with one CachingConfigRepository for several composes
        # Hydra 1.3 returns wrong configurations.
        if groups not in self._by_groups:
            self._by_groups[groups] = self._compose(groups)
        return self._by_groups[groups]

    def _plain(self, groups: tuple[str, ...]) -> Values:
        """What Hydra composes of groups, with references as they are written."""
        if groups not in self._plain_by_groups:
            self._plain_by_groups[groups] = OmegaConf.to_container(self._composed(groups))  # type: ignore[assignment]
        return self._plain_by_groups[groups]

    def _through_omegaconf(self, groups: tuple[str, ...], changes: Values) -> Values:
        copied = self._composed(groups).copy()
        OmegaConf.set_struct(copied, False)  # which keys there are is for the schema to say, in its own words
        for key, value in changes.items():
            _set(copied, key, value)
        return self._container(copied)

    def _compose(self, lines: tuple[str, ...]) -> DictConfig:
        search = [f"hydra.searchpath=[{_quoted(f'file://{self._extra.absolute()}')}]"] if self._extra else []
        try:
            with _hydra():
                composed = compose("config", overrides=[*self._scaled(lines), *search])
        except MissingConfigException as error:
            raise UserError(self._missing(error, lines)) from None
        except RecursionError:
            raise UserError(f"{' '.join(map(shown, lines))}: its defaults lead back to itself") from None
        except OSError as error:  # the name of a file that the file system cannot have
            raise UserError(f"{' '.join(map(shown, lines))}: {error.strerror}") from None
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            reason = _reason(error) or "cannot be composed"
            raise UserError(reason if str(error) else f"{' '.join(map(shown, lines))}: {reason}") from None
        if "experiment" in composed:
            name = next(str(o.value()) for o in parse_overrides(self._scaled(lines)) if o.key_or_group == "experiment")
            raise UserError(f"experiment/{name}.yaml: its first line must be `# @package _global_`")
        for group in map(str, composed):
            if is_hashed(group) and OmegaConf.is_config(node := composed[group]):
                _refuse_changing(group, OmegaConf.to_container(node))
        return composed

    def _scaled(self, lines: tuple[str, ...]) -> list[str]:
        """`experiment=NAME scale=small` is `experiment=small/NAME`.

        A small experiment is a file and no factor on the large one's steps: model, corpus, learning rate and schedule
        change together, and a short run is a whole run with a cosine of its own, not the beginning of a long one.
        """
        overrides = parse_overrides(lines)
        for line, override in zip(lines, overrides, strict=True):
            self._check_choice(line, override)
        chosen = {o.key_or_group: str(o.value()) for o in overrides if o.type is OverrideType.CHANGE}
        scale = chosen.get("scale", FULL)
        if scale == FULL or scale not in self.options("scale"):
            return list(lines)
        name, scaled = chosen.get("experiment"), self.options(f"experiment/{scale}")
        if name not in scaled:
            fault = f"experiment {name} has none of that size" if name else "needs an experiment"
            raise UserError(f"scale = {scale}: {fault}; valid: {', '.join(scaled)}")
        others = [line for line, o in zip(lines, overrides, strict=True) if o.key_or_group != "experiment"]
        return [f"experiment={scale}/{name}", *others]

    def _container(self, config: DictConfig) -> Values:
        try:
            return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
        except MissingMandatoryValue as error:
            unset = [str(error.full_key)]
            with suppress(OmegaConfBaseException):  # of another value that refers to one that is missing
                unset = sorted(OmegaConf.missing_keys(config)) or unset
            raise UserError("; ".join(f"{key}: must be set{self._place_of(key)}" for key in unset)) from None
        except OmegaConfBaseException as error:
            raise UserError(_reason(error)) from None

    def _place_of(self, key: str) -> str:
        """Where the user's own files leave a key unset."""
        group, _, rest = key.partition(".")
        folders = {"experiment": key, group: rest} if self._extra else {}
        paths = [
            str(path)
            for folder, inside in folders.items()
            for path in sorted((self._extra or Path()).glob(f"{folder}/**/*.yaml"))
            if _leaves_unset(path, inside)
        ]
        return f" (edit {' or '.join(paths)})" if paths else ""

    def _missing(self, error: MissingConfigException, lines: Sequence[str]) -> str:
        group, _, name = str(error.missing_cfg_file or "").rpartition("/")
        group = group.lstrip("/")
        given = [str(o.value()) for o in parse_overrides(lines) if o.key_or_group == "model"]
        if given and str(error.missing_cfg_file).lstrip("/") == f"model/{given[-1]}".rstrip("/"):
            return self._missing_model(given[-1])
        if not group:
            return " ".join(str(error).split())
        hint = "; a pattern is given as layout.pattern=NAME, a rule as layout=searched layout.rule=NAME"
        known = group == "layout" and (name in PATTERNS or name in LAYOUT_RULES)
        return f"{group} = {shown(name)}: {choices(name, self.options(group))}{hint if known else ''}"

    def _check_choice(self, line: str, override: Override) -> None:
        """Raises UserError where a group is set to what is no name: Hydra takes some of it for no choice at all."""
        group, value = override.key_or_group, override.value()
        if group not in self.groups or override.is_delete():
            return
        if override.is_add() and group in _CHOSEN:
            raise UserError(f"{line}: {group} is chosen already; leave out the +")
        names = value if isinstance(value, list) else [value]
        if not names or not all(isinstance(name, str) and name.isprintable() for name in names):
            raise UserError(f"{group} = {shown(value)}: is no name; {choices('', self.options(group))}")

    def _missing_model(self, given: str) -> str:
        own = "a directory with a checkpoint is given as model.path"
        if Path(os.path.expanduser(given)).exists():
            return f"model = {given}: {own}={given}"
        if given.startswith(("/", "~", ".")):
            return f"model = {given}: {own}=DIR, and there is no {given}"
        hub = f", a model of the hub as model.hub={given}" if given.count("/") == 1 else ""
        return f"model = {given}: {choices(given, self.options('model'))}; {own}=DIR{hub}"


def _needs_local(config: Values, values: Mapping[str, Any]) -> bool:
    """Whether the line names a checkpoint where the chosen model is one to be trained here. A model of the hub stays
    what it is, and takes the directory for a copy of itself."""
    given = values.get("model.path") or values.get("model.hub")
    return bool(given and select(config, "model.decoder"))


def _replaced_size(config: Values, values: Mapping[str, Any]) -> Values:
    """A size that the line gives takes the place of the one in the option file of the layout: `layout=cla
    layout.cache=1/2` is every such layout with half the cache."""
    if values.get("layout.budget") is None and values.get("layout.cache") is None:
        return {}
    return {key: None for name in SIZES if select(config, key := f"layout.{name}") is not None}


def _replaced_length(config: Values, values: Mapping[str, Any]) -> Values:
    """Rungs that the line gives take the place of the length in the option file of the training, and the other way
    round."""
    changes: Values = {}
    for kind in TRAINED:
        given = [name for name in LENGTHS if values.get(f"{kind}.{name}") not in (None, [])]
        replaced = () if not given else LENGTHS if given == ["rungs"] else ("rungs",)
        for name in set(replaced).difference(given):
            if select(config, key := f"{kind}.{name}") is not None:
                changes[key] = [] if name == "rungs" else None
    return changes


def _named(values: Values) -> Values:
    """With the name of the model: that of its directory or its repository, where its option has none."""
    model = values.get("model")
    if isinstance(model, dict) and "name" in model and model["name"] is None:
        place = model.get("path") or model.get("hub") or ""
        model["name"] = Path(os.path.abspath(os.path.expanduser(str(place)))).name if place else "local"
    return values


def _quoted(value: str) -> str:
    """A value in Hydra's grammar, whatever characters it has (https://hydra.cc/docs/advanced/override_grammar/basic/)."""
    escaped = value.replace("\\'", "\\\\'").replace("'", "\\'")
    return f"'{escaped}'"


@contextmanager
def _hydra() -> Iterator[None]:
    """Hydra's state is global: where a Hydra program calls this (the sweeper plugin), its state is restored."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3", job_name="mlkv"), our_files():
            yield
    finally:
        GlobalHydra.instance().hydra = outer


def _leaves_unset(path: Path, key: str) -> bool:
    """Whether a file says that a key must be set; one that cannot be read, and so was not composed, says nothing."""
    above, _, name = key.rpartition(".")
    try:
        config = read(path)
    except UserError:
        return False
    node = OmegaConf.select(config, above) if above else config
    return isinstance(node, DictConfig) and OmegaConf.is_missing(node, name)


def _set(config: DictConfig, key: str, value: Any) -> None:
    """A mapping is merged into one that is there; any other value replaces what is there, of whatever type it is."""
    try:
        try:
            OmegaConf.update(config, key, value, merge=True, force_add=True)
        except ConfigTypeError:
            OmegaConf.update(config, key, value, merge=False, force_add=True)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise UserError(f"{key} = {shown(value)}: {str(error).splitlines()[0]}") from None


def _reason(error: Exception) -> str:
    """The error's first line, after the key that it is about; the rest is about Hydra's own objects."""
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {str(error).splitlines()[0]}"
    return " ".join(str(error).split())


def _refuse_changing(key: str, value: Any) -> None:
    """A step's id must not depend on the clock or the environment. Raises UserError."""
    if not is_hashed(key.partition(".")[0]):
        return
    for path, leaf in leaves(value, key):
        if isinstance(leaf, str) and any(mark in leaf for mark in ("${now:", "${oc.env:")):
            raise UserError(f"{path} = {leaf}: would change from run to run; write the value out")
