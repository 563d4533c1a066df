"""The page by keyboard alone, in a real browser, as wide as a desk's screen and as a telephone's."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import CHROMIUM, Browser, browser
from tests.support.filler import Filler, write_report

pytestmark = [pytest.mark.long, pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary")]

PROBES = """
const look = (element) => [element, ...element.children].map((each) => {
  const { outlineStyle, stroke, strokeWidth } = getComputedStyle(each);
  return outlineStyle + stroke + strokeWidth;
}).join();
const reachable = () => [...document.querySelectorAll("a[href], button, input, select, summary, [tabindex]")]
  .filter((element) => element.tabIndex >= 0 && !element.disabled && element.checkVisibility());
const plain = new Map(reachable().map((element) => [element, look(element)]));
const inside = (low, high, end) => (low >= 0 && high <= end) || high - low > end;
function focused() {
  const element = document.activeElement, box = element.getBoundingClientRect();
  if (element === document.body) return null;
  const middle = (low, high, end) => Math.min(Math.max((low + high) / 2, 1), end - 1);
  const x = middle(box.left, box.right, innerWidth), y = middle(box.top, box.bottom, innerHeight);
  const at = document.elementFromPoint(x, y);
  const name = (element.getAttribute("aria-label") || element.textContent).trim();
  const faults = {
    "nameless": !name,
    "cut off": !inside(box.left, box.right, innerWidth) || !inside(box.top, box.bottom, innerHeight),
    "covered": !element.contains(at) && !at.contains(element),
    "not marked": look(element) === plain.get(element),
  };
  return { number: reachable().indexOf(element), name, faults: Object.keys(faults).filter((fault) => faults[fault]) };
}
"""
DETAIL = "document.querySelector('#detail h3').textContent"
ROWS = "[...document.querySelectorAll('#table tbody tr')].map((row) => row.dataset.variant)"


@pytest.fixture(scope="module")
def page(finished: Filler, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(finished.store, finished.name, tmp_path_factory.mktemp("report"))[0]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(params=[(1280, 800), (390, 844)], ids=["1280", "390"])
def opened(request: pytest.FixtureRequest, chromium: Browser, page: Path) -> Browser:
    width, height = request.param
    chromium.open(page, width, height)
    chromium.value(PROBES)
    return chromium


def walk(opened: Browser, *, shift: bool = False) -> Iterator[Any]:
    """What has the focus, from Tab to Tab, once around the page. Between its end and its beginning the window may have
    the focus for a moment."""
    first = None
    while True:
        opened.press("Tab", shift=shift)
        if (found := opened.value("focused()")) is None:
            continue
        if found["number"] == first:
            return
        first = found["number"] if first is None else first
        yield found


def go_to(opened: Browser, name: str) -> None:
    """By Tab, to what is called so."""
    assert any(found["name"] == name for found in walk(opened)), f"Tab does not reach {name}"


def test_tab_reaches_everything_in_order_and_all_of_it_is_seen(opened: Browser) -> None:
    count = opened.value("reachable().length")
    found = list(walk(opened))
    assert count > 30
    assert [each["number"] for each in found] == list(range(count))
    for fault in ("nameless", "cut off", "covered", "not marked"):
        assert [each["name"] for each in found if fault in each["faults"]] == []
    back = [each["number"] for each in walk(opened, shift=True)]
    assert sorted(back) == list(range(count))
    assert all((one - other) % count == 1 for one, other in pairwise(back))


def test_nothing_is_wider_than_the_screen(opened: Browser) -> None:
    assert opened.value("document.documentElement.scrollWidth <= innerWidth")


def test_points_rows_headings_and_the_theme_act_by_keys(opened: Browser) -> None:
    go_to(opened, "MLKV-1")
    assert opened.value("!tip.hidden && tip.textContent.startsWith('MLKV-1')")
    opened.press("ArrowRight")
    opened.press("ArrowRight")
    opened.press("ArrowLeft")
    opened.press("Enter")
    assert opened.value(f"[{DETAIL}, document.activeElement.dataset.variant]") == ["MLKV-2", "MLKV-2"]
    opened.press("Escape")
    assert opened.value("tip.hidden")
    go_to(opened, "Δ bits per byte")
    opened.press("ArrowRight")
    drawn = opened.value("document.querySelector('#plot svg').getAttribute('aria-label')")
    assert drawn == "Δ mean of 3 against KV cache, bytes per token"
    go_to(opened, "filter the results")
    opened.type("mqa")
    assert opened.value(ROWS) == ["MQA-6"]
    opened.press("Escape")  # which empties a field of searches
    assert len(opened.value(ROWS)) == 9
    go_to(opened, "KV bytes/\u200btoken")
    opened.press(" ")
    opened.press(" ")
    assert opened.value(f"[document.activeElement.parentElement.ariaSort, {ROWS}[0]]") == ["descending", "untouched"]
    go_to(opened, "MLKV-12")
    opened.press("Enter")
    assert opened.value(DETAIL) == "MLKV-12"
    theme = opened.value("document.documentElement.dataset.theme")
    go_to(opened, "switch between light and dark")
    opened.press("Enter")
    assert opened.value("document.documentElement.dataset.theme") != theme
