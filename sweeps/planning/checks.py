"""What a plan refuses because it could only fail later. Each check raises UserError naming the field and what is valid.

What a single field can hold is checked where YAML is read (config.py, mlkv/recipes.py). The checks here need the base
model, or several parts of the configuration together.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

from mlkv.corpus.vocabulary import BYTES
from mlkv.evaluate.task_names import ITEM_TASKS, RECALL_TASKS
from mlkv.layout import KVLayout, divisors
from mlkv.merges import MERGES, check_conversion, counted_grouping, is_trainable, merge_named
from mlkv.patterns import name_of
from mlkv.recipes import ADDRESSES
from mlkv.train.sampling import layouts_of
from sweeps.planning.config import Config
from sweeps.planning.labels import shape_label
from sweeps.planning.resolve import Model, uses_base
from sweeps.store.errors import UserError

_READ_BY = {
    "files": ("files", "text_files"),
    "dataset": ("hf",),
    "subset": ("hf",),
    "revision": ("hf",),
    "take": ("files", "hf"),
    "fraction": ("files", "hf"),
}
"""Fields of a corpus → the sources that read them."""


def check_layout(config: Config, model: Model, layout: KVLayout) -> None:
    """Where weights are converted, the base's heads can be merged into the layout."""
    if config.convert.start != "convert":
        return
    check_grouping(config, model, layout)
    _check_calibrated(config, model, layout)
    try:
        check_conversion(model.layout, layout)
    except ValueError as error:
        of_values = str(error).startswith("value_heads")
        fault = f"layout.{error}" if of_values or str(error).startswith("kv_heads") else str(error)
        part = model.layout.values if of_values else model.layout.keys
        valid = ", ".join(map(str, divisors(gcd(*part.kv_heads))))
        raise UserError(f"model {config.model.name}: {fault} (valid: {valid})") from None


def check_grouping(config: Config, model: Model, layout: KVLayout) -> None:
    """Heads can be put into another order only where keys and values merge in the same groups: their order is that of
    the queries."""
    apart = next((each for each in (layout, model.layout) if each.apart), None)
    if apart and counted_grouping(config.convert.grouping, config.convert.merge, model.layout, layout) != "adjacent":
        raise UserError(
            f"convert.grouping = {config.convert.grouping}: keys and values of {name_of(apart)} merge in different "
            "groups, and queries have one order for both; set convert.grouping=adjacent"
        )


def _check_calibrated(config: Config, model: Model, layout: KVLayout) -> None:
    """A calibration sees each layer of the base once. Layers that wait for each other run several times."""
    calibrated = merge_named(config.convert.merge).calibrated or layout.latent
    if model.layout.reads_above and layout != model.layout and calibrated:
        valid = ", ".join(name for name in MERGES if name == "random" or not merge_named(name).calibrated)
        raise UserError(
            f"convert.merge = {config.convert.merge}: model {config.model.name} has layers that read from above, and a "
            f"calibration sees each layer once; valid: {valid}, without a latent"
        )


def check_elastic(config: Config, model: Model, layouts: Sequence[KVLayout]) -> None:
    """Elastic training converts a base by a merge that needs the weights alone, and samples all of these layouts."""
    recipe, convert = config.elastic, config.convert
    if recipe.steps == 0:
        return
    if convert.start != "convert":
        raise UserError(f"convert.start = {convert.start}: elastic training needs a base to convert; add elastic=none")
    if not is_trainable(convert.merge):
        raise UserError(
            f"convert.merge = {convert.merge}: elastic training cuts layouts as it trained them, by a merge that "
            f"needs the weights alone; valid: {', '.join(filter(is_trainable, MERGES))}"
        )
    for layout in layouts:
        if (grouping := counted_grouping(convert.grouping, convert.merge, model.layout, layout)) != "adjacent":
            raise UserError(
                f"convert.grouping = {grouping}: elastic training merges neighbours; set convert.grouping=adjacent"
            )
    try:
        sampled = layouts_of(recipe, model.layout)
    except ValueError as error:
        raise UserError(f"model {config.model.name}: elastic.{str(error).removeprefix('layout.')}") from None
    if missing := [layout for layout in layouts if layout not in sampled]:
        names = [f"{name_of(each, recipe.pattern)} ({shape_label(each)})" for each in (missing[0], *sampled)]
        raise UserError(
            f"layout {names[0]}: not among those that elastic training samples (elastic.pattern, elastic.kv_layers, "
            f"elastic.kv_heads): {', '.join(names[1:])}"
        )


def check_corpus(config: Config, model: Model) -> None:
    """Rows are no longer than the model's context, and tokens are no more than its embeddings. Shapes alone are
    measured without a corpus."""
    if config.convert.start == "none":
        return
    name, shape, corpus = config.model.name, model.shape, config.corpus
    if corpus.sequence_length > shape.context:
        raise UserError(
            f"corpus.sequence_length = {corpus.sequence_length}: model {name} takes at most {shape.context}"
        )
    if corpus.tokenizer == "train" and corpus.vocab_size <= BYTES:
        raise UserError(f"corpus.vocab_size = {corpus.vocab_size}: a byte-level tokenizer needs at least {BYTES + 1}")
    if corpus.tokenizer == "train" and corpus.vocab_size > shape.vocab_size:
        raise UserError(f"corpus.vocab_size = {corpus.vocab_size}: model {name} has only {shape.vocab_size} embeddings")


def check_read_fields(config: Config) -> None:
    """A field of the corpus that its source does not read is a slip: the text would be another than the one named."""
    corpus = config.corpus
    for name, sources in _READ_BY.items():
        if getattr(corpus, name) is not None and getattr(corpus, name) != () and corpus.source not in sources:
            value = getattr(corpus, name)
            shown = ", ".join(map(str, value)) if isinstance(value, tuple) else value
            raise UserError(
                f"corpus.{name} = {shown}: source {corpus.source} does not read it; "
                f"add {' or '.join(f'corpus.source={source}' for source in sources)}"
            )


def check_tasks(config: Config) -> None:
    """Tasks need a checkpoint to score, and items if they are made of them."""
    if config.convert.start == "none" and config.evaluate.tasks:
        raise UserError("convert = none: makes no checkpoint that evaluate.tasks could score; add evaluate=none")
    if config.convert.start == "scratch":
        wanted = [*config.evaluate.accuracy, *([config.evaluate.axis] if config.evaluate.axis else [])]
        if task := next((task for task, _ in wanted if uses_base(task)), None):
            raise UserError(f"convert = scratch: has no base that {task} (evaluate.accuracy, axis) could compare with")
    items = next((task for task in config.evaluate.tasks if task in ITEM_TASKS), None)
    if items and not config.corpus.task_items:
        raise UserError(f"evaluate.tasks: {items} is made of the corpus's items, and corpus.task_items = 0 makes none")
    recall = next((task for task in config.evaluate.tasks if task in RECALL_TASKS), None)
    if recall and not config.corpus.recall_items:
        raise UserError(
            f"evaluate.tasks: {recall} is made of the corpus's items, and corpus.recall_items = 0 makes none; "
            "set corpus.recall_items=200"
        )


def check_teacher(config: Config) -> None:
    """A teacher is the base that was converted."""
    if config.base.teacher != "none":
        raise UserError(f"base.teacher = {config.base.teacher}: a base has no teacher; set uptrain.teacher")
    if config.convert.start == "scratch" and config.uptrain.teacher != "none":
        raise UserError(
            f"uptrain.teacher = {config.uptrain.teacher}: convert = scratch has no base to learn from; "
            "convert one (convert=svd), or set uptrain.teacher=none"
        )
    recipe = config.uptrain
    if recipe.teacher_stored and len(recipe.trained_rungs) > 1 and config.teacher.tokens is None:
        raise UserError(
            "teacher.tokens is unset: all rungs of a chain learn from the same rows; set it "
            f"({recipe.tokens_of(config.corpus.sequence_length)} is what the last one trains on)"
        )


def check_stopping(config: Config) -> None:
    """A rule stops between the rungs of a training, by a score; tokens are counted before they are trained on."""
    stopping, recipe, rule = config.stopping, config.uptrain, f"stopping.rule = {config.stopping.rule}"
    if stopping.tokens and recipe.last_step != 0 and recipe.tokens_of(config.corpus.sequence_length) is None:
        raise UserError(
            f"stopping.tokens = {stopping.tokens}: a training by epochs has as many tokens as its corpus turns out to "
            "have; set its length by uptrain.steps, uptrain.tokens or uptrain.rungs"
        )
    if stopping.rule == "none":
        return
    if len(recipe.rungs) < 2 or config.convert.start == "none":
        raise UserError(
            f"{rule}: stops between the rungs of a training, and uptrain.rungs = {list(recipe.rungs)}; set two or "
            "more, e.g. uptrain=rungs uptrain.rungs=[20,60,180]"
        )
    if not config.evaluate.axis and not config.evaluate.accuracy:
        raise UserError(f"{rule}: compares scores, and there is none; set evaluate.axis (or evaluate.accuracy)")


def check_measure(config: Config, model: Model) -> None:
    try:
        config.measure.check_fit(model.shape)
    except ValueError as error:
        raise UserError(f"measure.{error} of model {config.model.name}") from None


def check_similarity(config: Config, model: Model) -> None:
    """Layers are compared in one pass of a base, each by keys and values of its own or of a layer below it."""
    if not config.similarity.windows:
        return
    start, name = config.convert.start, config.model.name
    if start != "convert":
        raise UserError(f"convert.start = {start}: similarity compares the layers of a base; add similarity=none")
    if model.shape.layers < 2:
        raise UserError(f"similarity: model {name} has one layer, and nothing to compare it with; add similarity=none")
    for present, what in (
        (model.layout.latent, "caches latents"),
        (model.layout.reads_above, "has layers that read from above"),
    ):
        if present:
            raise UserError(f"similarity: model {name} {what}, which cannot be compared so; add similarity=none")


def check_size(config: Config, model: Model) -> None:
    """Nothing that a process holds whole is larger than what a process can address, on whatever machine it runs."""
    parameters = model.shape.parameters(model.layout)
    _check_bytes(f"model {config.model.name} has {parameters:,} parameters, which", 4 * parameters)
    for kind, recipe in (("base", config.base), ("elastic", config.elastic), ("uptrain", config.uptrain)):
        tokens = recipe.batch_size * config.corpus.sequence_length
        _check_bytes(f"{kind}.batch_size = {recipe.batch_size}: a step's {tokens:,} tokens", 8 * tokens)
    measure = config.measure
    longest = max(measure.contexts, default=0) + measure.new_tokens
    for batch in measure.batch_sizes:
        tokens = batch * longest
        _check_bytes(f"measure.batch_sizes = {batch}: its {tokens:,} tokens", 8 * tokens)


def _check_bytes(what: str, size: int) -> None:
    if size > ADDRESSES:
        raise UserError(f"{what} take {size:.1e} bytes, more than a process can address ({ADDRESSES:.1e})")
