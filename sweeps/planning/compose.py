"""From override strings to configurations: Hydra composes once per set of group choices, values are set on copies.

Composing the groups takes tens of milliseconds and setting values a few, so sweeps of thousands of variants plan in
seconds. Overrides that do more than set a value or merge a mapping (`+`, `++`, `~`, packages) go through Hydra.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from mlkv.registry import FOLDER
from sweeps.planning.config import SIZES, is_hashed, leaves
from sweeps.store.code import CONF
from sweeps.store.errors import UserError, choices

Values = dict[str, Any]
FULL = "full"
"""The scale at which an experiment is what conf/experiment/NAME.yaml says."""


def parse_overrides(lines: Sequence[str]) -> list[Override]:
    """Hydra's own grammar. Raises UserError naming the line that is not in it."""
    return [_parse_override(line) for line in lines]


@cache
def _parse_override(line: str) -> Override:
    try:
        return OverridesParser.create().parse_override(line)
    except HydraException as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{line}: not an override KEY=VALUE ({reason}); quote a value that holds brackets, commas, colons or "
            """quotes: 'KEY="VALUE"'"""
        ) from None


class Composer:
    """Composes configurations from conf/ and, if given, a user's own directory of the same shape."""

    def __init__(self, config_dir: Path | None = None) -> None:
        self._extra = config_dir
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        folders = [*CONF.iterdir(), *(config_dir.glob("*") if config_dir else ())]
        self.groups = {path.name for path in folders if path.is_dir() and path.name != FOLDER}

    def __call__(self, lines: Sequence[str]) -> Values:
        """The resolved configuration of override lines without sweeps. Raises UserError."""
        overrides = parse_overrides(lines)
        groups = tuple(line for line, o in zip(lines, overrides, strict=True) if not self._is_value(o))
        values = {o.key_or_group: o.value() for o in overrides if self._is_value(o)}
        chosen = {o.key_or_group for o in overrides} - values.keys()
        config = self._copy(groups)
        if _needs_local(config, values) and "model" not in chosen:
            config = self._copy((*groups, "model=local"))
        _replace_size(config, values)
        for key, value in values.items():
            _refuse_changing(key, value)
            OmegaConf.update(config, key, value, merge=True, force_add=True)
        return _named(_container(config))

    def whole(self, lines: Sequence[str]) -> Values:
        """The same through Hydra alone: slower, and the measure of the fast way."""
        return _container(self._compose(tuple(lines)))

    def options(self, group: str) -> list[str]:
        directories = [CONF / group, *([self._extra / group] if self._extra else [])]
        return sorted({path.stem for directory in directories for path in directory.glob("[!_]*.yaml")})

    def _is_value(self, override: Override) -> bool:
        plain = override.type is OverrideType.CHANGE and override.package is None
        return plain and override.key_or_group not in self.groups

    def _copy(self, groups: tuple[str, ...]) -> DictConfig:
        # Results are shared and not Hydra's own cache of files: with one CachingConfigRepository for several composes
        # Hydra 1.3 returns wrong configurations.
        if groups not in self._composed:
            self._composed[groups] = self._compose(groups)
        copied = self._composed[groups].copy()
        OmegaConf.set_struct(copied, False)  # which keys there are is for the schema to say, in its own words
        return copied

    def _compose(self, lines: tuple[str, ...]) -> DictConfig:
        search = [f"hydra.searchpath=[{_quoted(f'file://{self._extra.absolute()}')}]"] if self._extra else []
        try:
            with _hydra():
                composed = compose("config", overrides=[*self._scaled(lines), *search])
        except MissingConfigException as error:
            raise UserError(self._missing(error, lines)) from None
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise UserError(" ".join(str(error).split())) from None
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

    def _missing(self, error: MissingConfigException, lines: Sequence[str]) -> str:
        group, _, name = str(error.missing_cfg_file or "").rpartition("/")
        group = group.lstrip("/")
        given = [str(o.value()) for o in parse_overrides(lines) if o.key_or_group == "model"]
        if given and str(error.missing_cfg_file).lstrip("/") == f"model/{given[-1]}".rstrip("/"):
            return self._missing_model(given[-1])
        return f"{group} = {name}: {choices(name, self.options(group))}" if group else " ".join(str(error).split())

    def _missing_model(self, given: str) -> str:
        own = "a directory with a checkpoint is given as model.path"
        if Path(given).expanduser().exists():
            return f"model = {given}: {own}={given}"
        if given.startswith(("/", "~", ".")):
            return f"model = {given}: {own}=DIR, and there is no {given}"
        hub = f", a model of the hub as model.hub={given}" if given.count("/") == 1 else ""
        return f"model = {given}: {choices(given, self.options('model'))}; {own}=DIR{hub}"


def _needs_local(config: DictConfig, values: Mapping[str, Any]) -> bool:
    """Whether the line names a checkpoint where the chosen model is one to be trained here. A model of the hub stays
    what it is, and takes the directory for a copy of itself."""
    given = values.get("model.path") or values.get("model.hub")
    return bool(given and OmegaConf.select(config, "model.decoder"))


def _replace_size(config: DictConfig, values: Mapping[str, Any]) -> None:
    """A size that the line gives takes the place of the one in the option file of the layout: `layout=cla
    layout.cache=1/2` is every such layout with half the cache."""
    if values.get("layout.budget") is None and values.get("layout.cache") is None:
        return
    for key in SIZES:
        if OmegaConf.select(config, f"layout.{key}") is not None:
            config.layout[key] = None


def _named(values: Values) -> Values:
    """With the name of the model: that of its directory or its repository, where its option has none."""
    model = values.get("model")
    if isinstance(model, dict) and "name" in model and model["name"] is None:
        place = model.get("path") or model.get("hub") or ""
        model["name"] = Path(os.path.abspath(Path(str(place)).expanduser())).name if place else "local"
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
        with _decimal_numbers(), initialize_config_dir(str(CONF), version_base="1.3", job_name="mlkv"):
            yield
    finally:
        GlobalHydra.instance().hydra = outer


INTEGER = "tag:yaml.org,2002:int"
DECIMAL = re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)$")


@contextmanager
def _decimal_numbers() -> Iterator[None]:
    """YAML files are read without two rules of YAML 1.1, which PyYAML follows and YAML 1.2 has dropped: `20:00` is no
    number to the base 60 (1200; https://yaml.org/type/int.html) and `0123` none to the base 8 (83). Both stay text: a
    time limit of twenty minutes, a name or a number with a leading zero."""
    plain = yaml.SafeLoader.yaml_implicit_resolvers
    yaml.SafeLoader.yaml_implicit_resolvers = {
        first: [(tag, DECIMAL if tag == INTEGER else pattern) for tag, pattern in resolvers]
        for first, resolvers in plain.items()
    }
    try:
        yield
    finally:
        yaml.SafeLoader.yaml_implicit_resolvers = plain


def _container(config: DictConfig) -> Values:
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key}: must be set") from None
    except OmegaConfBaseException as error:
        raise UserError(" ".join(str(error).split())) from None


def _refuse_changing(key: str, value: Any) -> None:
    """A step's id must not depend on the clock or the environment. Raises UserError."""
    if not is_hashed(key.partition(".")[0]):
        return
    for path, leaf in leaves(value, key):
        if isinstance(leaf, str) and any(mark in leaf for mark in ("${now:", "${oc.env:")):
            raise UserError(f"{path} = {leaf}: would change from run to run; write the value out")
