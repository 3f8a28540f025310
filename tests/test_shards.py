"""Shards in: what is read, what is refused, and that every order is a function of its seed."""

import hashlib
import io
import random
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from PIL import Image
from tarred import Member, write_tar

from dd_tasks import shards
from dd_tasks.errors import InputError
from dd_tasks.packing import digits_samples, pack
from dd_tasks.shards import InMemory, Quarantine, Source, Streaming


def encoded(value: int = 100, size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(file, "PNG")
    return file.getvalue()


def sample(key: str, label: object, image: bytes | None = None) -> list[Member]:
    return [(f"{key}.png", encoded() if image is None else image), (f"{key}.cls", str(label).encode())]


def numbered(count: int, classes: int = 2) -> list[Member]:
    return [member for i in range(count) for member in sample(f"s{i:03d}", i % classes, encoded(i % 256))]


def opened(*paths: Path, tolerate: int = 0, **options: Any) -> Source:
    return shards.open_source([str(path) for path in paths], quarantine=Quarantine(tolerate), **options)


def keys(source: Source) -> list[str]:
    return [sample.key for sample in shards.stream(source, quarantine=Quarantine())]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits' test split, 355 images in 4 shards."""
    classes, samples = digits_samples("test", side=8)
    out = tmp_path_factory.mktemp("digits") / "shards"
    pack(samples, classes, out, prefix="test", samples_per_shard=100)
    return out


# What they hold


def test_shards_are_read_through_fsspec(tmp_path):
    path = write_tar(tmp_path / "a.tar", numbered(4))
    with fsspec.open("memory://bucket/a.tar", "wb") as file:
        file.write(path.read_bytes())
    remote = shards.open_source(["memory://bucket/*.tar"], quarantine=Quarantine())
    assert keys(remote) == keys(opened(path)) and remote.digest == opened(path).digest


def test_scan_counts_and_measures(tmp_path):
    path = write_tar(tmp_path / "a.tar", sample("x", 0, encoded(0)) + sample("y", 2, encoded(255)))
    index = opened(path).index
    assert index.classes == ["0", "1", "2"] and index.samples_per_class == [1, 0, 1] and index.samples == 2
    assert (index.height, index.width) == (8, 8)
    assert index.mean == pytest.approx((0.5,) * 3) and index.std == pytest.approx((0.5,) * 3)


def test_images_of_several_sizes_have_no_common_one(tmp_path):
    path = write_tar(tmp_path / "a.tar", sample("x", 0) + sample("y", 0, encoded(size=(9, 8))))
    assert (opened(path).index.height, opened(path).index.width) == (None, None)


def test_class_names_come_from_the_argument_then_the_file(tmp_path):
    path = write_tar(tmp_path / "a.tar", numbered(2))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert opened(path).index.classes == ["cat", "dog"]
    assert opened(path, classes=["x", "y"]).index.classes == ["x", "y"]
    with pytest.raises(InputError, match="'x'"):
        opened(path, classes=["x", "x"])


def test_the_index_saves_the_scan_and_agrees_with_it(digits, tmp_path):
    indexed = opened(digits / "*.tar")
    copies = [tmp_path / path.name for path in digits.glob("*.tar")]
    for copy in copies:
        copy.write_bytes((digits / copy.name).read_bytes())
    assert opened(*copies).index == indexed.index and opened(*copies).digest == indexed.digest


def test_a_selection_of_the_index_is_counted_anew(digits):
    part = opened(digits / "test-0000.tar")
    assert part.index.samples == 100 and sum(part.index.samples_per_class) == 100
    assert part.digest != opened(digits / "*.tar").digest


def test_identity_is_content_and_class_names(tmp_path):
    a, b = (write_tar(tmp_path / f"{name}.tar", numbered(3)) for name in "ab")
    assert opened(a).digest == opened(b).digest
    assert opened(a).digest != opened(a, classes=["x", "y"]).digest


def test_order_follows_content_not_names(tmp_path):
    first, second = numbered(4)[:4], numbered(4)[4:]
    (tmp_path / "x").mkdir()
    for folder, names in (("", "ab"), ("x", "ba")):
        for name, members in zip(names, (first, second), strict=True):
            write_tar(tmp_path / folder / f"{name}.tar", members)
    assert keys(opened(tmp_path / "*.tar")) == keys(opened(tmp_path / "x" / "*.tar"))


def test_one_name_in_two_folders_is_refused(tmp_path):
    (tmp_path / "x").mkdir()
    paths = [write_tar(folder / "a.tar", numbered(2)) for folder in (tmp_path, tmp_path / "x")]
    with pytest.raises(InputError, match=r"two shards are called 'a\.tar'"):
        opened(*paths)


@pytest.mark.parametrize(("cut", "message"), [(-512, "is cut short"), (512, "has grown")])
def test_a_size_unlike_the_index_is_refused(digits, tmp_path, cut, message):
    for path in digits.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    victim = tmp_path / "test-0001.tar"
    content = victim.read_bytes()
    victim.write_bytes(content[:cut] if cut < 0 else content + bytes(cut))
    with pytest.raises(InputError, match=rf"test-0001\.tar' {message}"):
        opened(tmp_path / "*.tar")


def test_a_shard_swapped_after_indexing_is_noticed(tmp_path):
    path = write_tar(tmp_path / "a.tar", numbered(4))
    source = opened(path)
    write_tar(path, numbered(3))
    with pytest.raises(InputError, match="no longer the one"):
        keys(source)


def test_an_index_that_counts_a_faulty_sample_is_corrected(tmp_path):
    path = write_tar(tmp_path / "a.tar", [*numbered(4), *sample("bad", 0)])
    trusted = opened(path).index
    write_tar(path, [*numbered(4), *sample("bad", 0, b"no image")])
    shard = trusted.shards[0].model_copy(update={"sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    (tmp_path / "index.json").write_text(trusted.model_copy(update={"shards": [shard]}).model_dump_json())
    quarantine = Quarantine(1)
    assert opened(path).index.samples == 5
    assert shards.open_source([str(path)], quarantine=quarantine).index.samples_per_class == [2, 2]
    assert [fault.key for fault in quarantine.found] == ["bad"]


# Damage


def test_a_shard_cut_anywhere_is_refused(tmp_path):
    """Unless nothing but padding after the end-of-archive marker is gone: then every sample is there."""
    path = write_tar(tmp_path / "a.tar", numbered(6))
    whole = path.read_bytes()
    end = 6 * 2 * 1024 + 1024  # two members a sample of a header and one block each, two zero blocks
    rng = random.Random(0)
    boundaries = list(range(0, end, 512))
    for cut in boundaries + rng.sample(range(end), 150) + rng.sample(range(end, len(whole)), 20):
        path.write_bytes(whole[:cut])
        if cut >= end and cut % 512 == 0:
            assert opened(path).index.samples == 6
            continue
        with pytest.raises(InputError, match=r"a\.tar"):
            opened(path, tolerate=100)


def test_flipped_bytes_raise_nothing_but_input_errors(tmp_path):
    path = write_tar(tmp_path / "a.tar", numbered(4))
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 20))):
            damaged[rng.randrange(4 * 2048 + 512)] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            opened(path, tolerate=100)
        except InputError as error:
            assert "a.tar" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("content", [b"", b"x", b"\x1f\x8b" + bytes(600), b"hello" * 1000])
def test_what_is_no_tar_is_refused(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.tar"):
        opened(tmp_path / "a.tar")


def test_an_archive_without_samples_is_refused(tmp_path):
    with pytest.raises(InputError, match="no samples"):
        opened(write_tar(tmp_path / "a.tar", [("README.txt", b"nothing")]))


FAULTS = [
    (sample("bad", 12), "class id 12 out of range 0..9"),
    (sample("bad", 10), "class id 10 out of range 0..9"),
    (sample("bad", -1), "class '-1' is not a whole number"),
    (sample("bad", "cat"), "class 'cat' is not a whole number"),
    (sample("bad", "9" * 5000), "not a whole number"),
    (sample("bad", 1, b""), "image of 0 bytes"),
    (sample("bad", 1, b"no image"), "8 bytes that are no image"),
    (sample("bad", 1, encoded()[:60]), "image"),
    (sample("bad", 1)[:1], "1 images (jpg, jpeg, png, webp) and 0 classes"),
    (sample("bad", 1)[1:], "0 images (jpg, jpeg, png, webp) and 1 classes"),
    ([*sample("bad", 1), ("bad.jpg", encoded())], "2 images"),
    ([*sample("bad", 1), ("bad.PNG", encoded())], "2 images"),
]


@pytest.mark.parametrize(("members", "reason"), FAULTS)
def test_a_fault_names_shard_key_and_reason(tmp_path, members, reason):
    path = write_tar(tmp_path / "a.tar", sample("good", 9) + members + sample("good2", 0))
    with pytest.raises(InputError) as error:
        opened(path, classes=list("abcdefghij"))
    assert str(error.value).startswith("a.tar: sample 'bad': ") and reason in str(error.value)
    assert opened(path, classes=list("abcdefghij"), tolerate=1).index.samples == 2


def test_tolerates_n_faults_and_not_one_more(tmp_path):
    path = write_tar(tmp_path / "a.tar", [m for i in range(3) for m in sample(f"bad{i}", 1, b"")] + sample("ok", 0))
    quarantine = Quarantine(3)
    source = shards.open_source([str(path)], quarantine=quarantine)
    assert [sample.key for sample in shards.stream(source, quarantine=quarantine)] == ["ok"]
    assert [(fault.shard, fault.key) for fault in quarantine.found] == [("a.tar", f"bad{i}") for i in range(3)]
    with pytest.raises(InputError, match=r"'bad2'.*\(2 faults were tolerated"):
        opened(path, tolerate=2)


def test_an_exhausted_quarantine_refuses_again(tmp_path):
    quarantine = Quarantine()
    for _ in range(2):
        with pytest.raises(InputError):
            quarantine.add("a.tar", "x", "broken")


class Boom:
    def __reduce__(self):
        return (exit, (3,))


def test_pickled_members_are_never_loaded_and_keys_are_never_paths(tmp_path):
    import pickle

    poison = pickle.dumps(Boom())
    others = [(f"x.{suffix}", poison) for suffix in ("pth", "pickle", "pyd", "seg.png", "npy")]
    path = write_tar(
        tmp_path / "a.tar",
        [("__meta__.jpg", poison), ("../../x.pth", poison), *sample("x", 0), *others, *sample("../../y", 1)],
    )
    assert keys(opened(path)) == ["x", "../../y"]
    assert sorted(child.name for child in tmp_path.iterdir()) == ["a.tar"]


# Feeds and candidates


def test_held_out_is_a_fixed_share_of_keys():
    chosen = {key for key in map(str, range(4000)) if shards.held_out(key, 0.1)}
    assert 320 < len(chosen) < 480
    assert chosen < {key for key in map(str, range(4000)) if shards.held_out(key, 0.2)}
    assert not shards.held_out("x", 0.0) and shards.held_out("x", 1.0)


def feeds(source: Source) -> list[shards.Feed]:
    options: dict[str, Any] = {"side": 8, "quarantine": Quarantine()}
    return [shards.feed(source, **options), shards.feed(source, memory_bytes=50 * 3 * 64, **options)]


def everything(batches) -> list[tuple[bytes, int]]:
    return [
        (image.numpy().tobytes(), int(label))
        for batch in batches
        for image, label in zip(batch.images_NCHW, batch.labels_N, strict=True)
    ]


def test_feeds_differ_by_memory_and_serve_the_same(digits):
    memory, streaming = feeds(opened(digits / "*.tar"))
    assert isinstance(memory, InMemory) and isinstance(streaming, Streaming) and streaming.buffer == 50
    assert memory.samples == streaming.samples == 355
    assert everything(memory.batches(50, seed=None)) == everything(streaming.batches(64, seed=None))


@pytest.mark.parametrize("which", [0, 1])
def test_a_feed_names_its_images(digits, which):
    source = opened(digits / "*.tar")
    feed = feeds(source)[which]
    named = list(feed.keyed(100))
    assert [len(names) for _, names in named] == [100, 100, 100, 55]
    assert [name for _, names in named for name in names] == keys(source)
    assert torch.equal(
        torch.cat([images_NCSS for images_NCSS, _ in named]),
        torch.cat([batch.images_NCHW for batch in feed.batches(64, seed=None)]),
    )


@pytest.mark.parametrize("which", [0, 1])
def test_epochs_differ_and_are_reproducible(digits, which):
    feed = feeds(opened(digits / "*.tar"))[which]
    first, again, second, other = (
        everything(feed.batches(64, seed=seed, epoch=epoch)) for seed, epoch in [(3, 0), (3, 0), (3, 1), (4, 0)]
    )
    assert first == again and first != second and first != other
    assert Counter(first) == Counter(second) == Counter(everything(feed.batches(64, seed=None)))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("seed", [None, 0])
def test_the_last_batch_may_be_dropped(digits, which, seed):
    feed = feeds(opened(digits / "*.tar"))[which]
    sizes = [len(batch.labels_N) for batch in feed.batches(100, seed=seed)]
    assert sizes == [100, 100, 100, 55]
    assert [len(batch.labels_N) for batch in feed.batches(100, seed=seed, drop_last=True)] == [100, 100, 100]
    first = next(feed.batches(100, seed=seed))
    assert first.images_NCHW.dtype == torch.uint8 and first.labels_N.dtype == torch.int64


def test_a_feed_keeps_what_it_is_told(digits):
    source = opened(digits / "*.tar")
    held = [key for key in keys(source) if shards.held_out(key, 0.3)]
    for memory_bytes in (1 << 30, 1):
        feed = shards.feed(
            source, side=8, keep=lambda key: key in held, quarantine=Quarantine(), memory_bytes=memory_bytes
        )
        assert feed.samples == len(held) == len(everything(feed.batches(64, seed=0)))
    with pytest.raises(InputError, match="none of 355"):
        shards.feed(source, side=8, keep=lambda key: False, quarantine=Quarantine())


def drawn(source: Source, per_class: int, seed: int = 0, **options: Any) -> shards.Candidates:
    return shards.sample_per_class(source, per_class=per_class, seed=seed, quarantine=Quarantine(), **options)


def test_candidates_are_balanced_distinct_and_reproducible(digits):
    source = opened(digits / "*.tar")
    chosen = drawn(source, 5)
    assert chosen == drawn(source, 5) and chosen.keys != drawn(source, 5, seed=1).keys
    assert list(chosen.labels) == [label for label in range(10) for _ in range(5)]
    assert len(set(chosen.keys)) == 50
    labels = {sample.key: sample.label for sample in shards.stream(source, quarantine=Quarantine())}
    assert [labels[key] for key in chosen.keys] == list(chosen.labels)


def test_every_sample_is_as_likely(tmp_path):
    source = opened(write_tar(tmp_path / "a.tar", numbered(20, classes=1)))
    counts, slots = Counter(), Counter()
    for seed in range(200):
        chosen = drawn(source, 4, seed)
        counts.update(chosen.keys)
        slots[chosen.keys[0]] += 1
    assert len(counts) == 20 and all(15 < count < 65 for count in counts.values())  # mean 40, std 6
    assert len(slots) == 20 and max(slots.values()) < 30  # mean 10


def test_the_whole_class_may_be_asked_for_and_not_one_more(tmp_path):
    path = write_tar(tmp_path / "a.tar", numbered(7))
    source = opened(path, classes=["cat", "dog"])
    assert set(drawn(source, 3).keys) <= set(keys(source))
    with pytest.raises(InputError, match="ipc 4 is above the 3 images of class 'dog'"):
        drawn(source, 4, asked="ipc")
    with pytest.raises(InputError, match="images per class 3 is above the 2 images of class 'dog'"):
        drawn(source, 3, keep=lambda key: key != "s001")


def test_undecodable_candidates_are_not_drawn(tmp_path):
    path = write_tar(tmp_path / "a.tar", sample("bad", 0, b"no image") + numbered(5, classes=1))
    source = opened(path, tolerate=1)
    with pytest.raises(InputError, match="'bad'"):
        drawn(source, 5)
    chosen = shards.sample_per_class(source, per_class=5, seed=0, quarantine=Quarantine(1))
    assert "bad" not in chosen.keys and len(chosen.keys) == 5
