"""Canvases and candidates in the store: in parts, of which no more is read than is asked for."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from dd_tasks import initialise
from dd_tasks.initialise import cut, joined
from dd_tasks.shards import Candidates
from dd_tasks.store import Ref, Result, Store
from dd_tasks.types import Canvas
from flows import stored
from flows.settings import Settings
from flows.stored import get_candidates, get_canvas, images_of, join_canvases, put_candidates, put_canvas, store_of


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A store of its own, and canvases in parts of four slots."""
    monkeypatch.setattr(initialise, "PART", 4)
    return Settings(store=str(tmp_path / "store"), device="cpu")


def put(name: str, canvas: Canvas, settings: Settings) -> Ref:
    facts, groups = put_canvas(cut(canvas), settings)
    return store_of(settings).put(Ref("canvas", name), facts, **groups)


def same(found: Canvas, expected: Canvas) -> bool:
    alike = torch.equal(found.images_NCHW, expected.images_NCHW) and torch.equal(found.targets_N, expected.targets_N)
    return alike and found.sources == expected.sources


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The groups that stores are asked for from now on."""
    asked: list[str] = []

    def get(self: Store, ref: Ref, *groups: str) -> Result:
        asked.extend(groups)
        return whole(self, ref, *groups)

    whole = Store.get
    monkeypatch.setattr(Store, "get", get)
    return asked


@pytest.mark.parametrize(
    ("slots", "parts"),
    [
        (slice(None), [0, 4, 8]),
        (slice(0, 4), [0]),
        (slice(3, 5), [0, 4]),
        (slice(4, 8), [4]),
        (slice(5, 6), [4]),
        (slice(7, 10), [4, 8]),
        (slice(8, 100), [8]),
    ],
)
def test_slots_are_read_from_the_parts_that_hold_them_alone(
    slots: slice, parts: list[int], settings: Settings, read: list[str]
) -> None:
    canvas = replace(tiny.canvas(10), sources=((), ("a", "b"), *((f"real-{i}",) for i in range(2, 10))))
    ref = put("whole", canvas, settings)
    assert same(get_canvas(ref, settings, slots), canvas[slots])
    assert read == [f"canvas-{start}" for start in parts] and images_of(ref, settings) == 10


def test_parts_may_be_made_in_any_order(settings: Settings) -> None:
    canvas = tiny.canvas(10)
    parts = list(cut(canvas))
    assert put_canvas(iter(parts[::-1]), settings) == put_canvas(iter(parts), settings)


def test_canvases_are_joined_without_a_byte_read_or_written(settings: Settings, read: list[str]) -> None:
    panels = [tiny.canvas(6, seed=1), tiny.canvas(3, seed=2), tiny.canvas(1, seed=3)]
    refs = [put(f"panel {i}", panel, settings) for i, panel in enumerate(panels)]
    blobs = set((Path(settings.store) / "blobs").iterdir())
    facts, groups = join_canvases(refs, settings)
    store = store_of(settings)
    assert read == [] and set((Path(settings.store) / "blobs").iterdir()) == blobs
    gathered = store.put(Ref("canvas", "gathered"), facts, refs, **groups)
    assert store.find(gathered) == facts == {"bounds": [0, 4, 6, 9, 10]}
    assert same(get_canvas(gathered, settings), joined(panels))
    assert same(get_canvas(gathered, settings, slice(5, 7)), joined(panels)[5:7])


@pytest.mark.parametrize("most", [1, 1500, 1 << 22])
def test_candidates_come_in_parts_of_whole_classes(
    most: int, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "CANDIDATE_BYTES", most)
    candidates = tiny.digit_candidates(5)
    facts, groups = put_candidates(candidates, settings)
    parts = list(get_candidates(store_of(settings).put(Ref("candidates", "all"), facts, **groups), settings))
    for field in ("images", "labels", "keys"):
        assert tuple(x for part in parts for x in getattr(part, field)) == getattr(candidates, field)
    classes = [set(part.labels) for part in parts]
    assert sum(map(len, classes)) == 10 and len(parts) == {1: 10, 1 << 22: 1}.get(most, len(parts))
    if most == 1500:
        assert 1 < len(parts) <= 10 and all(sum(map(len, part.images)) >= most for part in parts[:-1])


def test_no_candidates_are_no_parts(settings: Settings) -> None:
    facts, groups = put_candidates(Candidates((), (), ()), settings)
    assert (facts, groups) == ({"parts": 0}, {})
    ref = store_of(settings).put(Ref("candidates", "none"), facts, **groups)
    found: Iterable[object] = get_candidates(ref, settings)
    assert list(found) == []
