"""The Hub's own client against a server on loopback."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMITS = {"main": "a" * 40, "first": "b" * 40}
CODE = """
import sys
from dd_tasks.errors import InputError
from dd_tasks.hub import fetch_weights
for repository in sys.argv[1:]:
    try:
        print(fetch_weights(repository).read_bytes())
    except InputError as error:
        print(error)
"""


class Hub(BaseHTTPRequestHandler):
    """One repository, `org/net.v1`, at the revisions main and first."""

    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer(b"")

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        self.answer(self.content())

    def content(self) -> bytes:
        known = {f"/org/net.v1/resolve/{revision}/model.safetensors": revision for revision in COMMITS}
        return f"weights of {known[self.path]}".encode() if self.path in known else b""

    def answer(self, body: bytes) -> None:
        content = self.content()
        self.send_response(200 if content else 404)
        self.send_header("Content-Length", str(len(content)))
        commit = COMMITS.get(self.path.split("/")[-2], "")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{commit}"'} if content else {"X-Error-Code": "RepoNotFound"}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """What came of each repository, in one process: the client reads its endpoint when it is imported."""
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    home = {"HF_HOME": str(tmp_path_factory.mktemp("hub")), "HF_TOKEN": "", "NO_PROXY": "*"}
    repositories = ["org/net.v1", "org/net.v1", "org/net.v1@first", "org/nothing", "org/net.v1@no", "a/b/c"]
    ran = subprocess.run(
        [sys.executable, "-c", CODE, *repositories], cwd=Path(__file__).parents[1], env=os.environ | endpoint | home,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    server.shutdown()
    server.server_close()
    assert ran.returncode == 0, ran.stderr
    yield ran.stdout.splitlines()


def test_weights_are_fetched_by_name_and_revision(said):
    assert said[0] == said[1] == "b'weights of main'"
    assert said[2] == "b'weights of first'"


def test_weights_are_downloaded_once(said):
    assert Hub.asked.count("/org/net.v1/resolve/main/model.safetensors") == 1


@pytest.mark.parametrize(
    ("row", "start"),
    [
        (3, "no model.safetensors from 'org/nothing': Repository Not Found for url: http://127.0.0.1:"),
        (4, "no model.safetensors from 'org/net.v1@no': Repository Not Found for url: http://127.0.0.1:"),
        (5, "no model.safetensors from 'a/b/c': Repo id must be in the form"),
    ],
)
def test_what_is_not_there_is_one_line(said, row, start):
    assert len(said) == 6 and said[row].startswith(start)


def test_offline_is_one_line(monkeypatch, tmp_path):
    from huggingface_hub import constants

    from dd_tasks.errors import InputError
    from dd_tasks.hub import fetch_weights

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"^no model.safetensors from 'org/never-fetched': [^\n]+$"):
        fetch_weights("org/never-fetched")
