"""Runs that are killed at random moments, and started again until they complete: `python -m benchmarks.kills`.

`retort run` of a small flow on scikit-learn's digits, as a process that SIGKILL ends one to four times. Half of the
moments fall evenly over the seconds of a run that nothing disturbed, half evenly over its kinds of stages, and three in
ten then wait until a file or folder is being written; every other run has an earlier artifact where its own will stand.
After each kill every result in the store must be whole, and the artifact absent, the earlier one or whole; after the
last start its bytes must be those of the undisturbed run, and nothing that the store had may be made again. Processes
are forked from one that has the libraries imported: a kill while they are imported would meet no file. Written to
benchmarks/results/kills.json.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import yaml

from benchmarks.calls import RESULTS, keep
from dd_tasks.garbage import LEFTOVER
from dd_tasks.store import Ref, Store
from dd_tasks.validate import validate
from flows.environment import prepare_environment

IMPORTED = ["datasets", "flows.cli", "flows.distill", "flows.launch", "sklearn.cluster", "torchvision.io", "yaml"]
DONE = re.compile(r"(made in [\d.]+ s|for later passes|found in the store) \((\w+/[0-9a-f]{12})\)")
SAME = re.compile(r".*\.parquet|assets/(preview\.png|story\.safetensors)")
FOUND, PANEL = "found", "panel/"
WRITING = 0.3  # of the kills wait for a write
LAST = "artifact"  # what follows on the last result
LONGEST = 120  # seconds of one start, many times what it takes
SPEC: dict[str, Any] = {
    "preset": "e2d", "ipc": 2, "committee": "tiny", "students": ["convnet3_w32"], "seeds": 1, "student_epochs": 3,
    "student_batch": 10, "full_epochs": 1, "panel": 4, "flip": False,
    "set": {"observers.epochs": "1", "schedule.phases.0.steps": "6", "schedule.phases.1.steps": "4",
            "labeller.epochs": "3"},
}  # fmt: skip


@dataclass(frozen=True)
class Moment:
    """So many seconds after a result was there (after the start, where `after` is None); then, perhaps, once a file or
    folder is being written."""

    after: str | None
    seconds: float
    writing: bool


@dataclass(frozen=True)
class Life:
    """A run that nothing disturbed: its results in their order, the seconds until each and until its end, and the
    checksums of what must come out the same."""

    results: tuple[str, ...]
    spans: tuple[float, ...]
    files: dict[str, str]

    @property
    def kinds(self) -> list[str]:
        """Of the stage in each span."""
        return [*(name.partition("/")[0] for name in self.results), LAST]

    def moment(self, rng: random.Random) -> Moment:
        """At random: evenly over the seconds, or over the kinds of stages."""
        if rng.random() < 0.5:
            return self._moment(rng.choices(range(len(self.spans)), self.spans)[0], rng)
        return self.moment_in(rng.choice(sorted(set(self.kinds))), rng)

    def moment_in(self, kind: str, rng: random.Random) -> Moment:
        """At random in a kind of stage."""
        return self._moment(rng.choice([place for place, each in enumerate(self.kinds) if each == kind]), rng)

    def _moment(self, place: int, rng: random.Random) -> Moment:
        after = self.results[place - 1] if place else None
        return Moment(after, rng.random() * self.spans[place], rng.random() < WRITING)

    def stage(self, log: str) -> str:
        """The kind of stage that a run was in, of which this was the log."""
        known = {name: place for place, name in enumerate(self.results)}
        return self.kinds[1 + max((known[name] for _, name in DONE.findall(log)), default=-1)]


@dataclass
class Start:
    """One start of a run: the stage in which it was killed, none where it completed; whether a file or folder was
    being written then, which artifact stood there and how many results the store had; what the start found there,
    what it made although it was there, its seconds, and what was wrong after it."""

    stage: str | None
    writing: bool
    artifact: str
    results: int
    found: list[str]
    again: list[str]
    seconds: float
    wrong: list[str]


Trial = list[Start]  # until the run completed


class Bench:
    """A folder with shards and specifications, and a process to fork runs from."""

    def __init__(self, folder: Path) -> None:
        from dd_tasks.packing import digits_samples, pack

        prepare_environment()
        os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self.folder, self.context = folder, multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(IMPORTED)
        for split, most in (("train", 400), ("test", 100)):
            classes, samples = digits_samples(split)
            pack(islice(samples, most), classes, folder / split, prefix=split)
        places = {"shards": [f"{folder}/train/*.tar"], "test": [f"{folder}/test/*.tar"]}
        for seed in (0, 1):
            (folder / f"seed-{seed}.yaml").write_text(yaml.safe_dump({**SPEC, **places, "seed": seed}))
        self.begin(folder / "earlier", seed=1).join()
        self.earlier = folder / "earlier" / "dataset"
        self.others = checksums(self.earlier)
        self.life = self._lived(folder / "undisturbed")

    def begin(self, folder: Path, seed: int = 0) -> BaseProcess:
        """`retort run` in a folder, as a process; its lines go to `log` there."""
        folder.mkdir(exist_ok=True)
        options = ["--out", folder / "dataset", "--store", folder / "store", "--device", "cpu", "--threads", "1"]
        arguments = ["run", self.folder / f"seed-{seed}.yaml", *options]
        (folder / "log").write_bytes(b"")
        started = self.context.Process(target=retort, args=([str(each) for each in arguments], str(folder / "log")))
        started.start()
        return started

    def _lived(self, folder: Path) -> Life:
        start = time.perf_counter()
        run, seen, times = self.begin(folder), list[str](), list[float]()
        while run.is_alive():
            for _, name in DONE.findall((folder / "log").read_text())[len(seen) :]:
                seen.append(name)
                times.append(time.perf_counter())
            time.sleep(0.001)
        times = [start, *times, time.perf_counter()]
        if run.exitcode != 0:
            raise RuntimeError((folder / "log").read_text())
        spans = tuple(after - before for before, after in pairwise(times))
        return Life(tuple(seen), spans, checksums(folder / "dataset"))

    def trial(self, seed: int, kills: Sequence[str | None]) -> Trial:
        """A run in a folder of its own, killed once for each of these kinds of stages, or in any, at moments that the
        seed draws, and then left to complete."""
        rng, folder = random.Random(seed), self.folder / f"trial-{seed}"
        folder.mkdir()
        if seed % 2:
            shutil.copytree(self.earlier, folder / "dataset")
        moments = [self.life.moment_in(kind, rng) if kind else self.life.moment(rng) for kind in kills]
        starts = [self._start(folder, moment) for moment in moments]
        starts.append(last := self._start(folder, None))
        last.wrong += [f"left beside it: {path.name}" for path in folder.iterdir() if path.name.startswith(".")]
        if last.stage or last.artifact != "new":
            last.wrong.append(f"killed after {LONGEST} s" if last.stage else f"the {last.artifact} artifact is there")
        shutil.rmtree(folder)
        return starts

    def _start(self, folder: Path, moment: Moment | None) -> Start:
        """Start the run, and kill it at that moment unless it has ended by then."""
        before, left, log = whole(folder / "store")[0], half_written(folder), folder / "log"
        start = time.perf_counter()
        run = self.begin(folder)
        while moment and moment.after and run.is_alive() and moment.after not in log.read_text():
            time.sleep(0.0005)
        run.join(moment.seconds if moment else LONGEST)
        while moment and moment.writing and run.is_alive() and half_written(folder) == left:
            pass
        run.kill()
        run.join()
        seconds, said = time.perf_counter() - start, log.read_text()
        done = DONE.findall(said)
        again = [name for how, name in done if name in before and not how.startswith(FOUND)]
        (results, wrong), (artifact, more) = whole(folder / "store"), self._artifact(folder / "dataset")
        if run.exitcode not in (0, -signal.SIGKILL):
            wrong.append(f"ended with {run.exitcode}: {said[-500:]}")
        return Start(
            self.life.stage(said) if run.exitcode else None, half_written(folder) != left, artifact, len(results),
            [name for how, name in done if how.startswith(FOUND)], again, seconds, wrong + more + left_of(run),
        )  # fmt: skip

    def _artifact(self, out: Path) -> tuple[str, list[str]]:
        """Which artifact stands there, and what is wrong with it."""
        if not out.exists():
            return "none", []
        files = checksums(out)
        known = {"new": self.life.files, "earlier": self.others}
        which = next((name for name, of_it in known.items() if files == of_it), "unknown")
        return which, validate(out) + (["an artifact that nobody made"] if which == "unknown" else [])


def retort(arguments: list[str], log: str) -> None:
    """The command line, in a process of its own and a session of its own."""
    os.setsid()
    handle = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    sys.argv = ["retort", *arguments]
    from flows.cli import main

    main()


def checksums(dataset: Path) -> dict[str, str]:
    """Of an artifact's files that do not tell when they were made, and what its students score."""
    manifest = json.loads((dataset / "retort.json").read_text())
    files = {
        path.relative_to(dataset).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in dataset.rglob("*")
        if path.is_file()
    }
    scores = {claim["row"]: str(claim["accuracies"]) for claim in manifest["claims"]}
    return scores | {name: sha256 for name, sha256 in files.items() if SAME.fullmatch(name)}


def half_written(folder: Path) -> set[str]:
    """What killed runs left: folders beside the artifact, and files of the store that no reader takes for whole."""
    files = (path.relative_to(folder / "store").as_posix() for path in folder.glob("store/*/*.partial"))
    return {name for name in files if LEFTOVER.fullmatch(name)} | {path.name for path in folder.glob(".*")}


def left_of(run: BaseProcess) -> list[str]:
    """Processes of its session that outlived a run by a second."""
    for _ in range(10):
        left = [stat for stat in map(stat_of, Path("/proc").glob("[0-9]*")) if stat[5:6] == [str(run.pid)]]
        if not left:
            return []
        time.sleep(0.1)
    return [f"process {stat[0]} {stat[1]} outlived it" for stat in left]


def stat_of(process: Path) -> list[str]:
    try:
        return (process / "stat").read_text().split()
    except OSError:
        return []


def whole(folder: Path) -> tuple[set[str], list[str]]:
    """The results of a store that are there, and every file that is not what its name says."""
    if not folder.exists():
        return set(), []
    store, results, wrong = Store(str(folder), checked=False), set[str](), list[str]()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if LEFTOVER.fullmatch(name) or path.parent.name == "runs":
            continue
        if path.parent.name == "blobs":
            if hashlib.sha256(path.read_bytes()).hexdigest() != path.name:
                wrong.append(f"blob {path.name} has other bytes")
        elif store.find(ref := Ref(path.parent.name, path.stem)) is None:
            wrong.append(f"{ref} is not whole")
        else:
            results.add(str(ref))
    return results, wrong


def row(seed: int, trial: Trial) -> dict[str, Any]:
    """A run as JSON data: of what it found the number, of all and of panels."""
    return {
        "seed": seed,
        "starts": [
            {**asdict(each), "found": len(each.found), "panels": sum(name.startswith(PANEL) for name in each.found),
             "seconds": round(each.seconds, 1)}
            for each in trial
        ],
    }  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts by outcome and by the stage in which a kill fell."""
    starts = [start for row in rows for start in row["starts"]]
    killed, last = [start for start in starts if start["stage"]], [row["starts"][-1] for row in rows]
    again = [name for start in starts for name in start["again"]]
    return {
        "runs": len(rows),
        "kills": len(killed),
        "in_a_write": sum(start["writing"] for start in killed),
        "stages": dict(sorted(Counter(start["stage"] for start in killed).items())),
        "artifact_after_a_kill": dict(sorted(Counter(start["artifact"] for start in killed).items())),
        "results_whole_after_kills": sum(start["results"] for start in killed),
        "completed_with_the_same_bytes": sum(start["artifact"] == "new" for start in last),
        "results_found": sum(start["found"] for start in starts),
        "panels_found": sum(start["panels"] for start in starts),
        "results_made_again": len(again),
        "panels_made_again": sum(name.startswith(PANEL) for name in again),
        "wrong": [line for start in starts for line in start["wrong"]],
        "worst_seconds": max(start["seconds"] for start in last),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=120, help="in all")
    parser.add_argument("--add", action="store_true", help="to the runs of benchmarks/results/kills.json")
    parser.add_argument("--minutes", type=float, default=60, help="stop after so many; continue with --add")
    arguments, begun = parser.parse_args(), time.monotonic()
    from flows.workspace import machine

    kept = json.loads((RESULTS / "kills.json").read_text()) if arguments.add else {"rows": [], "kills": 0}
    rows, command = kept["rows"], f"python -m benchmarks.kills --kills {arguments.kills}"
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        about = {"machine": machine(), "command": command, "undisturbed_seconds": round(sum(bench.life.spans), 1)}
        while (left := arguments.kills - kept["kills"]) > 0 and time.monotonic() - begun < 60 * arguments.minutes:
            seed = len(rows)
            kills = min(random.Random(-seed).randint(1, 4), left)
            rows.append(row(seed, bench.trial(seed, [None] * kills)))
            kept = summary(rows)
            print(f"{kept['kills']} kills, {kept['completed_with_the_same_bytes']} runs", *kept["wrong"], flush=True)
    keep("kills", {**about, **summary(rows), "rows": rows})
    if kept["wrong"] or kept["results_made_again"]:
        raise SystemExit("see what is wrong")


if __name__ == "__main__":
    main()
