from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.gather import gather
from analysis.page import duration, flatten, shared_items
from analysis.report import script_json, write_report, write_results
from analysis.results import results
from analysis.sources import published_source
from sweeps.store import StoreError

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRAWN = ("pareto", "pareto_loss", "memory", "spectrum", "layouts", "tasks")
"""What there is to draw for the finished sweep: it has no speeds, and its training logged nothing."""
EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>&amp;\'"'


PROBE = """{
  const point = (name) => document.querySelector(`.plot:not([hidden]) .point[data-variant="${name}"]`);
  document.querySelectorAll("#table th button")[4].click();
  const first = document.querySelector("#table tbody tr").dataset.variant;
  const search = document.getElementById("filter");
  search.value = "mlkv-1";
  search.dispatchEvent(new Event("input"));
  const shown = [...document.querySelectorAll("#table tbody tr")].filter((row) => !row.hidden).length;
  point("MLKV-3").dispatchEvent(new MouseEvent("mouseenter"));
  const tip = document.getElementById("tip").textContent;
  point("MLKV-6").dispatchEvent(new MouseEvent("click"));
  const detail = document.getElementById("detail").textContent;
  document.title = JSON.stringify({ first, shown, tip, detail, theme: document.documentElement.dataset.theme });
}"""
"""What a reader does with the page, and what the page then shows."""


class Elements(HTMLParser):
    """Tags with their attributes, and the text of the page outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        inside = self.found[-1][0] if self.found else ""
        (self.scripts if inside in ("script", "style") else self.text).append(data)

    def with_class(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for _, attrs in self.found if name in (attrs.get("class") or "").split()]


@pytest.fixture(scope="module")
def report(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    write_report(finished.store, finished.name, out)
    return out


def test_every_file_is_written_and_nothing_else(report: Path) -> None:
    assert {path.name for path in report.iterdir()} == {
        "index.html",
        *(f"{figure}.{kind}" for figure in DRAWN for kind in ("png", "pdf")),
        *(f"results.{kind}" for kind in ("csv", "md", "tex")),
    }
    assert (report / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert (report / "memory.pdf").read_bytes().startswith(b"%PDF")


def test_the_page_asks_the_network_for_nothing(report: Path) -> None:
    page = Elements((report / "index.html").read_text())
    assert not [tag for tag, _ in page.found if tag in ("link", "iframe", "object") and "data:," not in str(_)]
    sources = [attrs.get("src") or "" for _, attrs in page.found if "src" in attrs]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|@import|url\(", "".join(page.scripts))


def test_plotted_points_are_those_of_results_csv(report: Path) -> None:
    page = Elements((report / "index.html").read_text())
    csv = pd.read_csv(report / "results.csv", dtype=str).set_index("variant")
    points = page.with_class("point")[: len(csv)]
    assert {point["data-variant"]: (int(str(point["data-x"])), float(str(point["data-y"]))) for point in points} == {
        variant: (int(row["kv_bytes_per_token"]), float(row["quality"])) for variant, row in csv.iterrows()
    }


def test_two_reports_of_the_same_results_are_equal_byte_for_byte(finished: Any, report: Path, tmp_path: Path) -> None:
    write_report(finished.store, finished.name, tmp_path)
    for path in report.iterdir():
        if path.name != "index.html":  # its links to logs depend on where it lies
            assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_links_lead_to_the_steps_files(report: Path) -> None:
    page = (report / "index.html").read_text()
    details = json.loads(re.findall(r'id="data">(.*?)</script>', page)[0])
    steps = [step for variant in details for step in variant["steps"]]
    assert len(steps) == 9 * 9 - 2  # the untouched base is neither converted nor trained
    for step in steps:
        assert json.loads((report / step["files"] / "done.json").read_text())["id"] == step["id"]


def test_what_users_write_is_shown_and_never_run(tmp_path: Path, filler: Any) -> None:
    filler.variants[-1]["variant"] = EVIL
    filler.variants[-1]["overrides"] = {EVIL: EVIL}
    filler.variants[-1]["config"]["uptrain"] = {EVIL: EVIL}
    filler.store.save_sweep("evil", {**filler.plan, "command": ["mlkv", EVIL]}, filler.variants, [])
    filler.shared()
    filler.fail(filler.variants[3]["steps"]["convert"], EVIL, f"Traceback\n{EVIL}\n")
    write_report(filler.store, "evil", tmp_path / "out")
    text = (tmp_path / "out" / "index.html").read_text()
    page = Elements(text)
    assert not [attrs for tag, attrs in page.found if "onerror" in attrs]
    assert len([tag for tag, _ in page.found if tag == "script"]) == 2
    assert not [attrs for tag, attrs in page.found if tag == "img" and attrs.get("src") == "x"]
    assert EVIL in "".join(page.text)
    details = json.loads(re.findall(r'id="data">(.*?)</script>', text)[0])
    assert details[-1]["variant"] == EVIL
    assert details[-1]["overrides"] == [f"{EVIL}={EVIL}"]


def test_a_half_finished_sweep_has_a_report_that_tells_what_failed(tmp_path: Path, filler: Any) -> None:
    filler.shared()
    filler.train("GQA-12")
    filler.evaluate("GQA-12", "bits_per_byte")
    filler.fail(filler.variant("MLKV-6")["steps"]["convert"], "must divide 6", "one\ntwo\nValueError: must divide 6\n")
    files = write_report(filler.store, filler.name, tmp_path)
    assert "memory.png" not in {path.name for path in files}
    text = " ".join(" ".join(Elements((tmp_path / "index.html").read_text()).text).split())
    assert "0 / 9 variants finished" in text
    assert "1 steps failed or lost" in text
    assert "ValueError: must divide 6" in text
    assert "convert MLKV-6 failed" in text


def test_an_old_figure_does_not_outlive_its_results(tmp_path: Path, filler: Any) -> None:
    (tmp_path / "memory.png").write_bytes(b"from before")
    write_report(filler.store, filler.name, tmp_path)
    assert not (tmp_path / "memory.png").exists()


def test_the_page_names_what_made_the_results(report: Path) -> None:
    text = " ".join(" ".join(Elements((report / "index.html").read_text()).text).split())
    for fact in ("torch 2.13.0", "host node-1", f"code {'c0de' * 4}", "device cpu"):
        assert fact in text
    assert "uptrain.lr = 0.001" in text


@pytest.mark.slow
def test_a_thousand_variants_are_reported(tmp_path: Path, finished: Any) -> None:
    labels = [f"MLKV-3 uptrain.seed={seed}" for seed in range(1000)]
    crowd = type(finished)(tmp_path / "store", dict.fromkeys(labels, finished.figures["MLKV-3"]))
    for label in labels[:3]:
        crowd.evaluate(label, "bits_per_byte")
    write_report(crowd.store, crowd.name, tmp_path / "out")
    assert len(results(gather(crowd.store, crowd.name))) == 1000


def test_published_figures_make_the_same_files(tmp_path: Path) -> None:
    files = write_results(published_source("mlkv"), tmp_path)
    assert {path.name for path in files} == {path.name for path in tmp_path.iterdir()}
    assert {"pareto.pdf", "memory.pdf", "results.tex"} <= {path.name for path in files}


def test_an_unknown_sweep_is_refused_and_nothing_written(finished: Any, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="typo: not in"):
        write_report(finished.store, "typo", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_json_in_a_script_element_cannot_end_it() -> None:
    text = script_json({"a": "</script><!--&"})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"a": "</script><!--&"}


def test_configs_are_told_apart_by_what_they_do_not_share() -> None:
    configs = [flatten({"a": {"b": 1, "c": lr}, "d": None, "e": {}}) for lr in (1e-3, 1e-4)]
    assert configs[0] == {"a.b": "1", "a.c": "0.001", "d": "", "e": "{}"}
    assert shared_items(configs) == {"a.b": "1", "d": "", "e": "{}"}


@pytest.mark.parametrize(("seconds", "text"), [(None, ""), (3.2, "3 s"), (120, "2.0 min"), (7200, "2.0 h")])
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_real_browser_runs_the_page(report: Path, tmp_path: Path, theme: str) -> None:
    page = (report / "index.html").read_text()
    probed = tmp_path / "probed.html"
    probed.write_text(page.replace("</body>", f"<script>{PROBE}</script></body>"))
    dom = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"{probed.as_uri()}?theme={theme}",
        ],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    seen = json.loads(html.unescape(re.findall(r"<title>(.*?)</title>", dom)[0]))
    assert seen["theme"] == theme
    assert seen["first"] == "MLKV-1"  # fewest KV bytes per token
    assert seen["shown"] == 2  # MLKV-1 and MLKV-12
    assert seen["tip"] == "MLKV-31 ─ 1 ─ 1 ─bits per byte: 2.344 ± 0.004384 KV bytes per token"
    assert "MLKV-6" in seen["detail"]
    assert "2.330 ± 0.004" in seen["detail"]
