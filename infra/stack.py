"""`make stack`: what a data team operates, natively on loopback and started by one command.

PostgreSQL, a Prefect server on it, a process work pool with a worker, and a store that speaks the S3 protocol (moto's:
in memory, for trying things out; production has a real one). A specification that is given is deployed beside the
deployments of infra/prefect.yaml, and runs at the next full minute. SIGTERM and Ctrl-C stop everything.
"""

import argparse
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dd_tasks.errors import InputError  # noqa: E402
from flows.environment import PREFECT_DEFAULTS  # noqa: E402
from flows.options import spec_of  # noqa: E402

HOST = "127.0.0.1"
POOL = BUCKET = "retort"
PREFECT = [sys.executable, "-m", "prefect"]
PATIENCE = 120  # seconds that a server may take to answer
GRACE = 20  # seconds that it may take to stop
WAITING, ENDS = "SCHEDULED", ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
_held: list[socket.socket] = []


class StackError(Exception):
    """Something did not start, or did not do what it should. One line."""


@dataclass(frozen=True)
class Stack:
    """Where everything is: one folder, three ports."""

    folder: Path
    ports: Mapping[str, int]
    password: str = field(repr=False)

    @property
    def api(self) -> str:
        return f"http://{HOST}:{self.ports['prefect']}/api"

    @property
    def client(self) -> dict[str, str]:
        """What `retort` and `prefect` need in their environment; the keys are any, as moto takes every one."""
        return {
            "PREFECT_API_URL": self.api, "AWS_ENDPOINT_URL_S3": f"http://{HOST}:{self.ports['s3']}",
            "AWS_ACCESS_KEY_ID": "stack", "AWS_SECRET_ACCESS_KEY": "stack", "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true", "RETORT_STORE": f"s3://{BUCKET}/store",
        }  # fmt: skip

    @property
    def environment(self) -> dict[str, str]:
        """Of every process here. RETORT_STACK tells which stack it belongs to."""
        database = f"postgresql+asyncpg://retort:{self.password}@{HOST}:{self.ports['postgres']}/prefect"
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        here = {
            "RETORT_STACK": str(self.folder), "RETORT_HOME": str(self.folder / "work"),
            "PREFECT_HOME": str(self.folder / "prefect"), "PREFECT_API_DATABASE_CONNECTION_URL": database,
            "PREFECT_UI_API_URL": self.api, "PREFECT_UI_STATIC_DIRECTORY": str(self.folder / "ui"),
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false", "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO", "PYTHONPATH": os.pathsep.join(paths),
        }  # fmt: skip
        return {**os.environ, **PREFECT_DEFAULTS, **here, **self.client}


# ---- start, wait until it answers, stop


@contextmanager
def process(name: str, command: list[str], stack: Stack, stop: int = signal.SIGTERM) -> Iterator[subprocess.Popen]:
    """A process in a group of its own, which is stopped in the end with all that it started; FOLDER/NAME.log."""
    with (stack.folder / f"{name}.log").open("ab") as log:
        started = subprocess.Popen(
            command, env=stack.environment, cwd=stack.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield started
    finally:
        started.send_signal(stop)
        try:
            started.wait(GRACE)
        except subprocess.TimeoutExpired:
            print(f"{name} does not stop; killed", file=sys.stderr)
        with suppress(ProcessLookupError):  # nothing of it is left
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()


def until(answers: Callable[[], object], name: str, started: subprocess.Popen, stack: Stack) -> None:
    """Wait for the answer. StackError where the process ends before, or says nothing for PATIENCE seconds."""
    deadline = time.monotonic() + PATIENCE
    while not answers():
        if started.poll() is not None or time.monotonic() > deadline:
            raise StackError(f"{name} did not start; {stack.folder / f'{name}.log'} says why")
        time.sleep(0.2)


def run(command: list[str], stack: Stack, prefix: list[str] | None = None, **more: str) -> None:
    """A command to its end. StackError with what it said last where it fails."""
    done = subprocess.run(
        [*(prefix or []), *command], env={**stack.environment, **more}, cwd=stack.folder, stdin=subprocess.DEVNULL,
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise StackError(f"{Path(command[0]).name} {command[-1]}: {said[-1] if said else done.returncode}")


def open_port(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def free_port() -> int:
    """One that nobody else is given while this process lives: bound, but nobody listens. A server takes it that says
    SO_REUSEADDR, as all do, and also when it is started again."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((HOST, 0))
    _held.append(held)
    return int(held.getsockname()[1])


def ask(stack: Stack, path: str, body: object = None) -> Any:
    """The Prefect server's answer; None where there is no server yet, or no such thing."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{stack.api}{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.NOT_FOUND:
            return None
        raise StackError(f"{path}: {error.code} {error.read().decode()[:300]}") from None
    except OSError:
        return None


def answer(stack: Stack, path: str, body: object = None) -> Any:
    """As `ask`; StackError where there is none."""
    found = ask(stack, path, body)
    if found is None:
        raise StackError(f"{path}: the server does not answer; {stack.folder}/prefect.log may say why")
    return found


# ---- the four servers


def postgres_tools() -> Path:
    """The folder of PostgreSQL's programs; Debian keeps them off the PATH. StackError where there is none."""
    folders = [*map(Path, os.get_exec_path()), *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    for folder in folders:
        if all((folder / name).exists() for name in ("initdb", "postgres", "pg_isready", "createdb")):
            return folder
    raise StackError("PostgreSQL is missing (Debian: apt-get install postgresql)")


def as_postgres() -> list[str]:
    """PostgreSQL refuses to be root: what makes a command that of the user postgres where we are."""
    return [] if os.geteuid() else ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]


@contextmanager
def postgres(stack: Stack) -> Iterator[None]:
    tools, user = postgres_tools(), as_postgres()
    data, port = stack.folder / "postgres", str(stack.ports["postgres"])
    if new := not (data / "PG_VERSION").exists():
        make_cluster(data, tools, user, stack)
    options = [f"listen_addresses={HOST}", f"port={port}", "unix_socket_directories=", "logging_collector=off"]
    command = [*user, str(tools / "postgres"), "-D", str(data), *(part for o in options for part in ("-c", o))]
    with process("postgres", command, stack, signal.SIGINT) as started:  # its fast shutdown
        login = ["-h", HOST, "-p", port, "-U", "retort"]
        asked = [str(tools / "pg_isready"), "-q", *login]
        until(lambda: not subprocess.run(asked).returncode, "postgres", started, stack)
        if new:
            run([str(tools / "createdb"), *login, "prefect"], stack, PGPASSWORD=stack.password)
        yield


def make_cluster(data: Path, tools: Path, user: list[str], stack: Stack) -> None:
    """An empty database that only the password opens."""
    data.mkdir(mode=0o700, exist_ok=True)
    password = stack.folder / "password"
    if user:
        for path in (data, password):
            shutil.chown(path, "postgres", "postgres")
        if subprocess.run([*user, "test", "-w", str(data)]).returncode:
            raise StackError(f"the user postgres cannot reach {data}: give another --folder")
    options = ["-U", "retort", "--auth=scram-sha-256", f"--pwfile={password}", "--encoding=UTF8", "--locale=C.UTF-8"]
    run([str(tools / "initdb"), *options, "-D", str(data)], stack, user)


@contextmanager
def prefect_server(stack: Stack) -> Iterator[None]:
    command = [*PREFECT, "server", "start", "--host", HOST, "--port", str(stack.ports["prefect"])]
    with process("prefect", command, stack) as started:
        until(lambda: ask(stack, "/health"), "prefect", started, stack)
        yield


@contextmanager
def store(stack: Stack) -> Iterator[None]:
    import s3fs

    port = stack.ports["s3"]
    with process("s3", [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)], stack) as started:
        until(lambda: open_port(port), "s3", started, stack)
        keys = {"key": "stack", "secret": "stack", "endpoint_url": stack.client["AWS_ENDPOINT_URL_S3"]}
        s3fs.S3FileSystem(**keys).mkdir(BUCKET)
        yield


@contextmanager
def worker(stack: Stack) -> Iterator[None]:
    """It makes the work pool, if there is none."""
    command = [*PREFECT, "worker", "start", "--pool", POOL, "--type", "process", "--limit", "1"]
    with process("worker", command, stack) as started:
        until(lambda: ask(stack, f"/work_pools/{POOL}/workers/filter", {}), "worker", started, stack)
        yield


# ---- deployments


def deploy(stack: Stack, name: str, spec: dict[str, Any] | None, publish: str) -> None:
    """Those of infra/prefect.yaml, with schedules that the UI can switch on, and one of the name for the specification.

    RETORT_SHARDS and RETORT_DATASET of the environment count as they do for `prefect deploy`.
    """
    described = yaml.safe_load((ROOT / "infra" / "prefect.yaml").read_text(encoding="utf-8"))
    for each in described["deployments"]:
        each["schedules"] = [{**schedule, "active": False} for schedule in each.get("schedules", [])]
    if spec is not None:
        first = described["deployments"][0]
        release = {"target": publish or f"file://{stack.folder}/published"}
        parameters = {"spec": spec, "out": f"{name}/dataset", "release": release, **first["parameters"]}
        described["deployments"].append({**first, "name": name, "parameters": parameters})
    (stack.folder / "work").mkdir(exist_ok=True)
    file = stack.folder / "prefect.yaml"
    file.write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")
    command = [*PREFECT, "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    places = {"RETORT_SHARDS": f"s3://{BUCKET}/shards/*.tar", "RETORT_DATASET": publish or "ORG/NAME"}
    run(command, stack, **{key: os.environ.get(key, value) for key, value in places.items()})


def read_spec(file: Path) -> dict[str, Any]:
    """The specification; its shards are those of the folder in which the stack is started."""
    try:
        return spec_of(str(file)).elsewhere()
    except InputError as error:
        raise StackError(str(error)) from None


def schedule(stack: Stack, name: str) -> str:
    """Give the deployment a cron schedule of the next full minute; the id of its run, which is listed by then.

    The server looks for runs to list every few seconds, and later where the machine is busy: it would pass over a
    minute that had begun by then, and the cron names no other one this year. So it is asked to list this one now.
    """
    found = answer(stack, f"/deployments/name/distill-dataset/{name}")["id"]
    minute = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
    cron = f"{minute.minute} {minute.hour} {minute.day} {minute.month} *"
    answer(stack, f"/deployments/{found}/schedules", [{"schedule": {"cron": cron, "timezone": "UTC"}, "active": True}])
    first = {"start_time": (minute - timedelta(seconds=1)).isoformat(), "min_time": 0, "min_runs": 1, "max_runs": 1}
    ours = {
        "deployments": {"id": {"any_": [found]}}, "sort": "EXPECTED_START_TIME_ASC",
        "flow_runs": {"expected_start_time": {"after_": minute.isoformat()}},
    }  # fmt: skip
    deadline = time.monotonic() + PATIENCE
    while not (listed := ask(stack, "/flow_runs/filter", ours)):
        if time.monotonic() > deadline:
            raise StackError(f"the server lists no run at {minute:%H:%M} UTC; {stack.folder}/prefect.log may say why")
        ask(stack, f"/deployments/{found}/schedule", first)
    print(f"distill-dataset/{name} runs at {minute:%H:%M} UTC (cron {cron!r})", flush=True)
    return str(listed[0]["id"])


def wait_for_run(stack: Stack, scheduled: str) -> dict[str, Any]:
    """The run, once it has ended. StackError where no worker has taken it when one should have."""
    latest = time.monotonic() + 60 + PATIENCE
    while True:
        found = ask(stack, f"/flow_runs/{scheduled}")
        state = found["state"]["type"] if found else WAITING
        if found and state in ENDS:
            return dict(found)
        if state == WAITING and time.monotonic() > latest:
            raise StackError(f"the schedule began no run; {stack.folder}/prefect.log and worker.log may say why")
        time.sleep(1)


def picture(stack: Stack, ended: dict[str, Any], folder: Path) -> None:
    """What the UI shows of a run, and the form that starts another."""
    ui, form = stack.api.removesuffix("/api"), f"/deployments/deployment/{ended['deployment_id']}/run"
    for name, path, height, texts in (
        ("run", f"/runs/flow-run/{ended['id']}", 1000, (ended["name"], ended["state"]["name"], "auto-scheduled")),
        ("form", form, 2600, ("images per class", "globs, brace patterns or URLs")),
    ):
        options = ["--height", str(height), *(part for text in texts for part in ("--expect", text))]
        script = str(ROOT / "infra" / "screenshot.py")
        run([sys.executable, script, f"{ui}{path}", str(folder / f"{name}.png"), *options], stack)


# ---- the command


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/stack"), help="databases, logs and what runs write")
    for name in ("postgres", "prefect", "s3"):
        parser.add_argument(f"--{name}-port", type=int, default=0, help="default: one that is free")
    parser.add_argument("--spec", type=Path, help="SPEC.yaml to deploy, and to run at the next full minute")
    parser.add_argument("--publish", default="", help="ORG/NAME, or file:///FOLDER (default: FOLDER/published)")
    parser.add_argument(
        "--until-done", action="store_true", help="stop when that run has ended; exit code 1 if it failed"
    )
    parser.add_argument("--pictures", type=Path, help="folder for what a browser shows of it, with --until-done")
    return parser.parse_args()


def opened(given: argparse.Namespace) -> Stack:
    """The stack of a folder; its password is made once."""
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    password = folder / "password"
    if not password.exists():
        password.touch(mode=0o600)
        password.write_text(secrets.token_urlsafe(24))
    ports = {name: getattr(given, f"{name}_port") or free_port() for name in ("postgres", "prefect", "s3")}
    return Stack(folder, ports, password.read_text())


def show(stack: Stack) -> None:
    """The addresses, and FOLDER/env for a shell."""
    lines = "".join(f"export {name}={value}\n" for name, value in stack.client.items())
    (stack.folder / "env").write_text(lines)
    for name, where in (
        ("Prefect", f"http://{HOST}:{stack.ports['prefect']}"), ("PostgreSQL", f"{HOST}:{stack.ports['postgres']}"),
        ("S3", stack.client["AWS_ENDPOINT_URL_S3"]), ("work pool", POOL), ("logs", str(stack.folder)),
    ):  # fmt: skip
        print(f"{name:>10}: {where}")
    print(f"In another shell: `. {stack.folder}/env`, then `retort run ... --store $RETORT_STORE`", flush=True)


def main() -> int:
    """0, or 1 where the run that was waited for did not complete."""
    given = arguments()
    spec = read_spec(given.spec) if given.spec else None
    name = given.spec.stem if given.spec else ""
    stack = opened(given)
    with ExitStack() as started:
        started.callback(print, "everything has stopped")
        for server in (postgres, store, prefect_server, worker):
            started.enter_context(server(stack))
        deploy(stack, name, spec, given.publish)
        show(stack)
        scheduled = schedule(stack, name) if name else ""
        if not (given.until_done and scheduled):
            signal.pause()
        ended = wait_for_run(stack, scheduled)
        print(f"{ended['name']}: {ended['state']['name']}, begun by a {ended['created_by']['type']}", flush=True)
        if given.pictures:
            picture(stack, ended, given.pictures.resolve())
        return int(ended["state"]["type"] != "COMPLETED")


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    for stop in (signal.SIGTERM, signal.SIGINT):  # one that a shell ignores in the background, as do all it starts
        signal.signal(stop, interrupted)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except StackError as problem:
        sys.exit(f"stack: {problem}")
