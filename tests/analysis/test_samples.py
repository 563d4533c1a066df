"""The scores of single samples, as an evaluation writes them and a comparison reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis.data.samples import StoredSamples
from mlkv.evaluate.outcomes import Outcomes, save
from sweeps.store.errors import DamagedFileError
from sweeps.store.store import Store
from tests.support.read_back import present

ID = "evaluate-0123456789abcdef"
FOUND = Outcomes(np.array([-3, 2**62], np.int64), np.array([0.5, 1.0]), np.array([1.0, 2.0]))


@pytest.mark.parametrize(("task", "name"), [("group", "acc"), ("group/member", "member/acc")])
def test_what_is_saved_is_read_back(tmp_path: Path, task: str, name: str) -> None:
    store = Store.open(tmp_path)
    save({name: FOUND}, store.step(ID).out)
    read = present(StoredSamples(store).outcomes(ID, task, "acc"))
    assert (list(read.units), list(read.parts), list(read.weights)) == ([-3, 2**62], [0.5, 1.0], [1.0, 2.0])
    assert read.samples_digest == FOUND.samples_digest
    assert StoredSamples(store).outcomes(ID, task, "other") is None


def test_a_file_that_is_cut_off_is_named(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    save({"acc": FOUND}, store.step(ID).out)
    path = store.step(ID).out / "scores" / "acc.samples"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedFileError, match=rf"^{path}: is cut off; run `mlkv status NAME --verify`"):
        StoredSamples(store).outcomes(ID, "group", "acc")
