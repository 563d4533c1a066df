"""What jobs would need the internet for is brought beforehand: against a hub of one model, served here."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.processes import PATIENCE
from tests.support.shell import ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "gpt_neox"}',
    "tokenizer.json": b"{}",
    "model.safetensors": bytes(1000),
    "README.md": b"not needed",
}

FETCH = """
import sys
from pathlib import Path
from rich.console import Console
from sweeps.worker.fetch import fetch_inputs
from mlkv.recipes import CorpusRecipe
from sweeps.steps.base import loaded_base_step
from sweeps.steps.corpus import corpus_step
from sweeps.store.store import Store
source = {"hub": "acme/pocket", "revision": sys.argv[1]}
recipe = CorpusRecipe(tokenizer="published", tokenizer_from="acme/pocket")
corpus = corpus_step(recipe, {"text": "0"}, source)
step = loaded_base_step({"model": "acme/pocket"}, source, "pocket") if sys.argv[3] == "model" else corpus
assert fetch_inputs({step.id: step}, Store(Path(sys.argv[2])), Console())
"""
USE = "import sys; from sweeps.steps.model_files import fetch_model; print(fetch_model('acme/pocket', sys.argv[1]))"


def etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:40]


class Hub(BaseHTTPRequestHandler):
    requests: list[str] = []  # noqa: RUF012

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        self.requests.append(self.path)
        files = [{"type": "file", "path": n, "size": len(c), "oid": etag(c)} for n, c in FILES.items()]
        info = {"id": "acme/pocket", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
        served = {f"/acme/pocket/resolve/{COMMIT}/{name}": content for name, content in FILES.items()}
        served[f"/api/models/acme/pocket/revision/{COMMIT}"] = json.dumps(info).encode()
        served[f"/api/models/acme/pocket/tree/{COMMIT}"] = json.dumps(files).encode()
        content = served.get(self.path.split("?")[0])
        self.send_response(404 if content is None else 200)
        content = content or b""
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{etag(content)}"')
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Not to the tests' output."""


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.requests.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def python(code: str, *arguments: object, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    env = {**inherited, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_model_is_fetched_once_and_there_when_the_hub_is_not(hub: str, tmp_path: Path) -> None:
    here = {"HF_HOME": str(tmp_path / "cache"), "HF_ENDPOINT": hub, "HF_HUB_DISABLE_XET": "1"}
    assert "acme/pocket at 0123456789ab" in python(FETCH, COMMIT, tmp_path / "store", "model", **here)
    assert any("model.safetensors" in path for path in Hub.requests)
    assert not any("README" in path for path in Hub.requests), "only what a checkpoint consists of"
    Hub.requests.clear()
    found = Path(python(USE, COMMIT, **{**here, "HF_HUB_OFFLINE": "1"}).strip())
    assert {path.name for path in found.iterdir()} == {"config.json", "tokenizer.json", "model.safetensors"}
    assert Hub.requests == []


def test_of_a_model_whose_tokenizer_is_all_that_is_wanted_the_weights_stay_away(hub: str, tmp_path: Path) -> None:
    here = {"HF_HOME": str(tmp_path / "cache"), "HF_ENDPOINT": hub, "HF_HUB_DISABLE_XET": "1"}
    assert "tokenizer acme/pocket" in python(FETCH, COMMIT, tmp_path / "store", "tokenizer", **here)
    assert any("tokenizer.json" in path for path in Hub.requests)
    assert not any("safetensors" in path for path in Hub.requests)
