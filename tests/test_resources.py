"""What a full or read-only disk, a lack of file handles, a slow disk and others who write in the same place do to a
command: one line that says where and why, exit code 2, and nothing half-written."""

import json
import os
import shutil
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from limited import can_mount, left, limited

from benchmarks.kills import Bench, checksums
from dd_tasks.shards import read_index
from dd_tasks.store import Ref, Store
from dd_tasks.validate import validate

SPEC, SHARDS, TEST, FOLDER = "{bench}/seed-{seed}.yaml", "{bench}/train/*.tar", "{bench}/test/*.tar", "{folder}"
HERE = ("--device", "cpu", "--threads", "1")
TINY = ("--committee", "tiny", "--student", "convnet3_w32", "--student-epochs", "1", "--seeds", "1", "--no-flip")


def run(out: str, store: str, seed: int = 0) -> list[str]:
    spec = SPEC.replace("{seed}", str(seed))
    return ["run", spec, "--out", f"{out}/dataset", "--store", f"{store}/store", *HERE]


PACK = ["shards", "pack", "digits", "--out", "small/packed"]
PUBLISH = ["publish", "free/dataset", f"file://{FOLDER}/small/published"]
REPORT = ["report", "free/dataset", "--out", "small/report.html"]
VERIFY = ["verify", "free/dataset", "--test", TEST, "--device", "cpu"]
COMPARE = [
    "compare",
    "rded",
    "--shards",
    SHARDS,
    "--ipc",
    "1",
    "--out",
    "small/c",
    "--store",
    "free/store",
    *TINY,
    *HERE,
]
NO_ROOM, NO_WRITE, NO_HANDLE = "No space left on device", "Read-only file system", "Too many open files"
ELSEWHERE = f"{FOLDER}/small; choose another place"
Limit = tuple[str, str]
CASES: list[tuple[list[str], Limit, str]] = [
    (run("free", "small"), ("full", "4k"), f"small/store: {NO_ROOM}"),
    (run("free", "small"), ("full", "100k"), f"small/store: {NO_ROOM}"),
    (run("free", "small"), ("read-only", ""), f"store small/store cannot be written: {NO_WRITE}"),
    (run("small", "free"), ("full", "16k"), f"{FOLDER}/small/dataset: {NO_ROOM}"),
    (run("small", "free"), ("full", "150k"), f"{FOLDER}/small/dataset: {NO_ROOM}"),
    (run("small", "free"), ("read-only", ""), f"--out small/dataset: cannot write into {ELSEWHERE}"),
    (run("free", "small"), ("file size", "100000"), "small/store: File too large"),
    (run("small", "free"), ("file size", "8000"), f"{FOLDER}/small/dataset: File too large"),
    *((run("small", "free"), ("handles", str(more)), NO_HANDLE) for more in (1, 6, 7, 8)),
    (PACK, ("full", "100k"), f"{FOLDER}/small/packed: {NO_ROOM}"),
    (PACK, ("read-only", ""), f"'small/packed': cannot write into {FOLDER}/small; name another folder"),
    (PACK, ("file size", "10000"), f"{FOLDER}/small/packed: File too large"),
    *((PACK, ("handles", str(more)), NO_HANDLE) for more in (1, 6, 7)),
    (PUBLISH, ("full", "100k"), f"{FOLDER}/small/published: {NO_ROOM}"),
    (PUBLISH, ("read-only", ""), f"target {FOLDER}/small/published: cannot write into {ELSEWHERE}"),
    (REPORT, ("full", "16k"), f"{FOLDER}/small/report.html: {NO_ROOM}"),
    (REPORT, ("read-only", ""), f"--out small/report.html: cannot write into {ELSEWHERE}"),
    ([*VERIFY, "--store", "small/store"], ("read-only", ""), f"store small/store cannot be written: {NO_WRITE}"),
    (
        [*VERIFY, "--store", "free/store", "--junit", "small/j"],
        ("read-only", ""),
        f"--junit small/j: cannot write into {ELSEWHERE}",
    ),
    (COMPARE, ("full", "100k"), f"{FOLDER}/small/c/rded-ipc1: {NO_ROOM}"),
]  # fmt: skip


def places(folder: Path, bench: Bench) -> None:
    """A store that has nearly all results, and an artifact that others made."""
    (folder / "small").mkdir()
    shutil.copytree(bench.folder / "undisturbed" / "store", folder / "free" / "store")
    shutil.copytree(bench.earlier, folder / "free" / "dataset")


def begin(bench: Bench, folder: Path, arguments: list[str], limit: Limit = ("none", "")) -> tuple[BaseProcess, Path]:
    """A command in a folder, and where its answer comes."""
    answer = folder.with_name(f"{folder.name}-{time.monotonic_ns()}")
    filled = [each.replace("{bench}", str(bench.folder)).replace(FOLDER, str(folder)) for each in arguments]
    process = bench.context.Process(target=limited, args=(filled, str(folder), limit, str(answer)))
    process.start()
    return process, answer


def ended(process: BaseProcess, answer: Path) -> tuple[dict[str, Any], str]:
    """What a command left, and its last line."""
    process.join(1800)
    process.kill()
    said = Path(f"{answer}.said").read_text()
    assert process.exitcode == 0 and "Traceback" not in said, said
    return json.loads(answer.read_text()), said.splitlines()[-1] if said else ""


def needing(case: tuple[list[str], Limit, str]) -> Any:
    """A case, left out where it needs to mount and may not."""
    (command, *_), (kind, most), line = case
    mounted = kind in ("full", "read-only")
    skip = pytest.mark.skipif(mounted and not can_mount(), reason="cannot mount")
    return pytest.param(*case, id=f"{command}, {kind} {most}: {line.split(':')[0]}", marks=skip)


@pytest.mark.parametrize(("arguments", "limit", "line"), list(map(needing, CASES)))
def test_what_is_lacking_is_told_in_one_line_and_nothing_is_half_written(
    bench: Bench, tmp_path: Path, arguments: list[str], limit: Limit, line: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    places(folder, bench)
    before = left(folder)
    found, said = ended(*begin(bench, folder, arguments, limit))
    assert (found["code"], said[:8]) == (2, "retort: ") and said.endswith(line.replace(FOLDER, str(folder))), said
    assert (found["files"], found["half"], found["wrong"]) == (before["files"], [], [])
    assert found["results"] >= before["results"]


@pytest.mark.skipif(not can_mount(), reason="cannot mount")
@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_an_artifact_that_cannot_be_replaced_stays(bench: Bench, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(bench.folder / "undisturbed" / "store", folder / "free" / "store")
    shutil.copytree(bench.earlier, folder / "small" / "dataset")
    before, sizes = left(folder), [path.stat().st_size for path in bench.earlier.rglob("*")]
    room = sum(4 * (1 + size // 4096) for size in sizes) + 64  # KiB: pages of what is there, and few more
    found, said = ended(*begin(bench, folder, run("small", "free"), (kind, f"{room}k")))
    assert (found["code"], found["files"], found["half"]) == (2, before["files"], []), said


def test_a_run_goes_on_once_there_is_room(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    places(folder, bench)
    found, _ = ended(*begin(bench, folder, run("small", "small"), ("file size", "100000")))
    assert found["code"] == 2 and found["half"] == []
    made = {path.name for path in (folder / "small" / "store").rglob("*.json")}
    found, _ = ended(*begin(bench, folder, run("small", "small")))
    assert found["code"] == 0 and checksums(folder / "small" / "dataset") == bench.life.files
    assert made and made <= {path.name for path in (folder / "small" / "store").rglob("*.json")}


def test_runs_that_write_one_folder_at_a_time_leave_a_whole_artifact(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    places(folder, bench)
    shutil.copytree(bench.folder / "earlier" / "store", folder / "free" / "store", dirs_exist_ok=True)
    both = [begin(bench, folder, run("small", "free", seed)) for seed in (0, 1, 0, 1)]
    assert [ended(*each)[0]["code"] for each in both] == [0, 0, 0, 0]
    out = folder / "small" / "dataset"
    assert validate(out) == [] and checksums(out) in (bench.life.files, bench.others)
    assert os.listdir(folder / "small") == ["dataset"]


def test_of_packers_of_one_folder_one_is_told_that_it_is_not_empty(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    places(folder, bench)
    found = [ended(*each) for each in [begin(bench, folder, PACK) for _ in range(2)]]
    assert sorted(answer["code"] for answer, _ in found) == [0, 2]
    told = next(line for answer, line in found if answer["code"])
    assert told.startswith("retort: ") and "not empty" in told and "small/packed" in told
    index = read_index([str(folder / "small" / "packed" / "train-0000.tar")])
    assert index and index.samples == 1442 and os.listdir(folder / "small") == ["packed"]


class Slow(LocalFileSystem):
    """A disk that writes a piece at a time, and after each somebody looks."""

    protocol = "slow"

    def look(self) -> None:
        """As a test says."""

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return LocalFileSystem._strip_protocol(path.removeprefix("slow://") if isinstance(path, str) else path)

    def pipe_file(self, path: str, value: bytes, **_: Any) -> None:
        with open(path, "wb") as file:
            for start in range(0, len(value), 1 + len(value) // 8):
                file.write(value[start : start + 1 + len(value) // 8])
                file.flush()
                self.look()


def test_on_a_slow_disk_a_result_is_whole_once_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("slow", Slow, clobber=True)
    store, ref = Store(f"slow://{tmp_path}/store"), Ref("panel", "a" * 64)
    pixels = torch.arange(40_000, dtype=torch.float32)
    other, looks = Store(f"slow://{tmp_path}/store", checked=False), []
    monkeypatch.setattr(Slow, "look", lambda _: looks.append(other.find(ref)))
    store.put(ref, {"steps": 3}, pixels={"pixels": pixels})
    assert len(looks) > 10 and looks == [None] * len(looks) and other.find(ref) == {"steps": 3}
    assert torch.equal(store.get(ref, "pixels").tensors["pixels"]["pixels"], pixels)
    assert not [path for path in (tmp_path / "store").rglob("*") if path.name.endswith("partial")]
