"""`python infra/screenshot.py URL PICTURE.png --expect TEXT`: a page of Prefect's UI, as headless Chromium shows it."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SECONDS = 30  # of the page's clock, which stands still while it waits for answers
PATIENCE = 240  # seconds of ours
QUIET = ("background-networking", "component-update", "sync", "gpu", "quic")


def chromium() -> str | None:
    """The browser's path, where one is installed."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def browse(url: str, picture: Path, height: int) -> str:
    """Take the picture, once the page has had SECONDS of its own time; its document as it is then."""
    browser = chromium()
    assert browser, "Chromium is missing"
    with tempfile.TemporaryDirectory() as profile:
        start = [
            browser,
            "--headless",
            "--no-first-run",
            "--run-all-compositor-stages-before-draw",
            *(f"--disable-{what}" for what in QUIET),
        ]
        if not os.geteuid():
            start.append("--no-sandbox")  # Chromium's sandbox is not for root
        where = [
            f"--user-data-dir={profile}",
            f"--virtual-time-budget={1000 * SECONDS}",
            f"--window-size=1400,{height}",
        ]
        command = [*start, *where, "--dump-dom", f"--screenshot={picture}", url]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout


def main() -> str | None:
    """None, or what is not on the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--expect", action="append", default=[], help="text that the page has to show")
    parser.add_argument("--height", type=int, default=1000, help="pixels")
    given = parser.parse_args()
    if chromium() is None:
        return "Chromium is missing (Debian: apt-get install chromium)"
    given.picture.parent.mkdir(parents=True, exist_ok=True)
    shown = browse(given.url, given.picture.resolve(), given.height)
    missing = [text for text in given.expect if text not in shown]
    return f"{given.url} does not show {missing}" if missing else None


if __name__ == "__main__":
    sys.exit(main())
