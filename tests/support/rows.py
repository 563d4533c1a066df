"""Another row in a table, for one test: a table itself refuses a name that it has."""

from __future__ import annotations

from typing import TypeVar

import pytest

from mlkv.registry import Registry

R = TypeVar("R")


def replace_row(monkeypatch: pytest.MonkeyPatch, table: Registry[R], name: str, row: R) -> None:
    monkeypatch.setitem(table._rows, name, row)
