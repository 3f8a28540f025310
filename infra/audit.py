"""`make check`: the locked dependencies. They are those of pyproject.toml, every file of them has a hash, and none is
known to be vulnerable.

Vulnerabilities are asked of OSV by `uv audit`. Where that service cannot be reached, one line says so, and the check
passes: findings alone fail it. Accepted ones stand, each with its reason, in `[tool.audit]` of pyproject.toml.
"""

import argparse
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
QUICK = {"UV_HTTP_TIMEOUT": "5", "UV_HTTP_CONNECT_TIMEOUT": "5", "UV_HTTP_RETRIES": "0"}
AT_MOST = 30  # seconds of one call of uv
PREVIEW = "audit-command,json-output"
NO_ANSWER = ("error sending request", "timed out", "status server error", "status client error", "unrecognized sub")


class AuditError(Exception):
    """What is to be audited cannot be read. One line."""


def unlocked(uv: str, root: Path) -> Iterator[str]:
    """Whether uv.lock is that of pyproject.toml."""
    done = _uv(uv, root, "lock", "--check")
    if done.returncode:
        yield f"uv.lock is not in step with pyproject.toml; `uv lock` mends it ({_first(done.stderr)})"


def unhashed(lock: Mapping[str, Any], own: str) -> Iterator[str]:
    """Packages of a lock, but for our own, that are from no registry, or have a file without a sha256."""
    for package in lock["package"]:
        if package["name"] == own:
            continue
        files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
        if "registry" not in package["source"]:
            yield f"{package['name']}: is from {', '.join(package['source'])}, not from a registry"
        elif not files or not all(str(file.get("hash", "")).startswith("sha256:") for file in files):
            yield f"{package['name']} {package['version']}: not every file has a sha256"


def accepted(project: Mapping[str, Any]) -> list[str]:
    """The ids of findings that pass. AuditError for one without a reason."""
    entries = project.get("tool", {}).get("audit", {}).get("accepted", [])
    if not all(isinstance(entry, dict) and entry.get("id") and entry.get("reason") for entry in entries):
        raise AuditError("pyproject.toml: [tool.audit] accepted: every finding has an id and a reason")
    return [str(entry["id"]) for entry in entries]


def vulnerable(uv: str, root: Path, passing: list[str], service: str | None) -> list[str] | None:
    """One line a finding that is not accepted; None where nobody answers. AuditError for another failure."""
    where = ["--service-url", service] if service else []
    ignored = [part for name in passing for part in ("--ignore", name)]
    done = _uv(
        uv, root, "audit", "--frozen", "--preview-features", PREVIEW, "--output-format", "json", *where, *ignored
    )
    try:
        return list(_findings(json.loads(done.stdout)))
    except (ValueError, KeyError, TypeError):
        if any(words in done.stderr.lower() for words in NO_ANSWER):
            return None
        raise AuditError(f"uv audit: {_first(done.stderr)}") from None


def _findings(report: Mapping[str, Any]) -> Iterator[str]:
    for each in report["vulnerabilities"]:
        named, fixed = each["dependency"], ", ".join(each["fix_versions"]) or "none"
        yield f"{named['name']} {named['version']}: {each['id']}: {each['summary']} (fixed in: {fixed})"
    for each in report["adverse_statuses"]:
        yield f"{each['dependency']['name']}: its registry says: {each.get('status', each)}"


def _uv(uv: str, root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [uv, *arguments, "--project", str(root)], env=os.environ | QUICK, capture_output=True, text=True,
            timeout=AT_MOST,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess([], 2, "", "timed out")
    except OSError as error:
        raise AuditError(f"--uv {uv}: {error.strerror}") from None


def _first(said: str) -> str:
    """The error among the lines of uv."""
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith("warning")]
    return next((line for line in lines if line.startswith("error")), lines[-1] if lines else "it says nothing")


def audit(uv: str, root: Path, service: str | None) -> int:
    """The exit code: 1 where something was found, 2 where it cannot be audited."""
    try:
        project, lock = (tomllib.loads((root / name).read_text("utf-8")) for name in ("pyproject.toml", "uv.lock"))
        problems = [*unlocked(uv, root), *unhashed(lock, project["project"]["name"])]
        found = vulnerable(uv, root, accepted(project), service)
    except (AuditError, OSError, KeyError, tomllib.TOMLDecodeError) as error:
        print(f"audit: {error}", file=sys.stderr)
        return 2
    problems += found or []
    for problem in problems:
        print(f"audit: {problem}")
    state = "are not" if problems else "are"
    known = "not looked up, as their service does not answer" if found is None else f"{len(found)} found"
    print(f"audit: {len(lock['package']) - 1} packages {state} as they should be; vulnerabilities: {known}")
    return 1 if problems else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uv", default="uv", help="the program")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of pyproject.toml and uv.lock")
    parser.add_argument("--service", help="URL of a service that speaks OSV's protocol; default: OSV's own")
    given = parser.parse_args()
    sys.exit(audit(given.uv, given.root, given.service))
