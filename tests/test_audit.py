"""The audit of dependencies by the real uv, with a service of vulnerabilities on loopback."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

ROOT = Path(__file__).resolve().parents[1]
KNOWN = {"id": "PYSEC-2026-1", "aliases": ["CVE-2026-1"], "summary": "a picture that harms"}
DATED = {"modified": "2026-01-01T00:00:00Z", "published": "2026-01-01T00:00:00Z", "schema_version": "1.6.0"}
RANGE = {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.0"}]}
AFFECTED = [{"package": {"name": "pillow", "ecosystem": "PyPI"}, "ranges": [RANGE]}]


class Osv(BaseHTTPRequestHandler):
    """Knows of one vulnerability, of pillow."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        found = [{"id": KNOWN["id"], "modified": DATED["modified"]}]
        self._say({"results": [{"vulns": found} if each["package"]["name"] == "pillow" else {} for each in asked]})

    def do_GET(self) -> None:
        self._say({**KNOWN, **DATED, "details": "", "affected": AFFECTED})

    def _say(self, answer: object) -> None:
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Osv)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("pyproject.toml", "uv.lock", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def audited(project: Path, service: str) -> tuple[int, list[str]]:
    """The exit code, and the lines that are said."""
    own = ROOT / ".uv" / "bin" / "uv"
    uv = str(own) if own.exists() else shutil.which("uv")
    if uv is None:
        assert not os.environ.get("CI"), "uv is missing, and CI needs it"
        pytest.skip("uv is not installed")
    command = [sys.executable, str(ROOT / "infra" / "audit.py"), "--uv", uv, "--root", str(project)]
    done = subprocess.run([*command, "--service", service], capture_output=True, text=True, timeout=600)
    return done.returncode, (done.stdout + done.stderr).splitlines()


def changed(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_a_known_vulnerability_fails_unless_it_is_accepted_with_a_reason(project: Path, service: str) -> None:
    code, lines = audited(project, service)
    assert code == 1 and len(lines) == 2
    assert re.fullmatch(r"audit: pillow [\d.]+: PYSEC-2026-1: a picture that harms \(fixed in: 99.0\)", lines[0]), lines

    changed(project / "pyproject.toml", "accepted = []", 'accepted = [{ id = "CVE-2026-1" }]')
    code, lines = audited(project, service)
    assert code == 2 and lines == ["audit: pyproject.toml: [tool.audit] accepted: every finding has an id and a reason"]

    changed(project / "pyproject.toml", '"CVE-2026-1" }', '"CVE-2026-1", reason = "no such picture is opened" }')
    code, lines = audited(project, service)
    assert code == 0 and len(lines) == 1 and lines[0].endswith("are as they should be; vulnerabilities: 0 found")


def test_a_service_that_does_not_answer_is_said_and_fails_nothing(project: Path) -> None:
    code, lines = audited(project, "http://127.0.0.1:9")
    assert code == 0 and len(lines) == 1
    assert lines[0].endswith("; vulnerabilities: not looked up, as their service does not answer")


def test_a_lock_that_is_behind_and_a_file_without_a_hash_fail(project: Path) -> None:
    changed(project / "pyproject.toml", '"rich>=14"', '"rich>=14,<14"')
    lock = (project / "uv.lock").read_text(encoding="utf-8")
    at = lock.index('name = "absl-py"')
    rest = re.sub(r', hash = "sha256:[0-9a-f]{64}"', "", lock[at:], count=1)
    (project / "uv.lock").write_text(lock[:at] + rest, encoding="utf-8")
    code, lines = audited(project, "http://127.0.0.1:9")
    assert code == 1 and len(lines) == 3
    assert lines[0].startswith("audit: uv.lock is not in step with pyproject.toml; `uv lock` mends it (")
    assert re.fullmatch(r"audit: absl-py [\d.]+: not every file has a sha256", lines[1]), lines
