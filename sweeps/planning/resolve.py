"""Outside references → pinned facts: hub branch → commit, local files → digest, config.json → shape.

No other part of planning reads anything but conf/ and the store. A fact is part of a step's identity; the place that
it was read from is not. File digests are cached by path, size and time of change.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, field
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from os.path import expanduser
from pathlib import Path
from typing import Any, TypeVar

from mlkv.corpus.documents import identifying_files, place_of, splits_duplicates
from mlkv.corpus.domains import LIBRARY
from mlkv.corpus.formats import is_readable
from mlkv.corpus.found_files import content_digest
from mlkv.corpus.vocabulary import Vocabulary, read_vocabulary
from mlkv.evaluate.few_shot import answer_tokens, own_counts
from mlkv.evaluate.ruler import chosen, offered
from mlkv.evaluate.task_names import check_task, own_tasks
from mlkv.evaluate.tasks import DOMAIN_RECALL, TASKS
from mlkv.families.config import layout_of, read_config, shape_of
from mlkv.families.load import check_checkpoint
from mlkv.families.tables import FAMILIES
from mlkv.layout import KVLayout, mha
from mlkv.recipes import RECALL_ROWS, CorpusRecipe
from mlkv.shape import DecoderShape
from sweeps.planning import hub
from sweeps.planning.config import EvaluateConfig, ModelConfig
from sweeps.planning.own_tasks import OwnTasks
from sweeps.planning.texts import check_text
from sweeps.planning.tokens import may_have_tokenizer
from sweeps.steps.evaluate import LIBRARY_TEXT, TASK_FILES
from sweeps.steps.model_files import TOKENIZER, WEIGHTS
from sweeps.store.errors import UserError
from sweeps.store.files import read_cache, sha256, write_json
from sweeps.store.store import Store
from sweeps.store.user_cache import user_cache

Pins = dict[str, str]
R = TypeVar("R")
LM_EVAL = "lm_eval"
"""The package that defines most tasks, and the pin of a step that uses it."""


@dataclass(frozen=True)
class Model:
    """A base model's facts: `pins` are its identity, `source` where to load it from (None: trained here)."""

    shape: DecoderShape
    layout: KVLayout
    find_pins: Callable[[], Pins] = field(compare=False)
    source: dict[str, str] | None

    @cached_property
    def pins(self) -> Pins:
        """Found when they are first needed: the digest of large weights takes a while."""
        return self.find_pins()

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """The ids of its own tokenizer; None where they are not known before it is fetched or converted. Raises
        UserError where the weights have no embedding for the token that ends every document."""
        if self.source is None or "path" not in self.source:
            return None
        directory = Path(self.source["path"])
        with _named(f"model.path = {directory}", directory):
            found = read_vocabulary(directory)
            if found and found.end is not None and found.end >= self.shape.vocab_size:
                raise ValueError(
                    f"its tokenizer ends a document with id {found.end}, and the model takes ids below "
                    f"{self.shape.vocab_size} (vocab_size)"
                )
        return found


@dataclass(frozen=True)
class FileDigest:
    """SHA-256 (hex) of a file that had this size, and was changed at this time, when it was read."""

    bytes: int
    modified_ns: int
    sha256: str


DIGESTS, MAX_DIGESTS = "digests.json", 100_000


class Resolver:
    """Resolves each distinct reference once.

    only_shown: for a plan that is looked at and not run. What the hub does not answer is then in `unresolved`: its
    branch stands in the place of the commit, so that no step of it is one that was run.
    """

    def __init__(self, store: Store, *, only_shown: bool = False) -> None:
        self.store = store
        self.only_shown = only_shown
        self.unresolved: dict[str, None] = {}
        self.own_tasks = OwnTasks()
        self._models: dict[ModelConfig, Model] = {}
        self._corpora: dict[tuple[CorpusRecipe, ModelConfig], tuple[Pins, dict[str, str]]] = {}
        self._texts: dict[CorpusRecipe, str] = {}
        self._notes: dict[tuple[CorpusRecipe, ModelConfig], str] = {}
        self._checked: set[ModelConfig] = set()
        # The store has those of earlier code.
        self._digests = {**_read_digests(store.cache(DIGESTS)), **_read_digests(user_cache(DIGESTS))}
        self._new_digests: dict[str, FileDigest] = {}

    def model(self, config: ModelConfig) -> Model:
        if config not in self._models:
            self._models[config] = self._model(config)
        return self._models[config]

    def _model(self, config: ModelConfig) -> Model:
        if config.decoder:
            return Model(config.decoder, mha(config.decoder.layers, config.decoder.heads), dict, None)
        if config.path:
            return self._local(config.path)
        assert config.hub
        try:
            commit = hub.model_commit(config.hub, config.revision)
            published = hub.model_config(config.hub, commit)
        except hub.OutOfReach:
            if not (self.only_shown and config.config):
                raise
            commit, published = config.revision, config.config
            self.unresolved[config.hub] = None
        pins = {"model": f"{config.hub}@{commit}"} | _family_pins(published)
        return Model(*_read_shape(published, config.hub), lambda: pins, {"hub": config.hub, "revision": commit})

    def _local(self, given: str) -> Model:
        directory, where = Path(expanduser(given)), f"model.path = {given}"
        if not (directory / "config.json").is_file():
            raise UserError(f"{where}: no checkpoint there{_near(directory)}")
        with _named(where, directory):
            config = read_config(directory)
        weights = [path for pattern in WEIGHTS for path in directory.glob(pattern) if path.is_file()]

        def pins() -> Pins:
            return {"model": self._digest_of(weights)} | _family_pins(config)

        return Model(*_read_shape(config, given), pins, {"path": str(directory.absolute())})

    def check_base(self, config: ModelConfig) -> None:
        """Raises UserError for a directory whose weights cannot be loaded, as far as their headers show it."""
        if config.path and config not in self._checked:
            directory = Path(expanduser(config.path))
            with _named(f"model.path = {config.path}", directory):
                check_checkpoint(directory)
            self._checked.add(config)

    def corpus(self, recipe: CorpusRecipe, model: ModelConfig) -> tuple[Pins, dict[str, str]]:
        """Pins of a corpus, and where its tokenizer comes from unless it is made of the text."""
        key = (recipe, model)
        if key not in self._corpora:
            self._corpora[key] = self._corpus(recipe, model)
        return self._corpora[key]

    def _corpus(self, recipe: CorpusRecipe, model: ModelConfig) -> tuple[Pins, dict[str, str]]:
        if recipe not in self._texts:
            self._texts[recipe] = self._text(recipe)
        rows = {"recall": RECALL_ROWS} if recipe.recall else {}
        pins = {"text": self._texts[recipe], **self._split(recipe), **rows}
        if recipe.tokenizer == "train":
            return pins, {}
        if recipe.tokenizer == "published":
            pin, given = self.tokenizer(recipe)
            return {**pins, "tokenizer": pin}, given
        facts = self.model(model)
        source = facts.source
        if source is None:
            raise UserError(
                f"corpus.tokenizer = model: model {model.name} is trained here and has none (valid: train, published)"
            )
        if not may_have_tokenizer(source):
            raise UserError(
                f"model.path = {model.path}: no tokenizer there; add the one that its weights were trained with "
                "(tokenizer.json), or name it: corpus.tokenizer=published corpus.tokenizer_from=DIR"
            )
        _ = facts.vocabulary  # which refuses a tokenizer that does not fit
        return {**pins, "tokenizer": facts.pins["model"]}, source

    def tokenizer(self, recipe: CorpusRecipe) -> tuple[str, dict[str, str]]:
        """The identity of a tokenizer that is given, and where it is."""
        given = str(recipe.tokenizer_from)
        directory = Path(expanduser(given))
        if not directory.is_dir():
            commit = self._commit(hub.tokenizer_commit, given, recipe.tokenizer_revision)
            return f"{given}@{commit}", {"hub": given, "revision": commit}
        files = {path for pattern in TOKENIZER for path in directory.glob(pattern)}
        if not any(path.name == "tokenizer.json" for path in files):
            raise UserError(f"corpus.tokenizer_from = {given}: no tokenizer.json there")
        return self._digest_of(files), {"path": str(directory.absolute())}

    def corpus_note(self, recipe: CorpusRecipe, model: ModelConfig) -> str:
        """What the plan says about a corpus's text. Raises UserError for text that cannot become a corpus."""
        if (recipe, model) not in self._notes:
            _, source = self.corpus(recipe, model)
            folder = Path(source["path"]) if "path" in source else None
            self._notes[recipe, model] = check_text(recipe, folder)
        return self._notes[recipe, model]

    def _split(self, recipe: CorpusRecipe) -> Pins:
        """Earlier code split these files by their names alone: where that put equal ones on both sides, the id is
        new."""
        if recipe.source != "text_files":
            return {}
        digests = {name: self._file_digest(path) for name, path in identifying_files(recipe)}
        return {"split": "equal texts on one side"} if splits_duplicates(digests, recipe.held_out) else {}

    def _text(self, recipe: CorpusRecipe) -> str:
        try:
            files = identifying_files(recipe)
        except ValueError as error:
            raise UserError(f"corpus.{error}") from None
        if not files and recipe.source == "hf":
            return self._hub_text(recipe)
        try:
            return content_digest(files, self._file_digest)
        except OSError as error:
            raise UserError(f"corpus.{place_of(recipe)}: {error.filename}: {error.strerror}") from None

    def _hub_text(self, recipe: CorpusRecipe) -> str:
        assert recipe.dataset
        if Path(expanduser(recipe.dataset)).exists():
            raise UserError(f"corpus.dataset = {recipe.dataset}: no file in it")
        if _looks_like_path(recipe.dataset):
            raise UserError(f"corpus.dataset = {recipe.dataset}: no such file or directory")
        return f"{recipe.dataset}@{self._commit(hub.dataset_commit, recipe.dataset, recipe.revision)}"

    def _commit(self, find: Callable[[str, str | None], str], name: str, revision: str | None) -> str:
        try:
            return find(name, revision)
        except hub.OutOfReach:
            if not self.only_shown:
                raise
            self.unresolved[name] = None
            return revision or "main"

    def _digest_of(self, paths: Iterable[Path]) -> str:
        return content_digest([(path.name, path) for path in sorted(paths)], self._file_digest)

    def _file_digest(self, path: Path) -> str:
        facts, name = path.stat(), os.path.abspath(path)
        known = self._digests.get(name)
        if known is None or (known.bytes, known.modified_ns) != (facts.st_size, facts.st_mtime_ns):
            known = FileDigest(facts.st_size, facts.st_mtime_ns, sha256(path))
            self._digests[name] = self._new_digests[name] = known
        return known.sha256

    def task_pins(self, task: str, include_path: str | None) -> Pins:
        """What identifies a task's definition. Raises UserError for what is no task."""
        if files := self.own_tasks.files(task, include_path):
            return {LM_EVAL: package_version(LM_EVAL), TASK_FILES: files.digest}
        try:
            library = {LIBRARY_TEXT: self._text(LIBRARY)} if uses_library(task) else {}
            return task_pins(task) | library | ({"recall": RECALL_ROWS} if task == DOMAIN_RECALL else {})
        except UserError as error:
            faults = self.own_tasks.faults(include_path)
            raise UserError("; ".join([str(error), *faults[:1]])) from None

    def save(self) -> None:
        """Keep the digests in the user's cache, for the next plan; where that cannot be written it takes longer."""
        if not self._new_digests:
            return
        digests = {**_read_digests(user_cache(DIGESTS)), **self._new_digests}  # another plan may have written since
        latest = list(digests.items())[-MAX_DIGESTS:]
        with suppress(OSError):
            write_json(user_cache(DIGESTS), {path: astuple(digest) for path, digest in latest})


def _looks_like_path(dataset: str) -> bool:
    """A name on the hub is NAME or OWNER/NAME, without a suffix of a file."""
    return dataset.startswith(("/", ".", "~")) or dataset.count("/") > 1 or is_readable(Path(dataset))


def _read_digests(file: Path) -> dict[str, FileDigest]:
    """The cached digests by path; a row of another shape is computed anew."""
    rows = read_cache(file)
    return {path: FileDigest(*row) for path, row in rows.items() if _is_digest(row)}


def _is_digest(row: object) -> bool:
    return isinstance(row, list) and [type(value) for value in row] == [int, int, str]


@contextmanager
def _named(where: str, directory: Path) -> Iterator[None]:
    """Errors about files in `directory` as errors of the field that names it."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{where}: {str(error).replace(f'{directory}/', '').removeprefix(f'{directory}: ')}") from None


def _near(directory: Path) -> str:
    """What is wrong with a directory without a config.json, and where one is near it."""
    if not directory.exists():
        return ", and no directory of that name (it takes one with config.json and weights)"
    if not directory.is_dir():
        return f": it is a file, and its directory is given as model.path={directory.parent}"
    near = sorted(path.parent for depth in ("*", "*/*") for path in directory.glob(f"{depth}/config.json"))
    hint = f"; model.path={near[0]} has one" if near else ""
    return f" (a directory with config.json and weights){hint}"


def _family_pins(config: Mapping[str, Any]) -> Pins:
    """What identifies the code that reads the weights, where an extension has it."""
    return FAMILIES.pins(str(config.get("model_type")))


def _read_shape(config: Mapping[str, Any], where: str) -> tuple[DecoderShape, KVLayout]:
    try:
        return shape_of(config), layout_of(config)
    except ValueError as error:
        raise UserError(f"model {where}: {error}") from None


def task_pins(task: str) -> Pins:
    """A task with a definition file of ours is pinned by that file, one of an extension by the extension, and any other
    by the lm-eval that defines it. Raises UserError for what is no task."""
    return TASKS.pins(task) if task not in own_tasks() and task in TASKS else _file_pins(task)


@cache
def _file_pins(task: str) -> Pins:
    try:
        check_task(task)
    except ValueError as error:
        raise UserError(f"evaluate.{error}") from None
    own = own_tasks().get(task)
    return {LM_EVAL: package_version(LM_EVAL)} | ({"task": sha256(own)} if own else {})


def few_shot(config: EvaluateConfig, task: str, given: Mapping[str, Path]) -> int | dict[str, int]:
    """How many examples a task gets: the configured number, else the one of the task's own definition. For a group of
    tasks whose definitions differ, a number for each. Raises UserError for examples where a task takes none."""
    count, own = config.few_shot_of(task), _read(own_counts, task, given)
    if count is None:
        counts = {name: default or 0 for name, default in own.items()}
        return counts if len(set(counts.values())) > 1 else next(iter(counts.values()), 0)
    without = [name for name, default in own.items() if default == 0]
    if count and without:
        raise UserError(f"evaluate.few_shot = {count}: task {without[0]} takes none; set evaluate.few_shot={{TASK: N}}")
    return count


def _read(function: Callable[..., R], task: str, given: Mapping[str, Path]) -> R:
    try:
        return function(task, given=given) if given else _cached(function, task)
    except ValueError as error:
        raise UserError(f"evaluate.task = {task}: {error}") from None


@cache
def _cached(function: Callable[..., R], task: str) -> R:
    return function(task)


def answer_pins(config: EvaluateConfig, task: str, context: int, given: Mapping[str, Path]) -> Pins:
    """A generated answer has at most half the context. Earlier code gave it more where that was less than all: there
    the id is new. Raises UserError where a context has no room for a question and an answer."""
    lengths = _read(answer_tokens, task, given).values()
    if lengths and context < 2:
        raise UserError(
            f"evaluate.tasks: {task} has answers that are generated, and a context of {context} has no room"
        )
    changed = any(context // 2 < tokens < context for tokens in lengths)
    return {"answers": "half the context"} if changed else {}


def question_lengths(config: EvaluateConfig, task: str, context: int) -> tuple[int, ...]:
    """Those of a task of RULER. Raises UserError for what lm-eval does not make, or the context has no room for."""
    if config.lengths and not any(map(offered, config.tasks)):
        raise UserError("evaluate.lengths: none of evaluate.tasks is a task of RULER (niah_single_1, …)")
    if task in own_tasks() or task in TASKS:  # in this order: a name that TASKS lacks has extensions run
        return ()
    try:
        return chosen(task, config.lengths, context)
    except ValueError as error:
        raise UserError(f"evaluate.{error}") from None


def check_room(task: str, counts: int | dict[str, int], context: int) -> None:
    """Raises UserError for more worked examples than a context has tokens."""
    most = max(counts.values(), default=0) if isinstance(counts, dict) else counts
    if most >= context:
        raise UserError(f"evaluate.few_shot = {most}: task {task}: the model's context has {context} tokens in all")


def uses_corpus(task: str) -> bool:
    """Whether a task is made of the corpus's held-out documents."""
    return task in own_tasks() or (task in TASKS and TASKS[task].of_corpus)


def uses_base(task: str) -> bool:
    """Whether a task compares a checkpoint with the base that it was made of."""
    return task not in own_tasks() and task in TASKS and TASKS[task].of_base


def uses_library(task: str) -> bool:
    """Whether a task's text is the standard library's."""
    return task not in own_tasks() and task in TASKS and TASKS[task].of_library


@cache
def package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        raise UserError(f"{name} is not installed: pip install it, or install mlkv from its lock file") from None
