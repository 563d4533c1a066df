from __future__ import annotations

import html
import json
import re
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.data.gather import Steps, gather, of_sweep
from analysis.data.units import duration, size
from analysis.page.page import flatten, page, shared_items
from analysis.page.report import render, script_json, write_results
from analysis.statistics.results import results
from analysis.statistics.sources import Source, load, published_source
from sweeps.store.schema import PlanFile, Record
from sweeps.store.store import Store, StoreError
from tests.support.browser import CHROMIUM, FLAGS
from tests.support.filler import Filler, write_report
from tests.support.processes import PATIENCE
from tests.support.records import save_sweep, some_record

DRAWN = ("difference", "pareto", "pareto_loss", "memory", "spectrum", "layouts", "tasks")
"""What there is to draw for the finished sweep: it has no speeds, and its training logged nothing."""
EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>&amp;\'"'


PROBE = """{
  const one = (selector) => document.querySelector(selector);
  const point = (name) => one(`.point[data-variant="${name}"]`);
  const names = () => [...document.querySelectorAll("#table tbody tr")].map((row) => row.dataset.variant);
  const key = (element, key) => element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const seen = { theme: document.documentElement.dataset.theme, planned: names() };
  const heading = document.querySelectorAll("#table th button")[4];
  heading.click();
  seen.sorted = names();
  seen.sort = heading.parentElement.ariaSort;
  const search = one("#filter");
  search.value = "mlkv-1";
  search.dispatchEvent(new Event("input"));
  seen.shown = [names(), one("#count").textContent];
  search.value = "";
  search.dispatchEvent(new Event("input"));
  point("MLKV-3").dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
  seen.tip = [...one("#tip").children].map((line) => line.textContent);
  point("MLKV-6").dispatchEvent(new MouseEvent("click", { bubbles: true }));
  seen.detail = one("#detail").textContent;
  seen.links = [...document.querySelectorAll("#detail a")].map((link) => link.textContent);
  key(point("MLKV-6"), "ArrowLeft");
  seen.focused = document.activeElement.dataset.variant;
  key(document.activeElement, "Enter");
  seen.entered = one("#detail h3").textContent;
  one('[data-plot="2"]').click();
  point("MLKV-3").dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
  seen.front = [...one("#tip").children].map((line) => line.textContent);
  one('[data-plot="3"]').click();
  seen.other = [one("#plot svg").getAttribute("aria-label"), document.querySelectorAll(".point").length];
  one("#table tbody button").click();
  seen.row = one("#detail h3").textContent;
  seen.chosen = [...document.querySelectorAll(".chosen")].map((element) => element.tagName);
  document.title = JSON.stringify(seen);
}"""
"""What a reader does with the page by mouse and keys, and what the page then shows."""


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


def data_of(report: Path) -> Any:
    """What the page's script was handed."""
    return json.loads(re.findall(r'id="data">(.*?)</script>', (report / "index.html").read_text())[0])


def browse(page: str, probe: str, directory: Path, theme: str = "light") -> Any:
    """What a probe in a real browser leaves as the page's title."""
    probed = directory / "probed.html"
    probed.write_text(page.replace("</body>", f"<script>{probe}</script></body>"))
    dom = subprocess.run(
        [
            str(CHROMIUM),
            *FLAGS,
            f"--user-data-dir={directory / 'profile'}",
            "--dump-dom",
            f"{probed.as_uri()}?theme={theme}",
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    ).stdout
    return json.loads(html.unescape(re.findall(r"<title>(.*?)</title>", dom)[0]))


@pytest.fixture(scope="module")
def report(finished: Filler, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    write_report(finished.store, finished.name, out)
    return out


def test_every_file_is_written_and_nothing_else(report: Path) -> None:
    assert {path.name for path in report.iterdir()} == {
        "index.html",
        *(f"{figure}.{kind}" for figure in DRAWN for kind in ("png", "pdf")),
        *(f"results.{kind}" for kind in ("csv", "json", "md", "tex")),
    }
    assert (report / "pareto.png").read_bytes().startswith(b"\x89PNG")
    text = (report / "index.html").read_text()
    assert text.index('href="difference.png"') < text.index('href="pareto.png"')
    assert (report / "memory.pdf").read_bytes().startswith(b"%PDF")


def test_the_page_asks_the_network_for_nothing(report: Path) -> None:
    page = Elements((report / "index.html").read_text())
    assert not [tag for tag, _ in page.found if tag in ("link", "iframe", "object") and "data:," not in str(_)]
    sources = [attrs.get("src") or "" for _, attrs in page.found if "src" in attrs]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    code = "".join(page.scripts).replace("http://www.w3.org/2000/svg", "")  # a name, which nobody visits
    assert not re.search(r"https?://|@import|url\(|fetch\(|import\(", code)


def test_plotted_points_are_those_of_results_csv(report: Path) -> None:
    csv = pd.read_csv(report / "results.csv", dtype=str)
    values = {float(value) for column in csv for value in csv[column] if re.fullmatch(r"[\d.]+", str(value))}
    plots = {plot["label"]: plot["marks"] for plot in data_of(report)["plots"]}
    assert len(marks := plots["bits per byte"]) == 9
    assert {float(number) for mark in marks for number in (mark[6], mark[7])} <= values


def test_plotted_differences_are_those_of_the_results(report: Path, finished: Filler) -> None:
    rows = {row["variant"]: row for row in load(finished.store, finished.name).results.rows()}
    first = data_of(report)["plots"][0]
    assert first["label"] == "Δ bits per byte"
    others = dict.fromkeys(rows.keys() - {"MHA-36", "untouched"}, "beyond")
    statuses = {"MHA-36": "baseline", "untouched": "untouched", **others}
    assert {mark[0]: mark[5] for mark in first["marks"]} == statuses
    for name, _, _, _, _, status, cost, value, *_, note in first["marks"]:
        low, high = (rows[name][f"quality_vs_mha_{end}"] for end in ("low", "high"))
        assert (cost, value) == (rows[name]["kv_bytes_per_token"], rows[name]["quality_vs_mha"])
        if status != "baseline":
            assert note == f"Δ bits per byte: {value:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}"


def test_two_reports_of_the_same_results_are_equal_byte_for_byte(
    finished: Filler, report: Path, tmp_path: Path
) -> None:
    write_report(finished.store, finished.name, tmp_path)
    for path in report.iterdir():
        if path.name != "index.html":  # its links to logs depend on where it lies
            assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_links_lead_to_the_steps_files(report: Path) -> None:
    data = data_of(report)
    assert sum(len(variant["steps"]) for variant in data["variants"]) == 9 * 9 - 2  # the base is not converted
    for id, (state, _, _, files, run) in data["steps"].items():
        assert (state, run) == ("DONE", "")
        assert json.loads((report / files / "done.json").read_text())["id"] == id
        assert (report / files / "attempts").is_dir()


def test_runs_on_a_wandb_server_are_linked(filler: Filler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = {"mode": "online", "project": "kv", "entity": "me"}
    save_sweep(filler.store, "online", {**filler.plan, "tracking": tracking}, filler.variants)
    filler.shared()
    base = filler.variants[0]["steps"]["base"]
    write_report(filler.store, "online", tmp_path)
    assert data_of(tmp_path)["steps"][base][4] == f"https://wandb.ai/me/kv/runs/{base}"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.lab/")
    write_report(filler.store, "online", tmp_path)
    assert data_of(tmp_path)["steps"][base][4] == f"https://wandb.lab/me/kv/runs/{base}"
    assert data_of(tmp_path)["steps"][filler.variants[1]["steps"]["uptrain"]][4] == ""  # was never begun


def test_what_users_write_is_shown_and_never_run(tmp_path: Path, filler: Filler) -> None:
    filler.variants[-1]["variant"] = EVIL
    filler.variants[-1]["overrides"] = {EVIL: EVIL}
    filler.variants[-1]["config"]["uptrain"] = {EVIL: EVIL}
    save_sweep(filler.store, "evil", {**filler.plan, "command": ["mlkv", EVIL]}, filler.variants)
    filler.shared()
    filler.fail(filler.variants[3]["steps"]["convert"], EVIL, f"Traceback\n{EVIL}\n")
    write_report(filler.store, "evil", tmp_path / "out")
    text = (tmp_path / "out" / "index.html").read_text()
    page = Elements(text)
    assert not [attrs for tag, attrs in page.found if "onerror" in attrs]
    assert len([tag for tag, _ in page.found if tag == "script"]) == 2
    assert not [attrs for tag, attrs in page.found if tag == "img" and attrs.get("src") == "x"]
    assert EVIL in "".join(page.text)
    last = data_of(tmp_path / "out")["variants"][-1]
    assert last["variant"] == EVIL
    assert last["overrides"] == [f"{EVIL}={EVIL}"]


def test_a_half_finished_sweep_has_a_report_that_tells_what_failed(tmp_path: Path, filler: Filler) -> None:
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


def test_an_old_figure_does_not_outlive_its_results(tmp_path: Path, filler: Filler) -> None:
    (tmp_path / "memory.png").write_bytes(b"from before")
    write_report(filler.store, filler.name, tmp_path)
    assert not (tmp_path / "memory.png").exists()


def test_the_page_names_what_made_the_results(report: Path) -> None:
    text = " ".join(" ".join(Elements((report / "index.html").read_text()).text).split())
    for fact in ("torch 2.13.0", "host node-1", f"code {'c0de' * 4}", "device cpu"):
        assert fact in text
    assert "uptrain.lr = 0.001" in text


@pytest.mark.slow
def test_a_thousand_variants_are_reported(tmp_path: Path, finished: Filler) -> None:
    labels = [f"MLKV-3 uptrain.seed={seed}" for seed in range(1000)]
    crowd = type(finished)(tmp_path / "store", dict.fromkeys(labels, finished.figures["MLKV-3"]))
    for label in labels[:3]:
        crowd.evaluate(label, "bits_per_byte")
    write_report(crowd.store, crowd.name, tmp_path / "out")
    assert len(results(gather(crowd.store, crowd.name)).frame) == 1000


def test_published_figures_make_the_same_files(tmp_path: Path) -> None:
    files = write_results(published_source("cla-3b-tuned"), tmp_path)
    assert {path.name for path in files} == {path.name for path in tmp_path.iterdir()}
    assert {"index.html", "pareto.pdf", "pareto_loss.pdf", "results.tex"} <= {path.name for path in files}


def test_an_unknown_sweep_is_refused_and_nothing_written(finished: Filler, tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "—"), (0.4, "0 s"), (99, "99 s"), (160, "2.7 min"), (420, "7 min"), (5399, "90 min"), (9000, "2.5 h")],
)
def test_a_time_is_said_in_its_unit(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(96, "96 B"), (512 * 1024, "512 KiB"), (1.5 * 2**30, "1.5 GiB"), (1023, "1 KiB")]
)
def test_a_size_is_said_in_its_unit(count: float, text: str) -> None:
    assert size(count) == text


def test_unchanged_figures_keep_their_files_and_changed_ones_do_not(tmp_path: Path, filler: Filler) -> None:
    write_report(filler.store, filler.name, tmp_path)
    (tmp_path / "layouts.pdf").write_bytes(b"%PDF kept")
    write_report(filler.store, filler.name, tmp_path)
    assert (tmp_path / "layouts.pdf").read_bytes() == b"%PDF kept"
    (tmp_path / "layouts.png").write_bytes(b"another")
    write_report(filler.store, filler.name, tmp_path)
    assert len((tmp_path / "layouts.pdf").read_bytes()) > 1000


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_real_browser_runs_the_page(report: Path, tmp_path: Path, theme: str) -> None:
    seen = browse((report / "index.html").read_text(), PROBE, tmp_path, theme)
    assert seen["theme"] == theme
    assert seen["planned"][0] == "untouched"
    assert seen["sorted"][0] == "MLKV-1"  # fewest KV bytes per token
    assert seen["sort"] == "ascending"
    assert seen["shown"] == [["MLKV-1", "MLKV-12"], "2 of 9 variants"]
    assert seen["tip"][:2] == ["MLKV-3", "1 ─ 1 ─ 1 ─"]
    assert seen["tip"][2].startswith("Δ bits per byte: +0.138, 95 % interval ")
    assert seen["tip"][3] == "bits per byte: 2.344 ± 0.004"
    assert any(line.startswith("384 KV bytes per token, ") for line in seen["tip"])
    assert "2.330 ± 0.004" in seen["detail"]
    assert seen["links"] == ["files", "logs"] * 9
    assert seen["focused"] == seen["entered"] == "MQA-6"  # beside it, as it costs the same
    assert "on the front with 100 %" in seen["front"]
    assert seen["other"] == ["mean of 3 against KV cache, bytes per token", 9]
    assert seen["row"] == "MLKV-1"
    assert set(seen["chosen"]) == {"TR", "g"}


CROWD_PROBE = """{
  const id = (name) => document.getElementById(name);
  const rows = () => [...document.querySelectorAll("#table tbody tr")];
  const type = (text) => { id("filter").value = text; id("filter").dispatchEvent(new Event("input")); };
  const timed = (act) => {
    const start = performance.now();
    act();
    document.body.offsetHeight;
    return performance.now() - start;
  };
  const seen = { rows: rows().length, where: id("where").textContent };
  seen.points = document.querySelectorAll(".point").length;
  id("after").click();
  seen.second = [rows()[0].dataset.variant, id("where").textContent];
  seen.filter = timed(() => type("mlkv-2 =00"));
  seen.found = [rows().length, id("count").textContent];
  type("");
  seen.sort = timed(() => document.querySelectorAll("#table th button")[4].click());
  seen.cheapest = rows()[0].dataset.variant;
  seen.states = [...id("state").options].map((option) => option.textContent);
  seen.loaded = performance.now();
  document.title = JSON.stringify(seen);
}"""


class Imagined(Steps):
    """A store's steps without files: every step is done but some evaluations. `tasks` is what each of those scores."""

    def __init__(self, store: Store, plan: PlanFile, tasks: dict[str, str]) -> None:
        super().__init__(store, plan)
        self.tasks = tasks

    def _read_record(self, step_id: str) -> Record | None:
        chance = zlib.crc32(self._planned[step_id].variants[0].encode()) % 1000 / 1000
        cells: dict[str, Any] = {"bits_per_byte": {"metric": "bits_per_byte", "value": 2 + chance, "stderr": 0.004}}
        accuracy = {"metric": "acc", "value": chance, "stderr": 0.02}
        task = self.tasks.get(step_id)
        if task and zlib.crc32(step_id.encode()) % 11 == 0:
            return None
        metrics = [{**cells.get(task, accuracy), "n": 250}] if task else []
        return some_record(metrics=metrics, wall_seconds=10.0, device_seconds=10.0)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary")
@pytest.mark.parametrize("count", [450, pytest.param(5000, marks=pytest.mark.long)])
def test_thousands_of_rows_are_shown_a_page_at_a_time(filler: Filler, tmp_path: Path, count: int) -> None:
    layouts = [label for label in filler.figures if label != "untouched"]
    labels = [f"{layouts[i % 8]} uptrain.lr={i:04d}" for i in range(count)]
    crowd = type(filler)(tmp_path / "crowd", {label: filler.figures[label.split()[0]] for label in labels})
    sweep = crowd.store.sweep(crowd.name)
    tasks = {id: task for variant in sweep.variants for task, id in variant.steps.evaluate.items()}
    steps = Imagined(crowd.store, sweep.plan, tasks)
    source = Source(crowd.name, of_sweep(sweep, steps), sweep, steps)
    text = render(page(crowd.store, source, tmp_path), {})
    seen = browse(text, CROWD_PROBE, tmp_path)
    print({key: seen[key] for key in ("loaded", "filter", "sort")}, f"{len(text) / 1e6:.1f} MB")
    assert (seen["rows"], seen["where"]) == (200, "1–200")
    assert seen["points"] > 0.8 * count
    assert seen["second"] == [labels[200], "201–400"]
    found = [label for label in labels if label.startswith("MLKV-2 ") and "=00" in label]
    assert seen["found"] == [len(found), f"{len(found)} of {count:,} variants"]
    assert seen["cheapest"] == next(label for label in labels if label.startswith("MLKV-1 "))
    assert sum(int(re.findall(r"\d+", state)[0]) for state in seen["states"][1:]) == count
