"""A headless Chromium that a test drives over its DevTools protocol: opens pages, waits for what they show, clicks."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

QUIET = ("background-networking", "component-update", "sync", "gpu", "quic")
PATIENCE = 600.0  # seconds until what a page should show counts as missing


def chromium() -> str:
    """The program; where there is none the test is skipped, but in CI it fails."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        assert not os.environ.get("CI"), "Chromium is missing, and CI needs it"
        pytest.skip("Chromium is not installed")
    return found


class Tab:
    """One page."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self.numbers = socket, itertools.count(1)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one command; events that come before it are dropped."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (answer := json.loads(self.socket.recv(timeout=PATIENCE))).get("id") != number:
            pass
        assert "error" not in answer, f"{method}: {answer['error']}"
        return dict(answer["result"])

    def value(self, script: str) -> Any:
        """Of a JavaScript expression."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def open(self, url: str) -> None:
        self.ask("Page.navigate", url=url)

    def text(self) -> str:
        """What a reader sees, with single spaces."""
        return " ".join(str(self.value("document.body ? document.body.innerText : ''")).split())

    def wait(self, *wanted: str) -> str:
        """The page's text, once all of `wanted` is in it."""
        end = time.monotonic() + PATIENCE
        while missing := [text for text in wanted if text not in self.text()]:
            assert time.monotonic() < end, f"the page lacks {missing}:\n{self.text()}"
            time.sleep(0.1)
        return self.text()

    def click(self, text: str) -> None:
        """On the first of the links, buttons, tabs and cards of Prefect's page whose text is this."""
        among = "a, button, .p-tab, .artifact-card__title"
        which = f"[...document.querySelectorAll({among!r})].find(one => one.innerText.trim() === {json.dumps(text)})"
        end = time.monotonic() + PATIENCE
        while not self.value(f"(one => one && (one.click(), true))({which})"):
            assert time.monotonic() < end, f"nothing to click says {text!r}:\n{self.text()}"
            time.sleep(0.1)

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG file."""
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browsing(folder: Path) -> Iterator[Tab]:
    """A browser with an empty profile in `folder`; it ends with the block."""
    profile = folder / "profile"
    flags = ["--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{what}" for what in QUIET)]
    flags += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "--window-size=1300,1500"]
    process = subprocess.Popen(
        [chromium(), *flags, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with connect(_page_of(profile), max_size=None, proxy=None) as socket:
            yield Tab(socket)
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE)


def _page_of(profile: Path) -> str:
    """The address of the first page, once the browser has written where it listens."""
    told, end = profile / "DevToolsActivePort", time.monotonic() + PATIENCE
    while not (told.exists() and told.read_text().count("\n")):
        assert time.monotonic() < end, "Chromium did not start"
        time.sleep(0.05)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{told.read_text().splitlines()[0]}/json/list", timeout=PATIENCE) as answer:
        pages = [page for page in json.load(answer) if page["type"] == "page"]
    return str(pages[0]["webSocketDebuggerUrl"])
