"""Exports served by the engines themselves: 256 greedy tokens after each of three prompts are ours, and the engine's
cache has the formula's bytes for each token. `make test-engines` runs it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from mlkv.hf import MLKVForCausalLM
from tests.engines.environments import ASKED, node_folder, openvino_python, run, vllm_python
from tests.support.served import CONTEXT, GGUF, NEW_TOKENS, PROMPTS, Served, compare

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(2 * 3600),
    pytest.mark.skipif(os.environ.get(ASKED) != "1", reason=f"makes environments of gigabytes: set {ASKED}=1"),
]
HERE = Path(__file__).parent
VLLM = (
    Served("vllm", "llama", "pairs"),
    Served("vllm", "llama", "0 1 0 1 0 1"),
    Served("vllm", "llama", "one owner"),
    Served("vllm", "gpt_neox", "pairs"),
    Served("vllm", "opt", "MQA"),
    Served("vllm", "llama_yarn", "pairs"),
    Served("vllm", "qwen2_windows", "GQA"),
    Served("vllm", "qwen3", "pairs"),
    Served("vllm", "smollm3", "pairs"),
    Served("vllm", "gemma2", "one owner"),
    Served("vllm", "gemma3", "GQA"),
    Served("vllm", "gemma3", "0 1 0 1 0 1"),
    Served("vllm", "olmo2", "pairs"),
    Served("vllm", "phi3", "pairs"),
    Served("vllm", "stablelm", "one owner"),
    Served("native", "llama", "GQA"),
    Served("native", "llama", "MQA"),
    Served("native", "qwen3", "GQA"),
)
"""The layers of `gemma3` with a window own what layers without one read."""


LLAMA_CPP = (*GGUF.values(), Served("gguf", "llama_3", "GQA"), Served("gguf", "llama_linear", "MQA"))


@dataclass(frozen=True)
class Answer:
    """What an engine says of the export of a model."""

    model: MLKVForCausalLM
    reply: dict[str, Any]


def answers(rows: tuple[Served, ...], written: list[tuple[MLKVForCausalLM, Path]], output: str) -> dict[str, Answer]:
    lines = [line.removeprefix("RESULT ") for line in output.splitlines() if line.startswith("RESULT ")]
    found = zip(rows, written, map(json.loads, lines), strict=True)
    return {row.name: Answer(model, reply) for row, (model, _), reply in found}


def check(row: Served, answer: Answer) -> None:
    assert "error" not in answer.reply, answer.reply["error"]
    found = compare(answer.model, answer.reply["tokens"])
    print(row.name, found, {name: value for name, value in answer.reply.items() if name != "tokens"})
    assert (found.tokens, found.wrong) == (len(PROMPTS) * NEW_TOKENS, {})
    if "bytes_per_token" in answer.reply:
        assert answer.reply["bytes_per_token"] == answer.model.layout.kv_bytes_per_token(row.shape.head_dim, 4)


@pytest.fixture(scope="module")
def vllm_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vllm_python(tmp_path_factory.mktemp("vllm_environment") / "environment")


@pytest.fixture(scope="module")
def vllm(vllm_environment: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """Of each export, in one process."""
    folder, python = tmp_path_factory.mktemp("vllm"), vllm_environment
    written = [row.write(folder) for row in VLLM]
    plugin = written[0][1]
    run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", f"{plugin}/"])
    settings = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    models = [out for _, out in written]
    output = run([python, HERE / "vllm_run.py", json.dumps(PROMPTS), NEW_TOKENS, *models], settings)
    return answers(VLLM, written, output)


@pytest.mark.parametrize("row", VLLM, ids=lambda row: row.name)
def test_vllm_gives_our_tokens_and_caches_the_formulas_bytes(row: Served, vllm: dict[str, Answer]) -> None:
    check(row, vllm[row.name])


@pytest.fixture(scope="module")
def llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """Of each export, in one process."""
    folder = tmp_path_factory.mktemp("llama_cpp")
    modules, written = node_folder(folder / "environment"), [row.write(folder) for row in LLAMA_CPP]
    models = [out / "model.gguf" for _, out in written]
    command = ["node", HERE / "llama_run.mjs", json.dumps(PROMPTS), NEW_TOKENS, CONTEXT, *models]
    return answers(LLAMA_CPP, written, run(command, cwd=modules))


@pytest.mark.parametrize("row", LLAMA_CPP, ids=lambda row: row.name)
def test_llama_cpp_gives_our_tokens_and_caches_the_formulas_bytes(row: Served, llama_cpp: dict[str, Answer]) -> None:
    check(row, llama_cpp[row.name])


OPENVINO = tuple(replace(GGUF[name], half=True) for name in ("llama", "qwen2", "qwen3"))
"""It reads these architectures, in float16."""


def test_openvino_gives_our_tokens(tmp_path: Path) -> None:
    python, written = openvino_python(tmp_path / "environment"), [row.write(tmp_path) for row in OPENVINO]
    models = [out / "model.gguf" for _, out in written]
    output = run([python, HERE / "openvino_run.py", json.dumps(PROMPTS), NEW_TOKENS, *models])
    found = answers(OPENVINO, written, output)
    for row in OPENVINO:
        check(row, found[row.name])


TRANSFORMERS = (
    Served("transformers", "llama", "0 1 0 1 0 1"),
    Served("transformers", "gemma3", "pairs"),
    Served("native", "gemma2", "GQA"),
)
GENERATE = """
import json, sys, torch
from transformers import AutoModelForCausalLM
try:
    import mlkv
except ImportError:
    pass
else:
    sys.exit("mlkv can be imported")
prompts, new_tokens, *models = sys.argv[1:]
for path in models:
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, dtype=torch.float32).eval()
    size = int(new_tokens)
    found = [
        model.generate(torch.tensor([p]), max_new_tokens=size, min_new_tokens=size, do_sample=False, pad_token_id=0)
        for p in json.loads(prompts)
    ]
    print("RESULT", json.dumps({"tokens": [each[0, -size:].tolist() for each in found]}))
"""


def test_another_transformers_without_this_project_gives_our_tokens(vllm_environment: Path, tmp_path: Path) -> None:
    """That of vLLM's environment, which has another torch too."""
    written = [row.write(tmp_path) for row in TRANSFORMERS]
    code = tmp_path / "generate.py"
    code.write_text(GENERATE)
    models = [out for _, out in written]
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    output = run([vllm_environment, code, json.dumps(PROMPTS), NEW_TOKENS, *models], home)
    found = answers(TRANSFORMERS, written, output)
    for row in TRANSFORMERS:
        check(row, found[row.name])
