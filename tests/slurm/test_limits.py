"""Values of a profile in every form that SLURM takes, and what submission makes of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from slurm.limits import UNLIMITED, gigabytes_of, minutes_of, time_option
from slurm.profile import FIELD_OF, RESERVED, Profile
from slurm.resources import Resources

read_profile = TypeAdapter(Profile).validate_python


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("20:00", 20),
        ("20:01", 21),
        ("0:30", 1),
        ("1:30:00", 90),
        ("1-0", 1440),
        ("1-02", 1560),
        ("1-02:03", 1563),
        ("1-02:03:04", 1564),
        ("0123", 123),
        (" 5 ", 5),
        ("UNLIMITED", UNLIMITED),
        ("infinite", UNLIMITED),
    ],
)
def test_a_time_limit_in_any_form_of_sbatch_is_its_minutes(text: str, minutes: int) -> None:
    assert minutes_of(text) == minutes
    assert read_profile({"time": text}).minutes(Resources()) == minutes


@given(days=st.integers(0, 9), hours=st.integers(0, 23), minutes=st.integers(0, 59), seconds=st.integers(0, 59))
def test_the_forms_of_one_time_agree(days: int, hours: int, minutes: int, seconds: int) -> None:
    expected = days * 1440 + hours * 60 + minutes + math.ceil(seconds / 60)
    assert minutes_of(f"{days}-{hours:02}:{minutes:02}:{seconds:02}") == expected
    assert minutes_of(f"{days * 24 + hours}:{minutes:02}:{seconds:02}") == expected
    assert minutes_of(f"{(days * 24 + hours) * 60 + minutes}:{seconds:02}") == expected


@pytest.mark.parametrize("text", ["", "x", "1.5", "1::2", "1-", "-1", "1:2:3:4", "1 h", "20m", "٣"])
def test_what_is_no_time_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(ValidationError, match="is no time limit: minutes, minutes:seconds"):
        read_profile({"time": text})


@pytest.mark.parametrize(
    ("value", "option"),
    [
        ("80G", "81920M"),
        ("80GB", "81920M"),
        ("80", "81920M"),
        (80, "81920M"),
        ("512M", "512M"),
        ("1T", "1048576M"),
        ("1.5g", "1536M"),
        ("1K", "1M"),
        (0, "0"),
        ("0", "0"),
    ],
)
def test_memory_in_any_form_is_what_sbatch_gets(value: object, option: str) -> None:
    profile = read_profile({"memory_gb": value})
    assert profile.parameters(Resources())["mem"] == option
    assert TypeAdapter(Resources).validate_python({"memory_gb": value}).memory_gb == gigabytes_of(value)


@pytest.mark.parametrize("value", ["", "80GiB", "-1", -1, math.inf, math.nan, "lots"])
def test_what_is_no_memory_is_refused(value: object) -> None:
    with pytest.raises(ValidationError, match="memory_gb"):
        read_profile({"memory_gb": value})


def test_no_limit_is_said_by_name() -> None:
    assert time_option(UNLIMITED) == "UNLIMITED"
    assert Profile(time=UNLIMITED).parameters(Resources())["time"] == "UNLIMITED"
    assert Profile().parameters(Resources(minutes=7))["time"] == 7


def test_names_may_be_lists_and_numbers() -> None:
    profile = read_profile({"partition": ["gpu", "cpu"], "account": 1234, "setup": "module load a\nmodule load b"})
    assert (profile.partition, profile.account, profile.setup) == (
        "gpu,cpu",
        "1234",
        ("module load a", "module load b"),
    )


def test_no_gres_is_requested_where_there_is_none() -> None:
    assert "gres" not in Profile(gres=None).parameters(Resources(gpus=4))


def test_extra_options_are_written_as_sbatch_reads_them() -> None:
    extra = {"exclude": ["n1", "n2"], "nice": 0, "spread_job": True, "hold": False, "comment": None, "x": ("a", 1)}
    assert Profile(extra=extra).options == {"exclude": "n1,n2", "nice": "0", "spread-job": True, "x": "a,1"}


@pytest.mark.parametrize("name", [*FIELD_OF, *RESERVED, *(name.replace("-", "_") for name in (*FIELD_OF, *RESERVED))])
def test_an_extra_option_that_has_a_field_or_belongs_to_submission_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^extra\.{name}: set ") as refused:
        Profile(extra={name: "1"})
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    "extra", [{"a b": 1}, {"": 1}, {"--nice": 1}, {"nice": {"a": 1}}, {"nice": [[1]]}, {"comment": "a\nrm -rf x"}]
)
def test_an_extra_option_that_is_none_is_refused(extra: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"^extra\."):
        Profile(extra=extra)


@pytest.mark.parametrize("field", ["partition", "account", "qos", "gres", "constraint"])
def test_no_field_reaches_into_the_next_line_of_the_batch_script(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: must be one line"):
        Profile(**{field: "a\necho b"})  # type: ignore[arg-type]
