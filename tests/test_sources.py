"""Some of the classes of a set of shards: what is read of it, and what its identity depends on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dd_tasks import shards
from dd_tasks.decoding import decode_whole
from dd_tasks.errors import InputError
from dd_tasks.packing import digits_samples, pack
from dd_tasks.shards import Quarantine, Source
from dd_tasks.sources import MOST_LISTED, noted

EACH = 5


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """Five images of each of the digits, a shard for each class."""
    write(tmp_path / "shards", range(10))
    return tmp_path / "shards"


def write(folder: Path, labels: Any, part: int = 0) -> None:
    names, samples = digits_samples("test", side=8)
    every = list(samples)
    of = {label: [sample for sample in every if sample[3] == label] for label in labels}
    chosen = [sample for label in labels for sample in of[label][part * EACH : (part + 1) * EACH]]
    pack(chosen, names, folder, samples_per_shard=EACH, overwrite=True)


def opened(folder: Path, *only: str) -> Source:
    return shards.open_source([f"{folder}/*.tar"], only=only, quarantine=Quarantine())


def old_index(folder: Path) -> None:
    """The index.json as it was before it told classes apart."""
    index = json.loads((folder / "index.json").read_text())
    del index["pixels_per_class"]
    for entry in index["shards"]:
        del entry["classes"]
    (folder / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "edit",
    [
        {"pixels_per_class": [[0] * 7] * 10},
        {"pixels_per_class": [[-1] * 7] * 10},
        {"pixels_per_class": [[256, 9, 9, 9, 0, 0, 0]] * 10},
        {"pixels_per_class": [[10**400] * 7] * 10},
        {"height": 10**30},
        {"samples_per_class": [10**400] * 10},
    ],
)
def test_an_index_of_what_cannot_be_is_refused(digits: Path, edit: dict[str, object]) -> None:
    path = digits / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))
    with pytest.raises(InputError, match=f"^index.json beside the shards: [^\n]*({next(iter(edit))}|Value error)"):
        opened(digits, "7", "2")


def test_classes_in_use_are_numbered_in_their_order_and_no_others_are_read(digits: Path) -> None:
    source = opened(digits, "7", "2")
    samples = list(shards.stream(source, quarantine=Quarantine()))
    assert source.index.classes == ["2", "7"] and source.known == tuple("0123456789")
    assert source.index.samples_per_class == [EACH, EACH] == [sum(s.label == n for s in samples) for n in (0, 1)]
    assert [Path(url).name for url in source.urls] == ["train-0002.tar", "train-0007.tar"]
    pixels_CP = torch.cat([decode_whole(sample.image).flatten(1) for sample in samples], 1).double() / 255
    assert source.index.mean == pytest.approx(pixels_CP.mean(1).tolist())
    assert source.index.std == pytest.approx(pixels_CP.std(1, correction=0).tolist())
    feed = shards.feed(source, side=8, quarantine=Quarantine())
    assert feed.samples == 2 * EACH


@pytest.mark.parametrize("index", ["with an index", "with an old index", "without one"])
def test_shards_of_classes_that_are_not_in_use_do_not_count(digits: Path, index: str) -> None:
    whole = opened(digits, "2", "7")
    if index == "with an old index":
        old_index(digits)
    if index == "without one":
        (digits / "index.json").unlink()
    assert opened(digits, "2", "7") == whole  # read anew, it is the same
    (digits / "train-0000.tar").unlink()
    less = opened(digits, "2", "7")
    assert (less.digest, less.class_digests, less.index) == (whole.digest, whole.class_digests, whole.index)
    (digits / "train-0002.tar").unlink()
    with pytest.raises(InputError, match="ipc 1 is above the 0 images of class '2'"):
        shards.sample_per_class(opened(digits, "2", "7"), per_class=1, seed=0, quarantine=Quarantine(), asked="ipc")


def test_shards_that_are_not_in_use_are_not_opened(digits: Path) -> None:
    victim = digits / "train-0000.tar"
    victim.write_bytes(bytes(victim.stat().st_size))  # no tar any more
    assert len(list(shards.stream(opened(digits, "2", "7"), quarantine=Quarantine()))) == 2 * EACH
    with pytest.raises(InputError, match="train-0000"):
        list(shards.stream(opened(digits, "0", "7"), quarantine=Quarantine()))


def test_all_classes_are_the_source_as_it_is(digits: Path) -> None:
    assert opened(digits, *"9876543210") == opened(digits) and not opened(digits).known


def test_a_shard_changes_the_digests_of_its_classes_alone(digits: Path, tmp_path: Path) -> None:
    before = opened(digits)
    write(tmp_path / "other", range(10), part=1)
    (digits / "train-0003.tar").write_bytes((tmp_path / "other" / "train-0003.tar").read_bytes())
    (digits / "index.json").unlink()
    after = opened(digits)
    assert [a != b for a, b in zip(before.class_digests, after.class_digests, strict=True)] == [
        i == 3 for i in range(10)
    ]
    assert len(set(after.class_digests)) == 10 and before.digest != after.digest


def test_where_classes_are_not_noted_every_shard_counts_for_every_class(digits: Path) -> None:
    assert noted(range(MOST_LISTED)) == list(range(MOST_LISTED)) and noted(range(MOST_LISTED + 1)) is None
    whole = opened(digits)
    entries = [entry.model_copy(update={"classes": None}) for entry in whole.index.shards]
    mixed = Source(whole.urls, whole.index.model_copy(update={"shards": entries}))
    fewer = Source(whole.urls[1:], whole.index.model_copy(update={"shards": entries[1:]}))
    assert not set(mixed.class_digests) & set(fewer.class_digests) and len(set(mixed.class_digests)) == 10


@pytest.mark.parametrize(
    ("only", "line"),
    [(("7", "cat"), "class 'cat'.*choices: 0, 1, 2"), (("7",), "class '7' alone: a run needs two classes or more")],
)
def test_classes_that_cannot_be_used_are_one_line(digits: Path, only: tuple[str, ...], line: str) -> None:
    with pytest.raises(InputError, match=line):
        opened(digits, *only)
