"""`mlkv check`: what it prints, its exit statuses, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mlkv.check.table import CHECKS
from sweeps.cli import main
from tests.support.matrix import FAMILY_CONFIGS


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return written(tmp_path, FAMILY_CONFIGS["llama"])


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first checks alone: tests/mlkv/test_check.py runs them all."""
    monkeypatch.setattr("mlkv.check.table.CHECKS", CHECKS[:2])


def written(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def checked(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["check", *map(str, words)])
    printed = capsys.readouterr()
    return int(end.value.code or 0), printed.out, printed.err


@pytest.mark.usefixtures("few")
def test_a_line_for_each_check_and_a_sum(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, printed, _ = checked(capsys, llama)
    title, *lines, total = printed.splitlines()
    assert status == 0
    assert f"{llama}: llama, random weights, logits compared, float32 on cpu, 2 rows of 12 tokens" in title
    assert [line.split()[:3] for line in lines] == [["pass", "passes", "repeated"], ["pass", "passes", "causal"]]
    assert re.search(r"repeated +0 +1\.0e-04$", lines[0])
    assert total == "2 passed, 0 failed, 0 skipped"


@pytest.mark.usefixtures("few")
def test_json_has_all_that_was_measured(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, printed, _ = checked(capsys, llama / "config.json", "--json", "--dtype=float64", "--seed=3", "--tokens=9")
    found = json.loads(printed)
    assert status == 0
    assert (found["schema"], found["faults"], found["weights"], found["dtype"]) == (1, 0, "random", "float64")
    assert (found["seed"], found["tokens"], found["compared"], found["device"]) == (3, 9, "logits", "cpu")
    assert set(found["versions"]) == {"mlkv", "torch", "transformers"}
    expected = {"name": "repeated", "subject": "passes", "state": "pass", "difference": 0, "bound": 1e-6, "reason": ""}
    assert found["checks"][0] == expected


@pytest.mark.usefixtures("few")
def test_a_fault_is_exit_status_1(
    llama: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_subject: object) -> None:
        raise KeyError("nope")

    monkeypatch.setattr("mlkv.check.table.CHECKS", (type(CHECKS[0])("repeated", "passes", fails), *CHECKS[1:2]))  # type: ignore[arg-type]
    status, printed, _ = checked(capsys, llama)
    assert status == 1
    assert "FAIL    passes     repeated             –        –  KeyError: 'nope'" in printed
    assert "skipped passes     causal               –        –  a pass fails" in printed


@pytest.mark.parametrize(
    ("words", "config", "message"),
    [
        ([], None, "no config.json there; a model of the hub is downloaded first: `hf download NAME --local-dir DIR`"),
        ([], {}, "names no model_type"),
        ([], {"model_type": "nobody"}, r"model_type = nobody: transformers [\d.]+ has no such model"),
        ([], {"model_type": "nobody", "auto_map": {"AutoConfig": "hf.C"}}, r"code of its own \(hf.C\); read it, then"),
        ([], {"model_type": "llama", "hidden_size": "x"}, "config.json: is refused: .*hidden_size"),
        (["--tokens=49"], FAMILY_CONFIGS["llama"], "tokens = 49: the model's context is 48"),
        (["--tokens=x"], FAMILY_CONFIGS["llama"], "--tokens: x: must be a whole number, 8 or more"),
        (["--seed=-1"], FAMILY_CONFIGS["llama"], "--seed: -1: must be a whole number, 0 or more"),
        (["--dtype=int8"], FAMILY_CONFIGS["llama"], "--dtype: invalid choice: 'int8'"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    words: list[str],
    config: dict[str, Any] | None,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if config is not None:
        written(tmp_path, config)
    status, printed, refusal = checked(capsys, tmp_path, *words)
    assert (status, printed) == (2, "")
    assert re.fullmatch(rf"mlkv: .*{message}.*\n", refusal), refusal


@pytest.mark.usefixtures("few")
def test_the_models_own_code_runs_when_it_is_trusted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlkv.hf import MLKVForCausalLM
    from tests.support.matrix import LAYOUTS, SHAPES

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "model"
    MLKVForCausalLM.from_shape(SHAPES["neox"], LAYOUTS["mlkv"], seed=1).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "somebodys"}
    written(folder, config)
    status, _, refusal = checked(capsys, folder)
    assert status == 2
    assert "add --trust-remote-code to run it" in refusal
    status, printed, _ = checked(capsys, folder, "--trust-remote-code")
    assert (status, printed.splitlines()[-1]) == (0, "2 passed, 0 failed, 0 skipped")
    assert "its weights" in printed
