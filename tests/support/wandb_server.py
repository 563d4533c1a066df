"""A W&B server on 127.0.0.1 for tests: the real client logs in, logs, resumes, syncs and reads back, and can be failed.

with WandbServer() as server:
    environment = {**os.environ, **server.environment()}
    server.fail(status=500, times=3)
"""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.wandb_graphql import ENTITY, Backend, StoredRun

KEY = "loopback" * 5
"""An API key in the form that the client accepts: 40 characters."""


@dataclass
class Fault:
    """What to do to the next `times` requests whose path contains `path`; every `every`-th of them."""

    path: str = ""
    times: float = 1
    every: int = 1
    status: int | None = None
    retry_after: float | None = None
    seconds: float = 0.0
    disconnect: bool = False
    seen: int = 0
    done: int = 0

    def strikes(self, path: str) -> bool:
        if self.path not in path or self.done >= self.times:
            return False
        self.seen += 1
        if self.seen % self.every:
            return False
        self.done += 1
        return True


class WandbServer:
    """Keeps everything in memory, over stops and starts on the same port."""

    def __init__(self) -> None:
        self.backend = Backend()
        self.requests: list[str] = []
        self.refused: list[str] = []
        self.faults: list[Fault] = []
        self._http: _Server | None = None
        self.port = 0
        self.start()

    def start(self) -> None:
        self._http = _Server(("127.0.0.1", self.port), _Handler)
        self._http.owner = self
        self.port = self._http.server_address[1]
        self.backend.url = self.url
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        """As if the machine were gone: nothing listens and open connections break."""
        if self._http:
            self._http.shutdown()
            self._http.server_close()
            self._http.hang_up()
            self._http = None

    def fail(self, **how: Any) -> Fault:
        self.faults.append(Fault(**how))
        return self.faults[-1]

    def __enter__(self) -> WandbServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def runs(self) -> dict[str, StoredRun]:
        """By run id."""
        return {name: run for (_, _, name), run in self.backend.runs.items()}

    def environment(self) -> dict[str, str]:
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": KEY,
            "WANDB_ENTITY": ENTITY,
            "WANDB_ERROR_REPORTING": "false",
        }


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128
    owner: WandbServer

    def __init__(self, *arguments: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        for connection in list(self._open):
            self.shutdown_request(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none of our business."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""

    def _handle(self) -> None:
        owner = self.server.owner
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        owner.requests.append(f"{self.command} {self.path}")
        for fault in owner.faults:
            if fault.strikes(self.path):
                time.sleep(fault.seconds)
                if fault.disconnect:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                if fault.status:
                    headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
                    return self._reply({"error": "told to fail"}, fault.status, headers)
        if not self.path.startswith("/storage/") and not self._authorized():
            owner.refused.append(self.path)
            return self._reply({"errors": [{"message": "invalid API key"}]}, 401)
        self._route(owner.backend, body)

    do_GET = do_POST = do_PUT = _handle  # noqa: N815 (the names that http.server calls)

    def _authorized(self) -> bool:
        word = base64.b64encode(f"api:{KEY}".encode()).decode()
        return self.headers.get("Authorization") == f"Basic {word}"

    def _route(self, backend: Backend, body: bytes) -> None:
        path = self.path.split("?")[0].lstrip("/")
        if path == "graphql":
            request = json.loads(body)
            try:
                self._reply({"data": backend.answer(request["query"], request.get("variables") or {})})
            except KeyError as error:
                self._reply({"errors": [{"message": str(error)}]}, 400)
        elif path.endswith("/file_stream"):
            _, entity, project, run, _ = path.split("/")
            self._reply(backend.stream((entity, project, run), json.loads(body)))
        elif path.startswith("storage/") and self.command == "PUT":
            backend.upload(path.removeprefix("storage/"), body)
            self._reply({})
        elif path.startswith("storage/"):
            entity, project, run, name = path.removeprefix("storage/").split("/", 3)
            self._send(backend.runs[entity, project, run].files[name], 200, {})
        else:
            self._reply({"error": f"no such path: {path}"}, 404)

    def _reply(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
