"""Keeps what only shows a sweep (a live view, its report, its copy in W&B) from ending the sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from sweeps.store.outside import in_one_line


class Guard:
    """Hands each error to `report` in one line, the first time that it comes up, and goes on. Hours of training may not
    end because a line cannot be drawn, or a file that only a view reads is damaged."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._reported: set[str] = set()

    @property
    def failed(self) -> bool:
        return bool(self._reported)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            line = in_one_line(error)
            if line not in self._reported:
                self._reported.add(line)
                with suppress(Exception):  # it may be the terminal that is gone
                    self._report(line)
