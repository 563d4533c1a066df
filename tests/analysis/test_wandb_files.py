"""W&B's offline files: what they give back is what the store says, and damage costs what it touches and no more."""

from __future__ import annotations

import json
import shutil
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from analysis.data import curves
from analysis.data.gather import gather
from analysis.data.logged import table
from sweeps.store.store import StoreError
from sweeps.tracking.read.files import BLOCK, HEADER, WandbFileWarning, read_directory, read_file
from tests.support.mirrored import Mirrored


def test_the_table_is_the_stores_cell_by_cell(mirrored: Mirrored) -> None:
    with warnings.catch_warnings(action="error"):
        runs = read_directory(mirrored.offline)
    stored = gather(mirrored.store, mirrored.name)
    pd.testing.assert_frame_equal(table(runs, mirrored.name), stored, check_exact=True)
    assert {"DONE", "FAILED", "BLOCKED", "PENDING"} <= set(stored["state"])


def test_the_curves_are_the_stores_resumed_runs_and_odd_numbers_too(mirrored: Mirrored) -> None:
    stored = curves.of_store(mirrored.store, mirrored.store.sweep(mirrored.name))
    pd.testing.assert_frame_equal(curves.of_runs(read_directory(mirrored.offline)), stored, check_exact=True)
    losses = stored[(stored["step"] == mirrored.resumed) & (stored["metric"] == "train/loss")]
    assert losses["global_step"].tolist() == list(range(1, 41))
    assert losses["value"].isna().sum() == 2
    assert curves.of_store(mirrored.store, mirrored.store.sweep(mirrored.name)).dtypes.to_dict() == (
        curves.of_runs([]).dtypes.to_dict()
    )


def test_an_unknown_sweep_lists_those_there_are(mirrored: Mirrored) -> None:
    with pytest.raises(StoreError, match=f"there: {mirrored.name}"):
        table(read_directory(mirrored.offline), "typo")


# Files made here, chunk by chunk, so that a test knows which bytes hold which row


def chunk(kind: int, payload: bytes) -> bytes:
    return struct.pack("<IHB", zlib.crc32(bytes([kind]) + payload), len(payload), kind) + payload


class Written:
    """A file of one run and `rows` rows, with the span of bytes of each record."""

    def __init__(self, rows: int, padding: int) -> None:
        from wandb.proto import wandb_internal_pb2

        schema: Any = wandb_internal_pb2  # without types
        self.data, self.spans = HEADER, list[tuple[int, int]]()
        begun = schema.Record()
        begun.run.run_id = "abc"
        self._append(begun.SerializeToString())
        for k in range(rows):
            record = schema.Record()
            values = {"_step": k, "loss": float("nan") if k % 7 == 3 else k / 2, "text": "x" * (padding * (k % 5))}
            for key, value in values.items():
                record.history.item.add(nested_key=[key], value_json=json.dumps(value))
            self._append(record.SerializeToString())

    def _append(self, payload: bytes) -> None:
        left = BLOCK - len(self.data) % BLOCK
        if left < 7:
            self.data += b"\0" * left
        start, first = len(self.data), True
        while True:
            room = BLOCK - len(self.data) % BLOCK - 7
            part, payload = payload[:room], payload[room:]
            kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}[first, not payload]
            self.data += chunk(kind, part)
            first = False
            if not payload:
                break
        self.spans.append((start, len(self.data)))

    def untouched(self, first: int, last: int) -> set[int]:
        """Steps of the rows that lie wholly outside bytes `first` to `last`."""
        return {k - 1 for k, (start, end) in enumerate(self.spans) if k and (end <= first or start >= last)}


FILES = [Written(40, 10), Written(60, 400), Written(12, 12_000)]


def steps_read(folder: Path, data: bytes) -> set[int]:
    path = folder / "run-abc.wandb"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WandbFileWarning)
        run = read_file(path)
    return {row["_step"] for row in run.rows} if run else set()


@pytest.mark.parametrize("file", FILES)
def test_a_whole_file_is_read_whole_and_without_a_word(file: Written, tmp_path: Path) -> None:
    with warnings.catch_warnings(action="error"):
        assert steps_read(tmp_path, file.data) == set(range(len(file.spans) - 1))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=st.sampled_from(FILES), share=st.floats(0, 1), damage=st.binary(min_size=1, max_size=40))
@example(file=FILES[0], share=0.0, damage=b"\0" * 7)
@example(file=FILES[2], share=0.5, damage=b"\xff" * 40)
def test_overwritten_bytes_cost_the_records_they_touch_and_no_others(
    file: Written, share: float, damage: bytes, tmp_path: Path
) -> None:
    at = int(share * (len(file.data) - len(damage)))
    data = file.data[:at] + damage + file.data[at + len(damage) :]
    read = steps_read(tmp_path, data)
    assert read >= file.untouched(at, at + len(damage))
    assert read <= set(range(len(file.spans) - 1))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=st.sampled_from(FILES), share=st.floats(0, 1))
def test_a_torn_file_gives_every_row_before_the_tear(file: Written, share: float, tmp_path: Path) -> None:
    at = int(share * len(file.data))
    assert steps_read(tmp_path, file.data[:at]) == file.untouched(at, len(file.data) + 1)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=400))
def test_any_bytes_are_read_without_an_exception(data: bytes, tmp_path: Path) -> None:
    steps_read(tmp_path, data)
    steps_read(tmp_path, HEADER + data)


def test_damage_is_told_with_the_files_name(tmp_path: Path) -> None:
    path = tmp_path / "run-abc.wandb"
    path.write_bytes(FILES[0].data[:-5])
    with pytest.warns(WandbFileWarning, match=r"run-abc\.wandb: 1 damaged"):
        read_file(path)
    path.write_bytes(b"not a run")
    with pytest.warns(WandbFileWarning, match="damaged"):
        assert read_file(path) is None


def test_a_real_file_with_its_tail_torn_keeps_its_rows(mirrored: Mirrored, tmp_path: Path) -> None:
    (folder,) = mirrored.offline.glob(f"offline-run-*-{mirrored.resumed}")
    shutil.copytree(folder, tmp_path / folder.name)
    (file,) = (tmp_path / folder.name).glob("*.wandb")
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.warns(WandbFileWarning):
        (run,) = read_directory(tmp_path)
    assert [row["train/global_step"] for row in run.rows] == list(range(1, 41))


def fragment(folder: Path, name: str, begun: float, rows: list[dict[str, Any]]) -> None:
    """One start of a run by somebody else's script."""
    from wandb.proto import wandb_internal_pb2

    schema: Any = wandb_internal_pb2  # without types
    records = [schema.Record()]
    records[0].run.run_id = "theirs"
    records[0].run.start_time.FromNanoseconds(int(begun * 1e9))
    for step, row in enumerate(rows):
        record = schema.Record()
        for key, value in {"_step": step, **row}.items():
            record.history.item.add(key=key, value_json=json.dumps(value))
        records.append(record)
    (folder / name).mkdir(parents=True)
    chunks = [chunk(1, record.SerializeToString()) for record in records]
    (folder / name / "run-theirs.wandb").write_bytes(HEADER + b"".join(chunks))


def test_fragments_are_put_together_by_their_own_axis_and_the_later_word_counts(tmp_path: Path) -> None:
    old = [{"train/global_step": k, "loss": 1.0} for k in range(0, 6)]
    new = [{"train/global_step": k, "loss": 2.0} for k in range(4, 9)]
    fragment(tmp_path, "offline-run-b-theirs", 1.0, old)
    fragment(tmp_path, "offline-run-a-theirs", 2.0, new)
    (run,) = read_directory(tmp_path)
    assert [(row["train/global_step"], row["loss"]) for row in run.rows] == [
        *((k, 1.0) for k in range(4)),
        *((k, 2.0) for k in range(4, 9)),
    ]


def test_without_an_axis_of_their_own_no_row_is_dropped(tmp_path: Path) -> None:
    fragment(tmp_path, "offline-run-a-theirs", 1.0, [{"loss": 1.0}, {"loss": 0.9}])
    fragment(tmp_path, "offline-run-b-theirs", 2.0, [{"loss": 0.8}])
    (run,) = read_directory(tmp_path)
    assert [row["loss"] for row in run.rows] == [1.0, 0.9, 0.8]
