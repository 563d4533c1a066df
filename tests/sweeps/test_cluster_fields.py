"""Where jobs run, as a configuration says it: for all steps, for one kind of step, in files and on the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from slurm.limits import UNLIMITED
from sweeps.dispatch.grouping import job_specs
from sweeps.planning.compose import Composer
from sweeps.planning.config import OF_A_KIND, ClusterConfig
from sweeps.planning.freeze import freeze
from sweeps.planning.parse import parse, saved_cluster
from sweeps.planning.plan import Plan
from sweeps.store.errors import StoreError, UserError
from sweeps.store.store import Store

Planner = Callable[[Sequence[str]], Plan]


def in_a_file(folder: Path, text: str) -> ClusterConfig:
    """The cluster of a site's own file."""
    (folder / "cluster").mkdir(exist_ok=True)
    (folder / "cluster" / "site.yaml").write_text(f"defaults: [slurm]\n{text}\n")
    return parse(Composer(folder)(["experiment=quickstart", "cluster=site"])).cluster


@pytest.fixture(scope="module")
def cluster() -> Callable[..., ClusterConfig]:
    composer = Composer()
    return lambda *lines: parse(composer(["experiment=quickstart", "cluster=slurm", *lines])).cluster


VALUES: dict[str, tuple[str, object]] = {
    "partition": ("cpu", "cpu"),
    "account": ("nlp", "nlp"),
    "qos": ("low", "low"),
    "gres": ("null", None),
    "constraint": ("a100", "a100"),
    "time": ("20:00", 20),
    "setup": ("[a,b]", ("a", "b")),
    "python": ("python3", "python3"),
    "max_running": ("3", 3),
    "warning_seconds": ("30", 30),
    "max_requeues": ("0", 0),
    "extra": ("{exclude: [n1, n2]}", {"exclude": ["n1", "n2"]}),
}


@pytest.mark.parametrize("name", OF_A_KIND)
def test_every_field_of_a_profile_may_be_given_for_one_kind_of_step(
    name: str, cluster: Callable[..., ClusterConfig], tmp_path: Path
) -> None:
    written, expected = VALUES[name]
    line = written.replace(": ", ":").replace(", ", ",")
    for found in (
        cluster(f"cluster.resources.corpus.{name}={line}"),
        in_a_file(tmp_path, f"resources: {{corpus: {{{name}: {written}}}}}"),
    ):
        assert getattr(found.profile_of("corpus"), name) == expected
        assert found.profile_of("base") == cluster().profile_of("base")
        assert found.resources_of("corpus").cpus == 4, "what else it needs stays"


def test_a_kinds_own_field_goes_before_the_profiles(cluster: Callable[..., ClusterConfig]) -> None:
    found = cluster(
        *("cluster.time=60", "cluster.partition=gpu", "cluster.resources.base.gres=null"),
        *("cluster.resources.corpus.time=1-0", "cluster.resources.corpus.partition=[cpu,old]"),
    )
    assert (found.resources_of("corpus").minutes, found.resources_of("base").minutes) == (1440, 60)
    assert (found.profile_of("corpus").partition, found.profile_of("base").partition) == ("cpu,old", "gpu")
    assert "gres" not in found.profile_of("base").parameters(found.resources_of("base"))
    assert "gres" in found.profile_of("uptrain").parameters(found.resources_of("uptrain"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["cluster.resources.corpus.partitio=x"],
            "cluster.resources.corpus.partitio: unknown key; did you mean partition",
        ),
        (["cluster.resources.corpus.max_submit=3"], "cluster.resources.corpus.max_submit: unknown key"),
        (["cluster.resources.corpus.time=soon"], "cluster.resources.corpus.time: 'soon' is no time limit"),
        (["cluster.resources.corpus.time=true"], "cluster.resources.corpus.time = true: must be a number"),
        (
            ["cluster.resources.corpus.warning_seconds=0"],
            "cluster.resources.corpus: warning_seconds = 0: must be at least 1",
        ),
        (["cluster.resources.corpsu.partition=x"], "must be 'corpus'"),
        (["+cluster.extra={partition:x}"], "cluster: extra.partition: set cluster.partition instead"),
        (["+cluster.profiles={corpus:{time:1}}"], "cluster.profiles: unknown key"),
        (["cluster.gres='gpu:{gpus.x}'"], "the only field it can have is"),
        (["cluster.memory_gb=lots"], "cluster.memory_gb: 'lots' is no amount of memory"),
        (["resources.memory_gb=inf"], "resources.memory_gb = inf: must be a finite number"),
        (
            ["cluster=local", "cluster.resources.corpus.partition=x"],
            "resources.corpus.partition = x: cluster local has none",
        ),
    ],
)
def test_a_slip_is_refused_in_one_line(lines: list[str], message: str, cluster: Callable[..., ClusterConfig]) -> None:
    with pytest.raises(UserError) as refused:
        cluster(*lines)
    assert message in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("written", "minutes"),
    [
        ("20:00", 20),
        ("1:30:00", 90),
        ("90", 90),
        ("0123", 123),
        ("1-0", 1440),
        ("1-02:03:04", 1564),
        ("'60'", 60),
        ("UNLIMITED", UNLIMITED),
        ("null", None),
    ],
)
def test_a_time_limit_in_a_file_is_what_slurm_takes_it_for(written: str, minutes: int | None, tmp_path: Path) -> None:
    """YAML 1.1 would read 20:00 as 1200 and 0123 as 83."""
    assert in_a_file(tmp_path, f"time: {written}").time == minutes


def test_yaml_is_read_as_ever_outside() -> None:
    import yaml

    Composer()(["experiment=quickstart"])
    assert yaml.safe_load("a: 20:00") == {"a": 1200}


def test_the_hours_of_a_plan_go_by_the_limits_that_count(planner: Planner) -> None:
    def hours(*lines: str) -> list[float | None]:
        plan = planner(["experiment=quickstart", "cluster=slurm", *lines])
        return [job.device_hours for job in job_specs(plan.steps.values(), plan.config.cluster)]

    plain, short = hours(), hours("cluster.time=30")
    assert set(short) == {0.5}
    assert None not in plain
    assert min(hour for hour in plain if hour) >= 1
    assert hours("cluster.resources.uptrain.time=UNLIMITED").count(None) == sum(hour == 24 for hour in plain) - 1


def test_a_stored_plan_has_the_same_cluster(planner: Planner, tmp_path: Path) -> None:
    plan = planner(["experiment=quickstart", "cluster=slurm", "cluster.resources.corpus.setup=[a]", "cluster.time=1-0"])
    store = Store.open(tmp_path)
    freeze(plan, store, [])
    stored = saved_cluster(store.sweep(plan.name))
    assert stored == plan.config.cluster
    assert stored.profile_of("corpus").setup == ("a",)
    file = next(tmp_path.rglob("plan.json"))
    file.write_text(file.read_text().replace('"setup": [\n     "a"\n    ]', '"setup": 7'))
    with pytest.raises(StoreError, match=r"plan\.json"):
        saved_cluster(store.sweep(plan.name))
