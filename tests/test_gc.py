"""Garbage of the store: what a root reaches stays, and what is young; nothing goes unless it is asked."""

import json
import os
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from dd_tasks import garbage
from dd_tasks.errors import InputError
from dd_tasks.garbage import Garbage, Root, collect, contents, record
from dd_tasks.store import Ref, Store
from flows import cli

LONG_AGO = datetime.now(UTC) - timedelta(days=10)
YESTERDAY = datetime.now(UTC) - timedelta(days=1)


def ref(name: str) -> Ref:
    return Ref(name[0], f"{int.from_bytes(name.encode(), 'big'):064x}")


@dataclass
class Case:
    """Results by name, those each was made of, and the number that its blob holds; which are young; roots by name."""

    made_of: dict[str, tuple[str, ...]]
    roots: dict[str, tuple[str, ...]]
    gone: set[str]
    blobs_left: set[int]
    holds: dict[str, int] = field(default_factory=dict)
    young: set[str] = field(default_factory=set)
    forget: tuple[str, ...] = ()


CHAIN: dict[str, tuple[str, ...]] = {"a": (), "b": ("a",), "c": ("b", "a"), "z": ()}
CASES = {
    "a root keeps what it reaches": Case(CHAIN, {"run": ("c",)}, {"z"}, {1, 2, 3}),
    "from the middle, what came after goes": Case(CHAIN, {"run": ("b",)}, {"c", "z"}, {1, 2}),
    "no root, nothing stays": Case(CHAIN, {}, {"a", "b", "c", "z"}, set()),
    "two roots": Case(CHAIN, {"run": ("b",), "other": ("z",)}, {"c"}, {1, 2, 4}),
    "young ones stay, with all they were made of": Case(CHAIN, {}, {"c", "z"}, {1, 2}, young={"b"}),
    "a young one that nothing else needs": Case(CHAIN, {"run": ("a",)}, {"b", "c"}, {1, 4}, young={"z"}),
    "a blob that two share stays with one": Case(CHAIN, {"run": ("a",)}, {"b", "c", "z"}, {7}, holds={"a": 7, "z": 7}),
    "a blob that two share goes with both": Case(CHAIN, {"run": ("a",)}, {"b", "c", "z"}, {1}, holds={"c": 7, "z": 7}),
    "a run that is forgotten": Case(CHAIN, {"run": ("c",), "old": ("z",)}, {"z"}, {1, 2, 3}, forget=("old",)),
    "a forgotten run's share stays": Case(CHAIN, {"run": ("b",), "old": ("c",)}, {"c", "z"}, {1, 2}, forget=("old",)),
    "a root of what is not there": Case(CHAIN, {"run": ("c", "y")}, {"z"}, {1, 2, 3}),
    "results in a circle": Case({"a": ("b",), "b": ("a",), "c": ("c",)}, {"run": ("a",)}, {"c"}, {1, 2}),
}  # fmt: skip


def age(store: Store, path: str, when: datetime = LONG_AGO) -> None:
    """The file was written at that time."""
    if store.local:
        os.utime(store.path(path), (when.timestamp(),) * 2)
    else:
        store.fs.store[store.path(path)].created = when


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "the [store]*") if request.param == "folder" else f"memory://{tmp_path.name}/store")


def root(name: str, *refs: str, identity: str = "0" * 64) -> Root:
    return Root(name, identity, "e2d", "2026-01-01T00:00:00+00:00", tuple(map(ref, refs)))


def filled(store: Store, case: Case) -> None:
    numbers = {name: case.holds.get(name, i) for i, name in enumerate(case.made_of, 1)}
    for name, inputs in case.made_of.items():
        store.put(ref(name), {}, map(ref, inputs), it={"x": torch.tensor(numbers[name])})
    for name, refs in case.roots.items():
        record(store, root(name, *refs))
    for path in store.files():
        if path.removesuffix(".json") not in {ref(name).name for name in case.young}:
            age(store, path)


def snapshot(store: Store) -> dict[str, bytes | None]:
    return {path: store.read(store.path(path)) for path in store.files()}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_garbage_is_what_no_root_reaches(case: Case, store: Store) -> None:
    filled(store, case)
    before = snapshot(store)
    told = garbage.garbage(contents(store), YESTERDAY, case.forget)
    assert snapshot(store) == before, "telling changes nothing"
    done = collect(store, YESTERDAY, case.forget)
    assert done == told and set(done.entries) == {ref(name) for name in case.gone}
    left = {int(store.get(ref(name), "it").tensors["it"]["x"]) for name in case.made_of if store.find(ref(name)) == {}}
    assert (
        left == case.blobs_left == {case.holds.get(n, i) for i, n in enumerate(case.made_of, 1) if n not in case.gone}
    )
    assert len(contents(store).blobs) == len(case.blobs_left)
    assert done.bytes == sum(
        len(before[path] or b"") for path in before.keys() - snapshot(store).keys() if "runs/" not in path
    )
    assert set(contents(store).roots) == {root(name).key for name in case.roots if name not in case.forget}
    assert not collect(store, YESTERDAY)


def test_leftovers_go_when_they_are_old_and_what_is_not_ours_never(store: Store) -> None:
    record(store, root("run"))
    mine = [
        "notes.txt",
        "panel/notes.json",
        "panel/deep/" + "0" * 64 + ".json",
        "blobs/short",
        "runs/readme.txt",
        ".probe-x",
    ]
    old = [f".probe-{'0' * 32}", f"blobs/{'1' * 64}.{'0' * 32}.partial", f"a/{'1' * 64}.json.{'0' * 32}.partial"]
    young = [f".probe-{'2' * 32}", f"blobs/{'2' * 64}.{'2' * 32}.partial", f"blobs/{'2' * 64}"]
    for path in mine + old + young:
        store.write(store.path(path), b"123")
    for path in mine + old:
        age(store, path)
    done = collect(store, YESTERDAY)
    assert set(done.leftovers) == set(old) and done.bytes == 9 and not done.entries and not done.blobs
    assert set(store.files()) == {*mine, *young, f"runs/{root('run').key}.json"}


def test_an_entry_that_is_none_goes_when_it_is_old(store: Store) -> None:
    store.put(ref("a"), {}, it={"x": torch.ones(1)})
    store.write(store.path(f"{ref('a').name}.json"), b"{")
    assert not collect(store, YESTERDAY)
    for path in store.files():
        age(store, path)
    assert set(collect(store, YESTERDAY).entries) == {ref("a")} and store.files() == {}


def test_an_entry_from_before_inputs_were_told_has_none(store: Store) -> None:
    store.write(store.path(f"{ref('a').name}.json"), b'{"facts": {"x": 1}, "blobs": {}}')
    assert store.find(ref("a")) == {"x": 1} and store.entry(ref("a")).inputs == ()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b'{"name": "x"}', b'{"refs": [1]}', b"[" * 100_000,
        b'{"name": 1, "identity": "", "preset": "", "when": "", "refs": []}',
    ],
)  # fmt: skip
def test_a_root_that_cannot_be_read_stops_the_collection(data: bytes, store: Store) -> None:
    store.put(ref("a"), {})
    store.write(store.path("runs/mine.json"), data)
    before = snapshot(store)
    with pytest.raises(InputError, match=r"runs/mine\.json cannot be read, so what that run holds is not known"):
        collect(store, datetime.now(UTC) + timedelta(days=1))
    assert snapshot(store) == before


def test_the_same_run_again_replaces_its_root_and_another_one_does_not(store: Store) -> None:
    record(store, root("my run/1", "a"))
    record(store, root("my run/1", "b"))
    record(store, root("my run/1", "c", identity="1" * 64))
    found = contents(store).roots
    assert {key: found[key].refs for key in found} == {
        "my-run-1-000000000000": (ref("b"),),
        "my-run-1-111111111111": (ref("c"),),
    }
    assert found["my-run-1-000000000000"] == root("my run/1", "b")


@pytest.mark.parametrize(
    ("forget", "line"),
    [
        ("photo", r"unknown run 'photo' \(choices: photos-000000000000, photos-111111111111\)"),
        ("photos", r"run 'photos': several have that name \(choices: photos-000000000000, photos-111111111111\)"),
    ],
)
def test_a_run_to_forget_must_be_one(forget: str, line: str, store: Store) -> None:
    for identity in ("0", "1"):
        record(store, root("photos", identity=identity * 64))
    with pytest.raises(InputError, match=line):
        collect(store, YESTERDAY, [forget])
    assert len(contents(store).roots) == 2
    collect(store, YESTERDAY, ["photos-111111111111"])
    collect(store, YESTERDAY, ["photos"])  # now the only one
    assert not contents(store).roots


def test_what_a_run_finds_or_puts_counts_as_young(store: Store) -> None:
    """A run that resumes uses old results that no root holds."""
    for name in ("a", "b", "c"):
        store.put(ref(name), {}, it={"x": torch.tensor(ord(name))})
    for path in store.files():
        age(store, path)
    assert store.find(ref("a")) == {}
    store.put(ref("d"), {}, it={"x": torch.tensor(ord("b"))})
    assert set(collect(store, YESTERDAY).entries) == {ref("b"), ref("c")}
    assert store.find(ref("a")) == {} and store.find(ref("d")) == {} and len(contents(store).blobs) == 2


class _Meanwhile(Store):
    """A store in which something happens just before a file's time is looked at for the last time."""

    def __init__(self, url: str, happens: list[object]) -> None:
        super().__init__(url)
        self.happens = happens

    def written(self, path: str) -> datetime | None:
        while self.happens:
            self.happens.pop()()  # type: ignore[operator]
        return super().written(path)


def test_what_a_run_takes_up_during_the_collection_stays(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    other = Store(url)
    other.put(ref("a"), {"x": 1}, it={"x": torch.ones(1)})
    for path in other.files():
        age(other, path)
    done = collect(_Meanwhile(url, [lambda: other.find(ref("a"))]), YESTERDAY)
    assert done == Garbage({}, {}, {}) and other.find(ref("a")) == {"x": 1}
    for path in other.files():
        age(other, path)
    done = collect(_Meanwhile(url, [lambda: other.put(ref("b"), {}, it={"x": torch.ones(1)})]), YESTERDAY)
    assert set(done.entries) == {ref("a")} and not done.blobs and other.find(ref("b")) == {}


# The commands


def said(*arguments: object) -> str:
    done = CliRunner().invoke(cli.app, ["store", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_the_commands_tell_and_delete(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    filled(store, CASES["a root keeps what it reaches"])
    table = [line.split() for line in said("ls", "--store", store.url).splitlines()]
    (row,) = [cells for cells in table if "a" in cells[1:2]]
    (blob,) = store.entry(ref("a")).blobs.values()  # type: ignore[union-attr]
    size = sum(store.files()[path].size for path in (f"{ref('a').name}.json", f"blobs/{blob}"))
    assert row[3] == "1" and row[5] == str(size) and f"{LONG_AGO:%Y-%m-%d}" in row
    assert "run-000000000000" in said("ls", "--store", store.url, "--runs")
    before = snapshot(store)
    told = said("gc", "--store", store.url)
    assert told.splitlines()[:3] == [
        "would go: 1 results (z 1)",
        "would go: 1 blobs",
        "would go: 0 leftovers of writes",
    ]
    assert told.endswith("nothing was deleted; --yes deletes\n") and snapshot(store) == before
    assert "would go: nothing" in said("gc", "--store", store.url, "--older", "11")
    told = said("gc", "--store", store.url, "--forget", "run", "--yes")
    assert told.startswith("deleted: 4 results (a 1, b 1, c 1, z 1)\ndeleted: 4 blobs\n")
    assert "deleted: run run-000000000000\n" in told and store.files() == {}
    assert said("gc", "--store", store.url, "--yes") == "deleted: nothing\n"


@pytest.mark.parametrize("command", [("ls",), ("gc",), ("gc", "--yes")])
def test_a_store_that_is_not_there_is_not_made(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["retort", "store", *command, "--store", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2 and not (tmp_path / "none").exists()
    assert capsys.readouterr().err == f"retort: store {tmp_path / 'none'}: nothing is there\n"


def test_a_root_names_its_artifact(store: Store) -> None:
    record(store, root("photos", "a", "a", "b"))
    (path,) = [path for path in store.files() if path.startswith("runs/")]
    assert json.loads(store.read(store.path(path)) or b"") == {
        "name": "photos", "identity": "0" * 64, "preset": "e2d", "when": "2026-01-01T00:00:00+00:00",
        "refs": [ref("a").name, ref("b").name],
    }  # fmt: skip
