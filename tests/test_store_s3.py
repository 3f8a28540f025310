"""The store on S3: a real server on loopback, and a line to it that is cut, held up and badly answered."""

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from s3_server import KEYS, S3

from dd_tasks import garbage
from dd_tasks.errors import InputError
from dd_tasks.folder import PAUSES, Unreachable
from dd_tasks.store import Ref, Store
from flows import cli

REF, OTHER = Ref("panel", "0123456789abcdef" * 4), Ref("observer", "f" * 64)
TENSORS = {"x": torch.arange(50_000)}
QUICK = (0.1, 0.2)  # pauses


@pytest.fixture
def url(s3: S3) -> str:
    return f"{s3.bucket('bucket')}/some/prefix"


def names(url: str) -> list[str]:
    return sorted(Store(url, checked=False).files())


def whole(store: Store, ref: Ref = REF) -> bool:
    found = store.find(ref)
    return found is not None and torch.equal(store.get(ref, "canvas").tensors["canvas"]["x"], TENSORS["x"])


def test_what_is_put_is_got_and_leaves_no_other_object(url: str) -> None:
    store = Store(url)
    assert names(url) == [] and store.find(REF) is None
    store.put(REF, {"x": 1}, [OTHER, OTHER], canvas=TENSORS)
    assert Store(url).find(REF) == {"x": 1} and whole(Store(url))
    assert store.entry(REF).inputs == (OTHER,)  # type: ignore[union-attr]
    blob, entry = names(url)
    assert blob.startswith("blobs/") and entry == f"{REF.name}.json"


def test_a_result_of_many_megabytes_takes_several_parts(url: str) -> None:
    store, large = Store(url), {"x": torch.arange(101 * 2**20 // 4, dtype=torch.int32)}
    store.put(REF, {}, canvas=large)
    assert torch.equal(store.get(REF, "canvas").tensors["canvas"]["x"], large["x"])


def test_what_another_process_wrote_is_seen_at_once(url: str) -> None:
    store = Store(url)
    assert store.find(REF) is None and store.files() == {}
    code = f"from dd_tasks.store import Ref, Store; Store({url!r}).put(Ref('panel', {REF.digest!r}), {{'x': 2}})"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert store.find(REF) == {"x": 2} and list(store.files()) == [f"{REF.name}.json"]


def test_processes_that_write_the_same_and_other_results_leave_each_whole(url: str) -> None:
    code = f"""if True:
        import sys, torch
        from dd_tasks.store import Ref, Store
        me, store = int(sys.argv[1]), Store({url!r})
        for i in range(6):
            store.put(Ref("panel", f"{{i:064x}}"), {{"by": me}}, canvas={{"x": torch.full((20_000,), me)}})
            store.put(Ref("score", f"{{6 * me + i:064x}}"), {{"by": me}}, canvas={{"x": torch.full((9,), i)}})
    """
    running = [subprocess.Popen([sys.executable, "-c", code, str(me)]) for me in range(2)]
    assert [one.wait(600) for one in running] == [0, 0]
    store = Store(url)
    for i in range(6):
        found = store.get(Ref("panel", f"{i:064x}"), "canvas")
        assert (found.tensors["canvas"]["x"] == found.facts["by"]).all()
    assert all(store.find(Ref("score", f"{i:064x}")) == {"by": i // 6} for i in range(12))
    assert len(names(url)) == 6 + 12 + 2 + 6  # entries, blobs by two writers, blobs that they share


@pytest.mark.parametrize("harm", [b"altered", None])
def test_a_blob_that_is_altered_or_gone_makes_the_result_missing(harm: bytes | None, url: str) -> None:
    store = Store(url)
    store.put(REF, {"x": 1}, canvas=TENSORS)
    blob = store.path(names(url)[0])
    store.remove(blob) if harm is None else store.write(blob, harm)
    assert store.find(REF) is None
    with pytest.raises(InputError, match=r"^panel/0123456789ab: its canvas is missing or altered in the store s3://"):
        store.get(REF, "canvas")
    store.put(REF, {"x": 1}, canvas=TENSORS)
    assert whole(store)


# The line


class Again(logging.Handler):
    """Makes a call as soon as a store has said in so many threads that it will try again."""

    def __init__(self, call: Callable[[], None], threads: int = 1) -> None:
        super().__init__()
        self.call, self.threads, self.told = call, threads, set[int | None]()

    def emit(self, record: logging.LogRecord) -> None:
        before = len(self.told)
        self.told.add(record.thread)
        if before < len(self.told) == self.threads:
            self.call()

    def __enter__(self) -> None:
        logging.getLogger("dd_tasks.folder").addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("dd_tasks.folder").removeHandler(self)


@pytest.mark.parametrize("harm", ["cut", "busy", "ill"])
def test_work_goes_on_when_the_line_comes_back(harm: str, s3: S3, url: str, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(url)
    store.put(REF, {"x": 1}, canvas=TENSORS)
    harmed = {
        "cut": s3.line.cut,
        "busy": lambda: s3.line.refuse(503, "SlowDown"),
        "ill": lambda: s3.line.refuse(500, "InternalError"),
    }[harm]
    begun, back = threading.Barrier(3, harmed), threading.Event()

    def work(i: int) -> None:
        ref = Ref("panel", f"{i:064x}")
        store.put(ref, {"i": i}, canvas=TENSORS)
        begun.wait()
        again = True
        while again:
            again = not back.is_set()  # once more after the line came back
            store.put(ref, {"i": i}, canvas=TENSORS)
            assert whole(store) and whole(store, ref)

    with Again(lambda: (s3.line.restore(), back.set())[0], threads=3), ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    said = [record.getMessage() for record in caplog.records if record.name == "dd_tasks.folder"]
    assert len(said) >= 3 and all(line.startswith(f"store {url}: ") and "; again in " in line for line in said)
    assert not any("\n" in line for line in said)
    assert len(names(url)) == 1 + 3 + 1


@pytest.mark.parametrize("work", ["put", "find"])
def test_a_line_that_says_nothing_is_given_up_and_tried_again(
    work: str, s3: S3, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from dd_tasks import folder

    monkeypatch.setattr(folder, "READ", 2)
    monkeypatch.setattr(folder, "SLOWEST", 10**9)
    store = Store(f"{s3.bucket('bucket')}/p", QUICK)
    large = {"x": torch.arange(2_000_000)}  # more than the buffers of a line take
    store.put(REF, {}, canvas=TENSORS)
    s3.line.hold()

    def restore() -> None:
        monkeypatch.setattr(folder, "READ", 600)
        s3.line.restore()

    with Again(restore):
        if work == "put":
            store.put(OTHER, {}, canvas=large)
            assert torch.equal(store.get(OTHER, "canvas").tensors["canvas"]["x"], large["x"])
        else:
            assert store.find(REF) == {}
    assert "; again in " in caplog.text


def test_a_cut_that_outlasts_the_tries_is_one_line_and_the_same_call_works_later(s3: S3, url: str) -> None:
    assert sum(PAUSES) >= 60
    store = Store(url, QUICK)
    store.put(REF, {"x": 1}, canvas=TENSORS)
    s3.line.cut()
    calls: list[Callable[[], object]] = [
        lambda: store.put(OTHER, {"x": 2}, canvas=TENSORS), lambda: store.find(REF), lambda: store.get(REF, "canvas"),
        lambda: Store(url, QUICK), lambda: garbage.contents(store),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(
            Unreachable, match=rf"^store {url}: not reached for \d+ s .*the same command continues"
        ) as cut:
            call()
        assert "\n" not in str(cut.value) and isinstance(cut.value, OSError)
    s3.line.restore()
    for call in calls:
        call()
    assert store.find(OTHER) == {"x": 2} and whole(store)


def test_what_is_not_there_is_told_without_waiting(s3: S3, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from dd_tasks import folder

    store, passed = Store(url), s3.line.passed
    monkeypatch.setattr(folder.time, "sleep", lambda _: pytest.fail("it waits"))
    assert store.find(REF) is None and s3.line.passed <= passed + 1


# Refusals, without secrets


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """The line on standard error of a command that ends with exit code 2; none of its output tells a secret."""
    monkeypatch.setattr(sys, "argv", ["retort", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    said = "".join(capsys.readouterr())
    assert not [secret for secret in (*KEYS.values(), "hidden") if secret in said]
    (line,) = [line for line in said.splitlines() if line.startswith("retort: ")]
    return line


@pytest.mark.parametrize(
    ("store", "line"),
    [
        ("s3://nowhere/x", "store s3://nowhere/x: bucket 'nowhere': The specified bucket does not exist"),
        ("s3://", "store s3://: bucket '': Parameter validation failed: Invalid length for parameter Key"),
        ("s3://bad name/x", "store s3://bad name/x: bucket 'bad name': Parameter validation failed: Invalid bucket"),
        ("s3://me:hidden@bucket/x", "store s3://***@bucket/x: a password in a URL ends in logs"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_one_line_before_anything_is_made(
    store: str, line: str, s3: S3, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "a.tar").touch()
    run = ("run", "e2d", "--shards", tmp_path / "a.tar", "--ipc", 2)
    said = refused(capsys, monkeypatch, *run, "--out", tmp_path / "out", "--store", store)
    assert said.startswith(f"retort: {line}")
    assert b"nowhere" not in s3.ask("/", method="GET")  # no bucket is made for a slip of the pen


def test_keys_that_the_server_does_not_know_are_one_line(
    s3: S3, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.check_keys(True)
    with pytest.raises(InputError, match=f"^store {url}: bucket 'bucket': The AWS Access Key Id you provided"):
        Store(url)
    assert "bucket 'bucket': " in refused(capsys, monkeypatch, "store", "ls", "--store", url)


def test_no_keys_at_all_are_one_line(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    for name in KEYS:
        monkeypatch.delenv(name)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(InputError, match=f"^store {url}: bucket 'bucket': Unable to locate credentials$"):
        Store(url)


def test_secrets_of_the_environment_are_never_told(
    s3: S3, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import fsspec

    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://me:hidden@127.0.0.1:{s3.line.port}")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    s3.line.cut()
    with caplog.at_level("DEBUG", "dd_tasks"), pytest.raises(Unreachable) as cut:
        Store("s3://bucket/x", QUICK)
    said = f"{cut.value} {caplog.text}"
    assert "; again in " in said and not [s for s in (*KEYS.values(), "hidden", "me:") if s in said]
    assert cut.value.__cause__ is None and cut.value.__suppress_context__


def test_garbage_of_s3_is_told_and_collected(s3: S3, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    store = Store(url)
    store.put(OTHER, {"x": 1}, weights=TENSORS)
    store.put(REF, {"x": 2}, [OTHER], canvas={"x": torch.ones(3)})
    lone = store.put(Ref("score", "1" * 64), {"x": 3}, curves={"x": torch.ones(4)})
    garbage.record(store, garbage.Root("mine", "a" * 64, "e2d", "2026-01-01T00:00:00+00:00", (REF,)))
    time.sleep(1.1)  # S3 tells whole seconds
    kept = [name for name in names(url) if "score" not in name]
    dry = CliRunner().invoke(cli.app, ["store", "gc", "--store", url, "--older", "0"])
    assert "would go: 1 results (score 1)\nwould go: 1 blobs" in dry.output and store.find(lone)
    CliRunner().invoke(cli.app, ["store", "gc", "--store", url, "--older", "0", "--yes"], catch_exceptions=False)
    assert store.find(lone) is None and store.find(REF) and store.find(OTHER)
    assert len(names(url)) == len(kept) - 1  # its blob went too
    listed = CliRunner().invoke(cli.app, ["store", "ls", "--store", url, "--runs"]).output
    assert "mine-aaaaaaaaaaaa" in listed and json.loads(store.read(store.path("runs/mine-aaaaaaaaaaaa.json")) or b"")
