"""A Hugging Face hub that takes uploads, as its client sends them (create_repo, preupload, LFS and commit), and hands
out the files of dataset repositories."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_a_test"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Uploads(ThreadingHTTPServer):
    """repositories: name → file → content. stored: what LFS took, by its SHA-256."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.stored: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Uploads

    def do_POST(self) -> None:
        body = self._body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer({"error": "Invalid credentials"}, 401)
        elif self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            self._answer({"files": [self._mode(file) for file in json.loads(body)["files"]]})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            self._answer({"transfer": "basic", "objects": [self._place(each) for each in json.loads(body)["objects"]]})
        elif "/commit/" in self.path:
            self._commit("/".join(self.path.split("/commit/")[0].split("/")[3:]), body)
        else:
            self._answer({"error": f"no such address: {self.path}"}, 404)

    def do_GET(self) -> None:
        parts = self.path.split("/")
        if self.path.startswith("/api/datasets/"):
            name = "/".join(parts[3:5])
            files = [{"rfilename": file} for file in self.server.repositories.get(name, {})]
            known = name in self.server.repositories
            self._answer(
                {"id": name, "sha": COMMIT, "siblings": files} if known else {"error": name}, 200 if known else 404
            )
        else:
            self._file("/".join(parts[2:4]), "/".join(parts[6:]), body=True)

    def do_HEAD(self) -> None:
        parts = self.path.split("/")
        self._file("/".join(parts[2:4]), "/".join(parts[6:]), body=False)

    def _file(self, name: str, file: str, *, body: bool) -> None:
        """`/datasets/USER/REPO/resolve/COMMIT/FILE`."""
        content = self.server.repositories.get(name, {}).get(file)
        if content is None:
            self._answer({"error": f"no such file: {self.path}"}, 404)
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def do_PUT(self) -> None:
        content, digest = self._body(), self.path.removeprefix("/lfs/")
        assert hashlib.sha256(content).hexdigest() == digest
        self.server.stored[digest] = content
        self._answer({})

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        status = 409 if name in self.server.repositories else 200
        self.server.repositories.setdefault(name, {})
        self.server.private.setdefault(name, wanted.get("visibility") == "private" or bool(wanted.get("private")))
        self._answer({"url": f"{self.server.url}/{name}"}, status)

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        large = file["path"].endswith((".safetensors", ".gguf", ".mlkv"))
        return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def _place(self, wanted: dict[str, Any]) -> dict[str, Any]:
        upload = {"href": f"{self.server.url}/lfs/{wanted['oid']}"}
        return {**wanted, "actions": {"upload": upload}}

    def _commit(self, name: str, body: bytes) -> None:
        files = self.server.repositories[name]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
        address = f"{self.server.url}/{name}/commit/{COMMIT}"
        self._answer({"commitUrl": address, "commitOid": COMMIT, "success": True})

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, value: object, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Not to the tests' output."""


@contextmanager
def uploads() -> Iterator[Uploads]:
    with Uploads() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
