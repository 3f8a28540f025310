"""Decoded images in a store: served as those that are decoded anew, kept and made again as results are."""

import errno
import hashlib
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from tarred import Member, write_tar
from test_shards import encoded, everything, numbered, opened, sample

from dd_tasks import pixels, shards
from dd_tasks.errors import InputError
from dd_tasks.feeds import Feed, InMemory, Part
from dd_tasks.garbage import Root, collect, contents, kinds, record
from dd_tasks.shards import Quarantine, Source
from dd_tasks.store import Ref, Store

SIDE = 8
LATER = datetime.now(UTC) + timedelta(days=1)
KEEPS: dict[str, Callable[[str], bool]] = {
    "all": shards.keep_all,
    "training": lambda key: not shards.held_out(key, 0.3),
    "held-out": lambda key: shards.held_out(key, 0.3),
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Two shards of images of several sizes."""
    first = [m for i in range(40) for m in sample(f"a{i}", i % 3, encoded(i, (SIDE + i % 3, SIDE)))]
    return opened(write_tar(tmp_path / "a.tar", first), write_tar(tmp_path / "b.tar", numbered(30, classes=3)))


def cached(source: Source, store: Store, keep: str = "all", **options: Any) -> Feed:
    return pixels.feed(source, SIDE, store, keep=KEEPS[keep], quarantine=Quarantine(), **options)


def images(store: Store) -> Path:
    """The file of the images, which is the largest."""
    return max((Path(store.root) / "blobs").iterdir(), key=lambda path: path.stat().st_size)


def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("an image is decoded")

    monkeypatch.setattr(shards, "decode", refuse)


@pytest.mark.parametrize("keep", KEEPS)
def test_batches_are_bit_for_bit_those_that_are_decoded_anew(source, store, keep, monkeypatch):
    expected = shards.feed(source, side=SIDE, keep=KEEPS[keep], quarantine=Quarantine())
    cached(source, store)
    no_decoding(monkeypatch)
    found = cached(source, store, keep)
    assert isinstance(expected, InMemory) and isinstance(found, InMemory if keep == "all" else Part)
    assert found.samples == expected.samples
    for seed, epoch, drop_last in ((None, 0, False), (None, 0, True), (0, 0, False), (0, 1, True), (7, 3, False)):
        both = [feed.batches(16, seed=seed, epoch=epoch, drop_last=drop_last) for feed in (found, expected)]
        for ours, theirs in zip(*both, strict=True):
            assert torch.equal(ours.images_NCHW, theirs.images_NCHW) and torch.equal(ours.labels_N, theirs.labels_N)
            assert ours.images_NCHW.dtype == torch.uint8 and ours.labels_N.dtype == torch.int64
    for (ours_NCHW, our_keys), (theirs_NCHW, their_keys) in zip(found.keyed(16), expected.keyed(16), strict=True):
        assert torch.equal(ours_NCHW, theirs_NCHW) and our_keys == their_keys


def test_parts_share_one_file_and_other_sides_have_their_own(source, store):
    for keep in KEEPS:
        cached(source, store, keep)
    assert set(contents(store).entries) == {pixels.ref_of(source, SIDE)}
    pixels.feed(source, SIDE + 1, store, quarantine=Quarantine())
    assert len(contents(store).entries) == 2
    sizes = {file.size for file in contents(store).blobs.values()}
    assert {70 * 3 * SIDE**2, 70 * 3 * (SIDE + 1) ** 2} < sizes


def test_the_file_is_keyed_by_what_shards_hold_and_not_by_their_names(tmp_path, source, store):
    cached(source, store)
    (tmp_path / "moved").mkdir()
    moved = opened(*((tmp_path / f"{name}.tar").rename(tmp_path / "moved" / f"x{name}.tar") for name in "ab"))
    for path in (tmp_path / "moved").iterdir():
        path.unlink()  # not one byte of them is read again
    assert everything(cached(moved, store).batches(16, seed=0)) == everything(cached(source, store).batches(16, seed=0))


def test_what_is_mapped_is_the_file_of_the_store(source, store):
    """Which a write to what is mapped does not reach."""
    cached(source, store)
    before = images(store).read_bytes()
    found = cached(source, store)
    assert isinstance(found, InMemory)
    found.images_NCHW.zero_()
    assert images(store).read_bytes() == before
    found = cached(source, store)
    assert isinstance(found, InMemory) and found.images_NCHW.any()
    assert images(store).name in Path("/proc/self/maps").read_text()


def test_images_that_do_not_fit_are_read_every_epoch_and_kept_nowhere(source, store, tmp_path):
    fits = 70 * 3 * SIDE**2
    assert isinstance(cached(source, store, memory_bytes=fits - 1), shards.Streaming)
    assert not (tmp_path / "store").exists()
    assert isinstance(cached(source, store, memory_bytes=fits), InMemory) and contents(store).entries


def test_a_store_that_is_elsewhere_keeps_none(source):
    elsewhere = Store("memory://elsewhere/store")
    assert isinstance(cached(source, elsewhere), InMemory) and not contents(elsewhere).entries


# Harm


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _alter(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize("about", [{}, {"labels_N": torch.zeros(9**6).long(), "keys": torch.zeros(9**6).byte()}])
def test_what_a_stranger_put_there_is_not_mapped_unless_it_agrees(source, store, about, caplog):
    cached(source, store)
    ref = pixels.ref_of(source, SIDE)
    entry = store.known(ref)
    store.put(ref, entry.facts, images=entry.blobs["images"], about=about or {"else": torch.zeros(1)})
    assert cached(source, store).samples == source.index.samples
    assert any("does not agree; made again" in line for line in caplog.messages)


@pytest.mark.parametrize("harm", [_cut, _alter, Path.unlink])
@pytest.mark.parametrize("which", ["images", "about"])
def test_a_harmed_file_is_noticed_and_made_again(source, store, harm, which, caplog):
    expected = everything(cached(source, store).batches(16, seed=0))
    entry = store.entry(pixels.ref_of(source, SIDE))
    assert entry
    harm(Path(store.path("blobs", entry.blobs[which])))
    assert everything(cached(source, store).batches(16, seed=0)) == expected
    assert pixels.get(source, SIDE, store) is not None
    assert ("images is missing or altered in the store; made again" in caplog.text) == (which == "images")


def test_a_process_that_dies_while_it_decodes_leaves_nothing_that_counts(source, store, tmp_path):
    script = (
        "import os, signal, sys; from dd_tasks import pixels, shards; from dd_tasks.store import Store\n"
        "source = shards.open_source(sys.argv[2:], quarantine=shards.Quarantine())\n"
        "die = lambda items, *_: (os.kill(os.getpid(), 9) if i == 30 else item for i, item in enumerate(items))\n"
        f"pixels.feed(source, {SIDE}, Store(sys.argv[1]), quarantine=shards.Quarantine(), track=die)\n"
    )
    command = [sys.executable, "-c", script, store.url, *source.urls]
    assert subprocess.run(command, check=False).returncode == -9
    found = contents(store)
    assert not found.entries and not found.blobs and len(found.leftovers) == 1
    expected = everything(shards.feed(source, side=SIDE, quarantine=Quarantine()).batches(16, seed=0))
    assert everything(cached(source, store).batches(16, seed=0)) == expected
    assert len(collect(store, LATER).leftovers) == 1


def test_a_full_disk_leaves_images_in_memory(source, store, monkeypatch, caplog):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    expected = everything(shards.feed(source, side=SIDE, quarantine=Quarantine()).batches(16, seed=0))
    monkeypatch.setattr("dd_tasks.store.Filling.write", full)
    assert everything(cached(source, store).batches(16, seed=0)) == expected
    assert "no room for decoded images (No space left on device); they stay in memory" in caplog.text
    assert not contents(store).entries and not contents(store).blobs and not contents(store).leftovers


# Faults


FAULTY = [  # of them, one image that is held out cannot be decoded, and one that is not
    *numbered(20), *sample("h1", 0, b"no image"), *sample("t1", 0, b"no image"), *sample("x", 77),
]  # fmt: skip


def _held(key: str) -> bool:
    return key.startswith("h") or key in ("s000", "x")


PARTS: dict[str, tuple[Callable[[str], bool], list[str]]] = {
    "all": (shards.keep_all, ["h1", "t1", "x"]),
    "training": (lambda key: not _held(key), ["t1", "x"]),
    "held-out": (_held, ["h1", "x"]),
}


def faulty(tmp_path: Path, members: list[Member]) -> Source:
    """As an index.json tells of it that counts faulty samples."""
    source = opened(write_tar(tmp_path / "f.tar", members), classes=["a", "b"], tolerate=9)
    return Source(source.urls, source.index.model_copy(update={"samples_per_class": [100, 100]}))


def told(feed: Callable[[Quarantine], Feed], limit: int) -> tuple[object, list[str]]:
    """The images, or the error, and the faults that were found."""
    quarantine = Quarantine(limit)
    try:
        return everything(feed(quarantine).batches(8, seed=3)), list(map(str, quarantine.found))
    except InputError as error:
        return str(error), list(map(str, quarantine.found))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("limit", [0, 1, 2, 3])
@pytest.mark.parametrize("first", ["none", *PARTS])
def test_faults_are_counted_as_they_are_without_a_cache(tmp_path, store, part, limit, first):
    """Whichever part was decoded first, with whatever tolerance."""
    source, (keep, keys) = faulty(tmp_path, FAULTY), PARTS[part]
    expected = told(lambda q: shards.feed(source, side=SIDE, keep=keep, quarantine=q), limit)
    if first != "none":
        pixels.feed(source, SIDE, store, keep=PARTS[first][0], quarantine=Quarantine(3))
    assert told(lambda q: pixels.feed(source, SIDE, store, keep=keep, quarantine=q), limit) == expected
    assert [fault.split("'")[1] for fault in expected[1]] == keys[: limit + 1]
    assert isinstance(expected[0], str) == (limit < len(keys))


def test_a_key_that_comes_again_after_a_fault_is_left_out_as_it_is_without_a_cache(tmp_path, store):
    twice = [
        *sample("h1", 0, b"no image"),
        *numbered(4),
        *sample("h1", 0),
        *sample("t1", 9),
        *numbered(2),
        *sample("t1", 0),
    ]
    source = faulty(tmp_path, twice)
    for keep, _ in PARTS.values():
        expected = told(lambda q, keep=keep: shards.feed(source, side=SIDE, keep=keep, quarantine=q), 3)
        assert told(lambda q, keep=keep: pixels.feed(source, SIDE, store, keep=keep, quarantine=q), 3) == expected


def test_nothing_that_is_kept_is_said(tmp_path, source, store):
    for _ in range(2):
        with pytest.raises(InputError, match="none of 70 samples is kept"):
            pixels.feed(source, SIDE, store, keep=lambda key: False, quarantine=Quarantine())


def test_images_that_all_are_faulty_are_not_kept(tmp_path, store):
    path = write_tar(tmp_path / "f.tar", sample("b", 0))
    entry = opened(path).index.shards[0]
    write_tar(path, sample("b", 0, b"no image"))
    changed = entry.model_copy(update={"sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    index = opened(write_tar(tmp_path / "g.tar", sample("b", 0))).index.model_copy(update={"shards": [changed]})
    for _ in range(2):
        with pytest.raises(InputError, match="none of 1 samples is kept"):
            pixels.feed(Source((str(path),), index), SIDE, store, quarantine=Quarantine(1))
    assert not contents(store).entries


# In the store


def test_it_is_listed_held_and_collected_as_results_are(source, store):
    cached(source, store)
    ref, observer = pixels.ref_of(source, SIDE), Ref("observer", "0" * 64)
    (kind,) = kinds(contents(store))
    assert (kind.name, kind.count) == ("pixels", 1) and kind.bytes > 70 * 3 * SIDE**2
    store.put(observer, {}, [ref])
    record(store, Root("run", "0" * 64, "e2d", "2026-01-01T00:00:00+00:00", (observer,)))
    assert not collect(store, LATER)
    assert set(collect(store, LATER, ["run"]).entries) == {ref, observer} and not contents(store).blobs
