"""Commands of ours in a process that lacks something: room, leave to write, or file handles.

A folder has two places: `small` is what may be full or read-only, `free` is not. Mounts are in a namespace of that
process, so what it leaves is looked at there.
"""

import ctypes
import hashlib
import json
import os
import resource
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.kills import half_written, whole

NEW_MOUNTS = 0x20000  # CLONE_NEWNS
PLACES = ("small", "free")


def full(small: Path, room: str) -> None:
    """A disk of so many bytes, with what the place has."""
    held = {path.relative_to(small): path.read_bytes() for path in small.rglob("*") if path.is_file()}
    _mount(["-t", "tmpfs", "-o", f"size={room}", "tmpfs", small])
    for path, content in held.items():
        (small / path).parent.mkdir(parents=True, exist_ok=True)
        (small / path).write_bytes(content)


def read_only(small: Path, _: str) -> None:
    _mount(["--bind", small, small], ["-o", "remount,bind,ro", small])


def file_size(_: Path, most: str) -> None:
    """No file can be larger than so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(most), resource.RLIM_INFINITY))


def handles(_: Path, more: str) -> None:
    """So many files can be opened beside those that are open."""
    most = len(os.listdir("/proc/self/fd")) + int(more)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


LIMITS: dict[str, Callable[[Path, str], None]] = {
    "full": full, "read-only": read_only, "file size": file_size, "handles": handles, "none": lambda *_: None,
}  # fmt: skip


def can_mount() -> bool:
    """Whether this machine lets us mount, in a namespace of our own."""
    if os.geteuid() != 0:
        return False
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def _mount(*commands: list[Any]) -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare")
    for command in (["--make-rprivate", "/"], *commands):
        subprocess.run(["mount", *map(str, command)], check=True)


def limited(arguments: list[str], folder: str, limit: tuple[str, str], answer: str) -> None:
    """`retort ARGUMENTS` in a folder. `answer` gets its exit code and, under a limit, what it left as JSON, and
    `answer.said` its standard error."""
    os.chdir(folder)
    said, nothing = os.open(f"{answer}.said", os.O_WRONLY | os.O_CREAT), os.open(os.devnull, os.O_WRONLY)
    LIMITS[limit[0]](Path(folder, "small"), limit[1])
    before = [(each, resource.getrlimit(each)[1]) for each in (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)]
    os.dup2(nothing, 1)
    os.dup2(said, 2)
    code = _code(arguments)
    for each, most in before:
        resource.setrlimit(each, (most, most))
    found = {} if limit[0] == "none" else left(Path(folder))
    Path(answer).write_text(json.dumps({"code": code, **found}), encoding="utf-8")


def _code(arguments: list[str]) -> Any:
    sys.argv = ["retort", *arguments]
    from flows.cli import main

    try:
        main()
    except SystemExit as end:
        return end.code
    except BaseException:
        traceback.print_exc()
        return 1


def left(folder: Path) -> dict[str, Any]:
    """The checksums of all files but those of stores; what is half-written or altered, and how many results stores
    have."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "store" not in path.relative_to(folder).parts]
    stores = [whole(folder / place / "store") for place in PLACES]
    return {
        "files": {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths},
        "half": sorted(name for place in PLACES for name in half_written(folder / place)),
        "wrong": [line for _, wrong in stores for line in wrong],
        "results": sum(len(results) for results, _ in stores),
    }
