"""Composing on copies says what Hydra says; mistakes are one line that names the valid choices."""

from __future__ import annotations

import copy
import re
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.planning.compose import Composer
from sweeps.planning.parse import parse
from sweeps.planning.scalars import leaves
from sweeps.store.errors import UserError

GROUPS = {
    "layout": ["mha", "mqa", "cla", "explicit"],
    "convert": ["mean", "split", "published"],
    "experiment": ["quickstart"],
    "measure": ["cpu", "gpu"],
}
VALUES = {
    "uptrain.lr": ["1e-3", "0.5", "100"],
    "corpus.vocab_size": ["512", "1024"],
    "layout.kv_heads": ["1", "[6,2,1]", "null"],
    "evaluate.tasks": ["[bits_per_byte]", "[]"],
    "name": ["x", "'a b'"],
    "cluster.resources": ["{base:{exclusive:false}}", "{}"],
}


@cache
def composer() -> Composer:
    return Composer()


def lines(table: dict[str, list[str]]) -> st.SearchStrategy[list[str]]:
    one = st.sampled_from(sorted(table)).flatmap(lambda key: st.sampled_from([f"{key}={v}" for v in table[key]]))
    return st.lists(one, max_size=4, unique_by=lambda line: line.split("=")[0])


@pytest.mark.long
@settings(max_examples=40)
@given(lines(GROUPS), lines(VALUES))
def test_the_fast_way_is_hydras_way(groups: list[str], values: list[str]) -> None:
    set_or_added = [f"++{line}" for line in values]  # the schema, not the YAML file, says which keys there are
    assert composer()([*groups, *values]) == composer().whole([*groups, *set_or_added])


def test_additions_and_deletions_go_through_hydra() -> None:
    assert composer()(["+sweep.grid={layout.kv_heads:[1,2]}"])["sweep"]["grid"] == {"layout.kv_heads": [1, 2]}
    assert "axis" not in composer()(["~evaluate.axis"])["evaluate"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("uptrain.lrr=1", r"uptrain\.lrr: unknown key; did you mean lr\? valid: .*weight_decay"),
        ("cluster.resources.base.gpu=1", r"cluster\.resources\.base\.gpu: unknown key; did you mean gpus\?"),
        ("layout=gqb", r"layout = gqb: did you mean gqa\? valid: .*sandwich"),
        ("scale=tiny", r"scale = tiny: valid: full, small"),
        ("layout.pattern=zigzag", r"layout\.pattern = zigzag: must be 'even', 'cla'"),
        (
            "convert.merge=median",
            r"convert\.merge = median: must be 'mean', 'pairwise', 'first', 'random', 'aligned', 'svd' or 'fisher'",
        ),
        ("uptrain.lr=-1", r"uptrain\.lr = -1: must be greater than 0"),
        ("uptrain.lr=nan", r"uptrain\.lr = nan: must be"),
        ("uptrain.lr=fast", r"uptrain\.lr = fast: must be a valid number"),
        ("uptrain.steps=1.5", r"uptrain\.steps = 1\.5: must be a valid integer"),
        ("evaluate.batch_size=all", r"evaluate\.batch_size = all: must be a valid integer.*, or 'auto'$"),
        ("evaluate.batch_size=0", r"evaluate\.batch_size = 0: must be greater than 0, or 'auto'$"),
        ("uptrain.tokens=100", r"uptrain: set exactly one of steps, tokens, epochs, rungs \(set: steps, tokens\)"),
        ("uptrain.micro_batch=3", r"micro_batch = 3: must divide batch_size 4"),
        ("corpus=text_files", r"corpus\.files: must be set"),
        ("model=local", r"model: set decoder \(to train a base here\), hub or path \(to load one\)"),
        ("evaluate.accuracy=[[nope,acc]]", r"nope is scored .* but not among tasks"),
        ("uptrain.lr=${oc.env:HOME}", r"uptrain\.lr = \$\{oc\.env:HOME\}: would change from run to run"),
        ("corpus.seed=${now:%s}", r"corpus\.seed = .*would change from run to run"),
        ("layout.kv_heads=[1", r"layout\.kv_heads=\[1: not an override"),
        ("layout.factor=2", r"layout: factor = 2: only pattern cla has a factor"),
        ("evaluate.few_shot=true", r"evaluate\.few_shot = true: must be a number"),
        ("evaluate.few_shot={bits_per_byte:false}", r"evaluate\.few_shot\.bits_per_byte = false: must be a number"),
        ("layout.kv_heads=[6,true]", r"layout\.kv_heads\[1\] = true: must be a number"),
        ("cluster.resources.base.cpus=true", r"cluster\.resources\.base\.cpus = true: must be a number"),
        ("resources.gpus=true", r"resources\.gpus = true: must be a number"),
        ("evaluate.few_shot=010", r"evaluate\.few_shot = 010: must be a number, written without leading zeros"),
        ("uptrain.seed=-1", r"uptrain\.seed = -1: must be greater than or equal to 0"),
        ("evaluate.seed=4294967296", r"evaluate\.seed = 4294967296: must be less than or equal to 4294967295"),
        ("uptrain.lr=inf", r"uptrain\.lr = inf: must be less than or equal to 3\.4e\+38"),
        ("uptrain.batch_size=1e400", r"uptrain\.batch_size = inf: must be a finite number"),
        (f"uptrain.lr=1{'0' * 5000}", r"uptrain\.lr=10.*… \(5012 characters\): not an override"),
        ("uptrain.steps=9223372036854775807", r"uptrain: steps = 9.*: with batch_size 4 more than 2\^63 sequences"),
        (
            "model.decoder.layers=10000000000",
            r"model\.decoder\.layers = 1.*: must be less than or equal to 4096",
        ),
        ("model.decoder=[1]", r"model\.decoder = \[1\]: must be a dictionary"),
        ("evaluate.tasks={a:1}", r"evaluate\.tasks = \{a: 1\}: must be a valid tuple"),
        ("measure.contexts=[]", r"measure: contexts is empty: set at least one, or choose measure = none"),
        ("measure.contexts=[8,8]", r"measure: contexts has 8 more than once"),
        ("corpus.sequence_length=4", r"corpus: sequence_length = 4: task items take at least 5 tokens"),
        ("uptrain=[1,2]", r"uptrain = \[1, 2\]: is no name; valid: .*mlkv"),
        ("uptrain={}", r"uptrain = \{\}: is no name; valid: .*mlkv"),
        ("+model=tiny", r"\+model=tiny: model is chosen already; leave out the \+"),
        (f"model={'x' * 5000}", r"model=x+… \(5006 characters\): File name too long"),
        ("hydra.run.dir=/x", r"hydra\.run\.dir=/x: mlkv composes with Hydra and runs without it"),
        ("+hydra.verbose=true", r"hydra\.verbose=true: mlkv composes with Hydra and runs without it"),
        ("=1", r"=1: not an override KEY=VALUE \(the key is missing\)"),
        ("uptrain.lr=${nope}", r"uptrain\.lr: Interpolation key 'nope' not found"),
        ("uptrain.lr=${uptrain.lr}", r"uptrain\.lr: Recursive interpolation detected"),
        ("uptrain.lr='${'", r"uptrain\.lr = \$\{: no viable alternative at input '\$\{'"),
        ("model='${'", r"model='\$\{': cannot be composed"),
        ("reports='a\nb'", r"reports = a b: has a control character"),
        ("model.name='\0'", r"model\.name = \\x00: has the character NUL"),
        ("model.name='\udcff'", r"model\.name = \\udcff: is not UTF-8"),
        ("model.revision=' '", r"model\.revision = ' ': is blank; null leaves a field unset"),
        (f"reports={'x' * 5000}", r"reports = x+… \(5000 characters\): has 5000 characters, at most 4096 are valid"),
        ("cluster.gres='{gpus.x}'", r"cluster: gres = '\{gpus\.x\}': the only field it can have is \{gpus\}"),
        ("cluster.gres='{gpus:>99999999999}'", r"cluster: gres = .*: the only field it can have is \{gpus\}"),
    ],
)
def test_a_mistake_is_one_line(line: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse(composer()([line]))
    assert str(caught.value).isprintable()


def test_true_and_false_are_no_numbers_wherever_one_is_wanted() -> None:
    values = composer()([])
    numbers = [path for path, value in leaves(values, "") if type(value) in (int, float)]
    assert len(numbers) > 20
    for path in numbers:
        place = re.sub(r"\[(\d+)\]", r".\1", path).strip(".").split(".")
        changed = copy.deepcopy(values)
        *above, last = (int(key) if key.isdigit() else key for key in place)
        inner: Any = changed
        for key in above:
            inner = inner[key]
        inner[last] = True
        with pytest.raises(UserError, match=re.escape(f"{path.strip('.')} = true: must be a number")):
            parse(changed)


def test_a_scale_is_the_experiment_of_that_size() -> None:
    small = composer()(["experiment=mlkv_table", "scale=small", "uptrain.lr=1"])
    assert small == composer()(["experiment=small/mlkv_table", "uptrain.lr=1"])
    assert small == composer()(["uptrain.lr=1", "scale=small", "experiment='mlkv_table'"])
    assert small["name"] == "mlkv_table-small"
    assert composer()(["experiment=mlkv_table", "scale=full"]) == composer()(["experiment=mlkv_table"])
    assert composer()(["experiment=mlkv_table"])["sweep"] == small["sweep"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["experiment=quickstart"], r"scale = small: experiment quickstart has none of that size; valid: .*mlkv_table"),
        ([], "scale = small: needs an experiment; valid: .*mlkv_table"),
    ],
)
def test_a_scale_that_there_is_not_is_one_line(line: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        composer()([*line, "scale=small"])


def test_numbers_are_what_the_schema_says_however_they_are_written() -> None:
    written = [parse(composer()([f"uptrain.lr={text}"])).uptrain.lr for text in ("100", "100.0", "1e2")]
    assert [repr(lr) for lr in written] == ["100.0"] * 3
