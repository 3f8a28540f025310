"""SIGTERM and Ctrl-C end a command with one line and exit code 130, and with it all that it started."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from prefect import get_client
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_API_URL

from flows import guard

SAID = "retort: interrupted by {}; what is finished is kept: the same command continues\n"
RUN = ("run", "spec.yaml", "--out", "dataset", "--store", "store", "--device", "cpu", "--threads", 1)
Started = subprocess.Popen[str]
BEGIN = """
    import signal, subprocess, sys, threading, time
    from flows import guard, interrupts
    interrupts.GRACE = 0.3
    def swallow(seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                time.sleep(0.01)
            except KeyboardInterrupt:
                pass
    with interrupts.expected():
        try:
"""
END = """
        except KeyboardInterrupt:
            interrupts.end()
"""


@contextmanager
def python(code: str) -> Iterator[Started]:
    """Code within what the command line has around it, in a process that has said `begun`."""
    body = textwrap.indent(textwrap.dedent(code).strip(), " " * 8)
    whole = f"{textwrap.dedent(BEGIN)}{body}{textwrap.dedent(END).replace(chr(10), chr(10) + '    ')}"
    started = subprocess.Popen(
        [sys.executable, "-c", whole], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert started.stdout and started.stdout.readline() == "begun\n", started.communicate()
        yield started
    finally:
        started.kill()
        started.communicate()


def ended(started: Started, number: signal.Signals, times: int = 1) -> str:
    """What it says after signals."""
    for _ in range(times):
        started.send_signal(number)
        time.sleep(0.05)
    said = started.communicate(timeout=30)[1]
    assert started.returncode == 130, said
    return said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "code",
    [
        "print('begun', flush=True); time.sleep(60)",
        "print('begun', flush=True); swallow(60)",  # as libraries do that catch whatever comes
        "import hashlib; print('begun', flush=True); hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)",  # busy in C
        """
        from concurrent.futures import ThreadPoolExecutor
        def stage():
            with interrupts.at_work():
                print("begun", flush=True)
                while True:
                    time.sleep(0.01)
        interrupts.GRACE = 600
        with ThreadPoolExecutor(1) as pool:
            stages = [pool.submit(stage) for _ in range(3)]
            stages[0].result()
        """,
    ],
    ids=["idle", "swallowed", "busy", "threads"],
)
def test_an_interrupt_ends_whatever_is_done(code: str, number: signal.Signals) -> None:
    with python(code) as started:
        assert ended(started, number) == SAID.format(number.name)


def test_a_second_ctrl_c_does_not_wait() -> None:
    with python("interrupts.GRACE = 600; print('begun', flush=True); swallow(600)") as started:
        assert ended(started, signal.SIGINT, times=2) == SAID.format("SIGINT")


def test_what_is_interrupted_clears_away_what_it_was_writing(tmp_path: Path) -> None:
    code = f"""
        from pathlib import Path
        from dd_tasks import whole
        with whole.all_or_nothing(Path({str(tmp_path / "out")!r})) as folder:
            (folder / "half").write_text("half")
            print("begun", flush=True)
            time.sleep(60)
    """
    with python(code) as started:
        assert len(os.listdir(tmp_path)) == 1
        assert ended(started, signal.SIGTERM) == SAID.format("SIGTERM")
    assert os.listdir(tmp_path) == []


CHILD = """
    stubborn = "import signal as s, time; s.signal(s.SIGTERM, s.SIG_IGN); print(1, flush=True); time.sleep(60)"
    guard.PATIENCE = 0.5
    guard.start()
    child = subprocess.Popen([sys.executable, "-c", stubborn], start_new_session=True, stdout=subprocess.PIPE)
    child.stdout.readline()
    time.sleep(2 * guard.EVERY)
    print("begun", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_a_run_started_ends_with_it_even_where_it_is_killed(number: signal.Signals) -> None:
    with python(CHILD) as started:
        children = guard.descendants(started.pid)
        assert len(children) == 2
        if number == signal.SIGKILL:
            started.kill()
        else:
            ended(started, number)
        started.communicate()  # until the guard has ended, too
        assert gone(children)


def gone(children: guard.Started, seconds: float = 20) -> bool:
    """Whether processes end within a while."""
    until = time.monotonic() + seconds
    while guard.living(children) and time.monotonic() < until:
        time.sleep(0.05)
    return not guard.living(children)


def retort(folder: Path, *arguments: object, **environment: str) -> Started:
    command = [sys.executable, "-c", "from flows.cli import main; main()", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, start_new_session=True,
        env=os.environ | environment,
    )  # fmt: skip


def until(started: Started, what: str) -> None:
    assert started.stderr
    heard = []
    for line in started.stderr:
        heard.append(line)
        if what in line:
            return
    raise AssertionError("".join(heard))


@pytest.mark.long
def test_an_interrupted_run_on_ray_leaves_no_process(tmp_path: Path, quick: dict[str, object]) -> None:
    """Nor does Prefect's server stay, which was started for it and whose engine catches SIGTERM."""
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(quick))
    run = retort(tmp_path, *RUN, "--engine", "ray", PREFECT_HOME=str(tmp_path / "prefect"))
    until(run, "observer convnet3_bn_w32: made in")
    children = guard.descendants(run.pid)
    assert len(children) > 3
    said = ended(run, signal.SIGTERM)
    assert said.endswith(SAID.format("SIGTERM")) and "Traceback" not in said
    assert gone(children) and not (tmp_path / "dataset").exists()


@pytest.mark.long
def test_a_server_is_told_of_a_run_whose_stage_is_interrupted_in_a_thread(
    tmp_path: Path, quick: dict[str, object], prefect_server: None
) -> None:
    url = str(PREFECT_API_URL.value())
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump({**quick, "set": {"observers.epochs": "500"}}))
    run = retort(tmp_path, *RUN, PREFECT_API_URL=url)
    until(run, "candidates a class: made in")
    time.sleep(1)
    assert ended(run, signal.SIGTERM).endswith(SAID.format("SIGTERM"))
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=5)
    told = [each.state for each in found if each.state and each.parameters.get("out") == "dataset"]
    assert told and told[0].is_crashed()


def test_packing_that_is_interrupted_leaves_what_was_there(tmp_path: Path, digits: Path) -> None:
    before = {path.name: path.read_bytes() for path in (digits / "test").iterdir()}
    (tmp_path / "shards").mkdir()
    for name, content in before.items():
        (tmp_path / "shards" / name).write_bytes(content)
    pack = retort(tmp_path, "shards", "pack", "digits", "--out", "shards", "--overwrite", "--side", 512)
    while pack.poll() is None and not list(tmp_path.glob(".shards.partial-*/*.tar")):
        time.sleep(0.01)
    assert ended(pack, signal.SIGTERM) == SAID.format("SIGTERM")
    assert {path.name: path.read_bytes() for path in (tmp_path / "shards").iterdir()} == before
    assert os.listdir(tmp_path) == ["shards"]
