"""A real Chromium, with real keys: what a page does when somebody types.

Commands of the Chrome DevTools Protocol go over a pair of pipes (`--remote-debugging-pipe`: JSON, each ended by a zero
byte, on the descriptors 3 and 4). Playwright does the same, for 165 MB in every installation from the lock.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import F_DUPFD_CLOEXEC, fcntl
from itertools import count
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
"""Those that have no character → their Windows key codes, which Chromium acts by."""
SHIFT = 8


class Browser:
    """One page. Every method returns when the browser has done what it was told."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = os.fdopen(reading, "rb"), os.fdopen(writing, "wb")
        self._numbers = count(1)
        self._session: str | None = None
        target = self.tell("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.tell("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def tell(self, method: str, **parameters: Any) -> Any:
        """A command's result. Raises RuntimeError for one that is refused, and where the browser is gone."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        self._writing.write(json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode())
        self._writing.write(b"\0")
        self._writing.flush()
        while (answer := self._read()).get("id") != number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _read(self) -> Any:
        found = bytearray()
        while (byte := self._reading.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("the browser has ended")
            found += byte
        return json.loads(found)

    def open(self, page: Path, width: int, height: int) -> None:
        self.tell("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.tell("Page.navigate", url=page.as_uri())
        while self.value("document.readyState") != "complete":
            pass

    def value(self, expression: str) -> Any:
        """Of a JavaScript expression. Raises RuntimeError where it throws."""
        answer = self.tell("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def press(self, key: str, *, shift: bool = False) -> None:
        text = {"Enter": "\r", " ": " "}.get(key, "" if key in KEYS else key)
        code = {"key": key, "windowsVirtualKeyCode": KEYS.get(key, 0), "modifiers": SHIFT * shift}
        self.tell("Input.dispatchKeyEvent", type="keyDown", text=text, **code)
        self.tell("Input.dispatchKeyEvent", type="keyUp", **code)

    def type(self, text: str) -> None:
        for character in text:
            self.press(character)


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """profile: a folder for what Chromium writes."""
    commands, writing = os.pipe()
    reading, answers = os.pipe()

    def as_three_and_four() -> None:
        high = [fcntl(end, F_DUPFD_CLOEXEC, 10) for end in (commands, answers)]  # as either may be 3 or 4 itself
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    process = subprocess.Popen(
        [str(CHROMIUM), *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}"],
        preexec_fn=as_three_and_four,
        close_fds=False,
        stderr=subprocess.DEVNULL,
    )
    os.close(commands)
    os.close(answers)
    try:
        yield Browser(reading, writing)
    finally:
        process.terminate()
        process.wait()
