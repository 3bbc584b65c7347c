"""A real Chromium without a window: what a page looks like, and what it asks for."""

from __future__ import annotations

import base64
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import orjson
from websockets.sync.client import ClientConnection, connect

BINARY = shutil.which("chromium")
_DEADLINE = 300.0


class Page:
    """The one page of a browser, by its DevTools protocol.

    `requests` gathers what it asked for, `complaints` what it said.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._last = 0
        self._loaded = False
        self.requests: list[str] = []
        self.complaints: list[str] = []
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """Do something, and return its result."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        self._socket.send(orjson.dumps(message).decode())
        while True:
            message = orjson.loads(self._socket.recv(_DEADLINE))
            if message.get("id") == self._last:
                assert "error" not in message, message["error"]
                return message["result"]
            self._note(message)

    def open(self, file: Path, width: int, *, dark: bool = False) -> None:
        """Load a file at this width, and wait until it is there."""
        height, scheme = 900, "dark" if dark else "light"
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self._loaded = False
        self.call("Page.navigate", url=file.resolve().as_uri())
        while not self._loaded:
            self._note(orjson.loads(self._socket.recv(_DEADLINE)))

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"]["value"]

    def screenshot(self, file: Path) -> None:
        """The whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
            self.complaints.append(str(params))


@contextmanager
def browser() -> Iterator[Page]:
    """A page of a new browser, which ends with the block."""
    assert BINARY is not None
    with TemporaryDirectory(prefix="agentprm-chromium-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                BINARY,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--remote-debugging-port=0",
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with connect(_page_url(Path(profile)), max_size=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            process.wait(_DEADLINE)


def _page_url(profile: Path) -> str:
    """Where the page listens, once the browser is up."""
    deadline = time.monotonic() + _DEADLINE
    note = profile / "DevToolsActivePort"
    while not (note.exists() and note.read_text()):
        assert time.monotonic() < deadline, "Chromium does not start"
        time.sleep(0.1)
    port = note.read_text().split()[0]
    while True:
        targets = httpx.get(f"http://127.0.0.1:{port}/json/list").json()
        pages = [target for target in targets if target["type"] == "page"]
        if pages:
            url: str = pages[0]["webSocketDebuggerUrl"]
            return url
        assert time.monotonic() < deadline, "Chromium opens no page"
        time.sleep(0.1)
