"""A dataset repository fetched by the Hub's own client from a server on loopback, and read as any artifact."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import sample

from dd_tasks import artifact
from dd_tasks.validate import validate

COMMITS = {"main": "a" * 40, "v1": "b" * 40}
CODE = """
import sys
from dd_tasks import artifact, hub, validate, verify
from dd_tasks.errors import InputError
for repository in sys.argv[2:]:
    try:
        folder = hub.fetch_dataset(repository, sys.argv[1])
        manifest = artifact.read_manifest(folder)
        outcomes = [check.outcome for check in verify.opened(folder, manifest)]
        print(folder.name, manifest.name, validate.validate(folder), outcomes)
    except InputError as error:
        print(error)
"""


class Hub(BaseHTTPRequestHandler):
    """One dataset, `org/digits`, of which main and v1 are two folders."""

    folders: dict[str, Path]  # by commit
    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        commit, body = self.found(path)
        self.send_response(200 if commit else 404)
        headers = {"Content-Length": len(body), "X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(body).hexdigest()}"'}
        no_revision = path.startswith("/api/datasets/org/digits/")
        missing = {"Content-Length": 0, "X-Error-Code": "RevisionNotFound" if no_revision else "RepoNotFound"}
        for name, value in (headers if commit else missing).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def found(self, path: str) -> tuple[str, bytes]:
        """The commit that a path leads to, and what lies there."""
        of_api, _, revision = path.partition("/api/datasets/org/digits/revision/")
        if not of_api and revision in COMMITS:
            return COMMITS[revision], json.dumps({"id": "org/digits", "sha": COMMITS[revision]}).encode()
        for commit, folder in self.folders.items():
            if path == f"/api/datasets/org/digits/tree/{commit}":
                return commit, json.dumps([self.entry(file, folder) for file in files_of(folder)]).encode()
            if path.startswith(start := f"/datasets/org/digits/resolve/{commit}/"):
                return commit, (folder / path.removeprefix(start)).read_bytes()
        return "", b""

    def entry(self, file: Path, folder: Path) -> dict[str, object]:
        oid = hashlib.sha1(file.read_bytes()).hexdigest()
        name = file.relative_to(folder).as_posix()
        return {"type": "file", "path": name, "size": file.stat().st_size, "oid": oid}

    def log_message(self, *_: object) -> None:
        pass


def files_of(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if file.is_file()]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """What came of each repository, in one process: the client reads its settings when it is imported."""
    root = tmp_path_factory.mktemp("hub")
    Hub.asked, Hub.folders = [], {COMMITS[name]: root / name for name in COMMITS}
    for name in COMMITS:
        artifact.write(
            root / name,
            sample.tiny_canvas(),
            sample.tiny_labels(),
            sample.draft(name=name),
            {},
            nearest=sample.tiny_nearest(),
        )
        (root / name / ".gitattributes").write_text("*.parquet filter=lfs\n")
        assert validate(root / name) == []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "", "NO_PROXY": "*"}
    repositories = ["org/digits", "org/digits@v1", "org/digits", "org/nothing", "org/digits@no", "a/b/c"]
    ran = subprocess.run(
        [sys.executable, "-c", CODE, f"http://127.0.0.1:{server.server_port}", *repositories],
        cwd=Path(__file__).parents[1], env=os.environ | settings | {"HF_HOME": str(root / ".cache" / "home")},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    server.shutdown()
    server.server_close()
    assert ran.returncode == 0, ran.stderr
    yield ran.stdout.splitlines()


@pytest.mark.parametrize(("row", "name"), [(0, "main"), (1, "v1"), (2, "main")])
def test_a_dataset_is_fetched_by_name_and_revision_and_is_whole(said, row, name):
    assert said[row] == f"{COMMITS[name]} {name} [] ['passed', 'passed']"


def test_files_are_downloaded_once(said):
    files = [path for path in Hub.asked if "/resolve/" in path]
    contents = {file.read_bytes() for folder in Hub.folders.values() for file in files_of(folder)}
    assert len(files) == len(set(files)) == len(contents)  # what both commits have is downloaded for the first alone


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (3, "no dataset 'org/nothing' on the Hub: Repository Not Found for url: http://127.0.0.1:"),
        (4, "no dataset 'org/digits@no' on the Hub: Revision Not Found for url: http://127.0.0.1:"),
        (5, "no dataset 'a/b/c' on the Hub: Repo id must be in the form"),
    ],
)
def test_what_is_not_there_is_one_line(said, row, line):
    assert len(said) == 6 and said[row].startswith(line)
