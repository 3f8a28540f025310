"""Cases in batches: drawn by hypothesis from a seed, run in a process of their own, watched by this one."""

import faulthandler
import hashlib
import json
import os
import resource
import select
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.internal.conjecture import providers

from benchmarks.hostile.family import ACCEPTED, REFUSED, Family

# Constants of our own source would be mixed into what is drawn: after any edit case n would be another one.
providers.is_local_module_file = lambda path: False  # type: ignore[assignment]
BATCH = 100
SECONDS, BYTES = 10, 1 << 30
LIMITS = {"seconds": SECONDS, "bytes": BYTES}
ADDRESSES = 4 << 30  # bytes that a process may map beyond what it had: what stops a bomb that is let in
DRAWING, GRACE = 300, 50  # seconds for the drawing of a batch, and beyond SECONDS until a case is stopped
WRONG = ("escaped", "slow", "large", "hung", "died")
OUTCOMES = (ACCEPTED, REFUSED, *WRONG)


@dataclass(frozen=True)
class Batch:
    """These of a family's cases. Case n is the (n % BATCH)-th that hypothesis draws by the seed of n // BATCH."""

    family: Family
    seed: int
    cases: range
    scratch: Path


def drawn(family: Family, seed: int, number: int, count: int) -> list[Any]:
    """The first `count` cases of batch `number`, which is drawn as a whole: what comes depends on how many do. Not the
    very first that hypothesis draws, which is always the same."""
    found: list[Any] = []
    text = f"{seed} {family.name} {number}".encode()

    @hypothesis.seed(int.from_bytes(hashlib.sha256(text).digest()[:8]))
    @settings(
        max_examples=BATCH + 1, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(family.cases)
    def collect(case: Any) -> None:
        found.append(case)

    collect()
    return found[1 : count + 1]


def supervised(batch: Batch) -> Iterator[dict[str, Any]]:
    """What became of each case, in order; after one that hangs or ends its process, the others in a new one."""
    if not any((batch.scratch / "prepared").iterdir()):
        process, _ = _forked(lambda _: batch.family.prepare(batch.scratch / "prepared"))
        assert os.waitpid(process, 0)[1] == 0, f"{batch.family.name}: its folder was not prepared"
    cases = batch.cases
    while cases:
        for case in _watched(Batch(batch.family, batch.seed, cases, batch.scratch)):
            cases = range(case["case"] + 1, cases.stop)
            yield case


def _watched(batch: Batch) -> Iterator[dict[str, Any]]:
    """The cases of one process, until it ends."""
    process, lines = _forked(lambda pipe: _run(batch, pipe))
    at, patience, ended = batch.cases.start, DRAWING, ""
    with os.fdopen(lines) as reader:
        while at < batch.cases.stop:
            ready, _, _ = select.select([reader], [], [], patience)
            if not ready:
                os.kill(process, signal.SIGKILL)
                ended = "hung"
                break
            if not (line := reader.readline()):
                break
            if line.startswith("{"):
                at += 1
                yield json.loads(line)
            patience = SECONDS + GRACE
        status = os.waitpid(process, 0)[1]
    if at < batch.cases.stop:
        log = (batch.scratch / "log").read_text(errors="replace")[-3000:]
        what = f"{ended or f'ended with status {status}'}: {log}"
        yield {"case": at, "outcome": ended or "died", "seconds": SECONDS, "bytes": 0, "what": what, "sha256": ""}


def _forked(work: Any) -> tuple[int, int]:
    """A process that does the work, with a pipe to tell of it, and ends."""
    reader, writer = os.pipe()
    if process := os.fork():
        os.close(writer)
        return process, reader
    code = 1
    try:
        os.close(reader)
        work(writer)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _run(batch: Batch, pipe: int) -> None:
    log = os.open(batch.scratch / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    number, first = divmod(batch.cases.start, BATCH)
    assert first + len(batch.cases) <= BATCH
    cases = drawn(batch.family, batch.seed, number, first + len(batch.cases))[first:]
    os.write(pipe, b"drawn\n")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = _status("VmSize") + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    before = _status("VmRSS")
    for n, case in zip(batch.cases, cases, strict=True):
        faulthandler.dump_traceback_later(SECONDS + GRACE - 1, file=log)
        found = _judged(batch, case, before)
        os.write(pipe, json.dumps({"case": n, **found}).encode() + b"\n")
    faulthandler.cancel_dump_traceback_later()


def _judged(batch: Batch, case: Any, before: int) -> dict[str, Any]:
    """One case, in an empty folder, with nothing beside it afterwards."""
    home = Path(tempfile.mkdtemp(prefix="case-", dir=batch.scratch))
    (room := home / "deep" / "room").mkdir(parents=True)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the high-water mark begins anew
    was, start, what = _status("VmHWM"), _now(), ""
    os.chdir(room)
    try:
        words = batch.family.run(case, room, batch.scratch / "prepared")
        outcome = REFUSED if REFUSED in words else ACCEPTED
        if beside := [p.name for p in (*home.iterdir(), *(home / "deep").iterdir()) if p.name not in ("deep", "room")]:
            outcome, what = "escaped", f"written outside of its folder: {beside}"
    except BaseException as error:
        outcome, what = "escaped", _told(error)
    seconds, peak = _now() - start, _status("VmHWM")
    if not what and seconds > SECONDS:
        outcome, what = "slow", f"{seconds:.1f} s"
    if not what and peak - before > BYTES and peak > was:
        outcome, what = "large", f"{peak - before:,} bytes"
    os.chdir(batch.scratch)
    shutil.rmtree(home, ignore_errors=True)
    sha256 = hashlib.sha256(repr(case).encode("utf-8", "backslashreplace")).hexdigest()
    return {"outcome": outcome, "seconds": seconds, "bytes": max(0, peak - before), "what": what, "sha256": sha256}


def _told(error: BaseException) -> str:
    """What it says, and where: the last places in our code, and the very last."""
    places = [
        f"{frame.filename.rpartition('/retort/')[2]}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    ours = [place for place in places if "site-packages" not in place and "/lib/python" not in place]
    return f"{type(error).__name__}: {str(error)[:1500]} at {' '.join(ours[-4:])} {places[-1]}"


def _now() -> float:
    """Seconds, but for those in which this process could have run, and others had the processor."""
    with open("/proc/self/schedstat") as file:
        return time.perf_counter() - int(file.read().split()[1]) / 1e9


def _status(name: str) -> int:
    """Bytes, by the kernel's count of this process."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(f"{name}:"))
