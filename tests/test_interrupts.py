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
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.sorting import FlowRunSort, TaskRunSort
from prefect.settings import PREFECT_API_URL

from flows import guard, interrupts

SAID = "retort: interrupted by {}; what is finished is kept: the same command continues\n"
RUN = ("run", "spec.yaml", "--out", "dataset", "--store", "store", "--device", "cpu", "--threads", 1)
LONG = 600  # seconds until what should end counts as hanging
Started = subprocess.Popen[str]
BEGIN = """
    import signal, subprocess, sys, threading, time
    from flows import guard, interrupts
    interrupts.GRACE = 0.3
    def swallow():
        said = 'begun'
        while True:
            try:
                print(said, flush=True)
                time.sleep(6000)
            except KeyboardInterrupt:
                said = 'swallowed'
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


def ended(started: Started, number: signal.Signals) -> str:
    """What it says after a signal."""
    started.send_signal(number)
    said = started.communicate(timeout=LONG)[1]
    assert started.returncode == 130, said
    return said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "code",
    [
        "print('begun', flush=True); time.sleep(6000)",
        "swallow()",  # as libraries do that catch whatever comes
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
    with python("interrupts.GRACE = 600; swallow()") as started:
        started.send_signal(signal.SIGINT)
        assert started.stdout and started.stdout.readline() == "swallowed\n"
        assert ended(started, signal.SIGINT) == SAID.format("SIGINT")


def test_what_is_interrupted_clears_away_what_it_was_writing(tmp_path: Path) -> None:
    code = f"""
        from pathlib import Path
        from dd_tasks import whole
        interrupts.GRACE = 600
        with whole.all_or_nothing(Path({str(tmp_path / "out")!r})) as folder:
            (folder / "half").write_text("half")
            print("begun", flush=True)
            time.sleep(6000)
    """
    with python(code) as started:
        assert len(os.listdir(tmp_path)) == 1
        assert ended(started, signal.SIGTERM) == SAID.format("SIGTERM")
    assert os.listdir(tmp_path) == []


WATCHFUL = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from flows import guard
look = guard.descendants
def told(process):
    found = look(process)
    Path({told!r}).write_text(str(len(found)))
    return found
guard.descendants = told
guard.main(int(sys.argv[1]))
"""  # the guard, which tells of how many processes it knows
CHILD = """
    from pathlib import Path
    stubborn = "import signal as s, time; s.signal(s.SIGTERM, s.SIG_IGN); print(1, flush=True); time.sleep(6000)"
    guard.PATIENCE, guard.__file__, told = 0.5, {guard!r}, Path({told!r})
    guard.start()
    child = subprocess.Popen([sys.executable, "-c", stubborn], start_new_session=True, stdout=subprocess.PIPE)
    child.stdout.readline()
    while not told.exists() or told.read_text() != "2":
        time.sleep(0.01)
    print("begun", flush=True)
    time.sleep(6000)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_a_run_started_ends_with_it_even_where_it_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    """Once its guard has seen that, which looks now and then."""
    watchful, told, root = tmp_path / "guard.py", str(tmp_path / "told"), str(Path(__file__).parents[1])
    watchful.write_text(WATCHFUL.format(root=root, told=told))
    with python(CHILD.format(guard=str(watchful), told=told)) as started:
        children = guard.descendants(started.pid)
        assert len(children) == 2
        if number == signal.SIGKILL:
            started.kill()
        else:
            ended(started, number)
        started.communicate()  # until the guard has ended, too
        assert gone(children)


def gone(children: guard.Started) -> bool:
    """Whether processes end within a while."""
    until = time.monotonic() + LONG
    while guard.living(children) and time.monotonic() < until:
        time.sleep(0.05)
    return not guard.living(children)


def retort(folder: Path, *arguments: object, grace: float = LONG, **environment: str) -> Started:
    """A command that has so many seconds to end by itself."""
    code = f"from flows import cli, interrupts; interrupts.GRACE = {grace}; cli.main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
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
    home = str(tmp_path / "prefect")
    run = retort(tmp_path, *RUN, "--engine", "ray", grace=interrupts.GRACE, PREFECT_HOME=home)
    until(run, "observer convnet3_bn_w32: made in")
    children = guard.descendants(run.pid)
    assert len(children) > 3
    said = ended(run, signal.SIGTERM)
    assert said.endswith(SAID.format("SIGTERM")) and "Traceback" not in said
    assert gone(children) and not (tmp_path / "dataset").exists()


def training(client: SyncPrefectClient) -> bool:
    """Whether an observer is being trained."""
    begun = client.read_task_runs(sort=TaskRunSort.EXPECTED_START_TIME_DESC, limit=5)
    return any(each.name.startswith("train ") and each.state and each.state.is_running() for each in begun)


@pytest.mark.long
def test_a_server_is_told_of_a_run_whose_stage_is_interrupted_in_a_thread(
    tmp_path: Path, quick: dict[str, object], prefect_server: None
) -> None:
    url = str(PREFECT_API_URL.value())
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump({**quick, "set": {"observers.epochs": "500"}}))
    run = retort(tmp_path, *RUN, PREFECT_API_URL=url)
    with get_client(sync_client=True) as client:
        while run.poll() is None and not training(client):
            time.sleep(0.05)
        assert ended(run, signal.SIGTERM).endswith(SAID.format("SIGTERM"))
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
