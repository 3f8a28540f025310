"""Results in the store: found there or made now, and tensors in and out of it."""

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from dd_tasks import codec
from dd_tasks.codec import Labels
from dd_tasks.compact import Coding
from dd_tasks.errors import InputError
from dd_tasks.garbage import Root, record
from dd_tasks.initialise import Part, joined
from dd_tasks.shards import Candidates
from dd_tasks.store import Ref, Store
from dd_tasks.types import Canvas, Crops, Nearest, Views
from flows.engines import is_away, threads_of
from flows.settings import Settings
from flows.walk import Reached, current

log = logging.getLogger("flows.tasks")
CORES = torch.get_num_threads()
Made = tuple[Mapping[str, Any], dict[str, Any]]  # facts, and groups of tensors, or their sha256 in the store
CANDIDATE_BYTES = 4 << 20  # of encoded images that lie together, at most, unless a class has more


@lru_cache(maxsize=4)
def store_of(settings: Settings) -> Store:
    return Store(settings.store)


def kept(
    ref: Ref, what: str, settings: Settings, make: Callable[[], Made], made_of: tuple[Ref | str, ...] = (),
    read: Iterable[Ref] = (),
) -> Ref:  # fmt: skip
    """The reference, once its result is in the store: found there, or made now. In a walk neither, but noted.

    `made_of` are the results that go into it, and by their names in `explain.changes` the parts of the specification
    that do; `read` are results that `make` reads besides.
    """
    walk = current()
    if walk and walk.wanted not in (None, ref):
        return ref
    store = store_of(settings)
    found = store.find(ref) is not None
    if walk and walk.wanted is None:
        walk.look(what, ref, found, made_of)
        return ref
    if found:
        log.info("%s: found in the store (%s)", what, ref)
    elif is_away():
        _have_made(ref, what, settings)
    else:
        _make(ref, what, settings, make, [*(part for part in made_of if isinstance(part, Ref)), *read])
    if walk:
        raise Reached
    return ref


def _have_made(ref: Ref, what: str, settings: Settings) -> None:
    from flows import pool

    pool.make(ref, what, settings)
    if store_of(settings).find(ref) is None:
        raise InputError(f"{what}: its worker left no {ref} in the store {settings.store}: is that the worker's too?")
    log.info("%s: made by a worker (%s)", what, ref)


def _make(ref: Ref, what: str, settings: Settings, make: Callable[[], Made], inputs: Iterable[Ref]) -> None:
    use_threads(settings)
    began, start = time.time(), time.perf_counter()
    facts, groups = make()
    seconds = time.perf_counter() - start
    store_of(settings).put(ref, {**facts, "began": round(began, 3), "seconds": round(seconds, 3)}, inputs, **groups)
    log.info("%s: made in %.1f s (%s)", what, seconds, ref)


def use_threads(settings: Settings) -> None:
    """Work on as many cores as a stage may have: sums over a batch depend on their number."""
    wanted = threads_of(settings) or CORES
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)


def hold(name: str, digest: str, preset: str, refs: Iterable[Ref], settings: Settings) -> None:
    """From now on the store keeps these results of a run, and all that they were made of."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    record(store_of(settings), Root(name, digest, preset, when, tuple(refs)))


def facts_of(ref: Ref, settings: Settings) -> dict[str, Any]:
    return store_of(settings).get(ref).facts


def images_of(canvas: Ref, settings: Settings) -> int:
    """How many images a canvas has."""
    return int(facts_of(canvas, settings)["bounds"][-1])


def put_candidates(found: Candidates, settings: Settings) -> Made:
    """In parts of whole classes, so that no reader needs to hold those of all."""
    store, groups, first, size = store_of(settings), [], 0, 0
    for stop, (image, label, following) in enumerate(
        zip(found.images, found.labels, (*found.labels[1:], None), strict=False), 1
    ):
        size += len(image)
        if following is None or (size >= CANDIDATE_BYTES and following != label):
            groups.append(store.put_group(_candidates(found, slice(first, stop))))
            first, size = stop, 0
    return {"parts": len(groups)}, {f"candidates-{i}": group for i, group in enumerate(groups)}


def _candidates(found: Candidates, rows: slice) -> dict[str, Tensor]:
    images = found.images[rows]
    return {
        "bytes": _bytes(b"".join(images)),
        "sizes": torch.tensor([len(image) for image in images], dtype=torch.int64),
        "labels": torch.tensor(found.labels[rows], dtype=torch.int64),
        "keys": _bytes(json.dumps(found.keys[rows]).encode()),
    }


def _bytes(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def get_candidates(ref: Ref, settings: Settings) -> Iterator[Candidates]:
    """Part by part, each of whole classes; those of all are never held together."""
    store = store_of(settings)
    for name in (f"candidates-{i}" for i in range(store.get(ref).facts["parts"])):
        packed = store.get(ref, name).tensors[name]
        images = tuple(bytes(part.numpy()) for part in packed["bytes"].split(packed["sizes"].tolist()))
        yield Candidates(images, tuple(packed["labels"].tolist()), tuple(json.loads(bytes(packed["keys"].numpy()))))


def put_canvas(parts: Iterable[Part], settings: Settings) -> Made:
    """Of each part the first slot and the images, in any order; it is in the store before the next one is made.

    The group of slots [start, stop) is `canvas-START`; `bounds` are the starts, and where the last part stops.
    """
    store, stop = store_of(settings), 0
    groups: dict[int, str] = {}
    for start, part in parts:
        pixels = {"images_NCHW": part.images_NCHW.contiguous(), "targets_N": part.targets_N.contiguous()}
        groups[start] = store.put_group({**pixels, "sources": _bytes(json.dumps(part.sources).encode())})
        stop = max(stop, start + len(part))
    return _bounded(groups, stop)


def _bounded(groups: dict[int, str], stop: int) -> Made:
    starts = sorted(groups)
    return {"bounds": [*starts, stop]}, {f"canvas-{start}": groups[start] for start in starts}


def get_canvas(ref: Ref, settings: Settings, slots: slice = slice(None)) -> Canvas:
    """These slots of a canvas, by default all; no more is read than the parts that hold them."""
    bounds = facts_of(ref, settings)["bounds"]
    start, stop, _ = slots.indices(bounds[-1])
    held = [first for first, end in pairwise(bounds) if first < stop and start < end]
    found = store_of(settings).get(ref, *(f"canvas-{first}" for first in held)).tensors
    whole = joined([_canvas(found[f"canvas-{first}"]) for first in held])
    return whole[start - held[0] : stop - held[0]]


def _canvas(group: dict[str, Tensor]) -> Canvas:
    sources = json.loads(bytes(group["sources"].numpy()))
    return Canvas(group["images_NCHW"], group["targets_N"], tuple(map(tuple, sources)))


def join_canvases(canvases: Iterable[Ref], settings: Settings) -> Made:
    """One canvas after the other: of the parts that lie in the store already, neither read nor written again."""
    store, stop = store_of(settings), 0
    groups: dict[int, str] = {}
    for ref in canvases:
        entry = store.known(ref)
        *starts, length = entry.facts["bounds"]
        groups |= {stop + start: entry.blobs[f"canvas-{start}"] for start in starts}
        stop += length
    return _bounded(groups, stop)


def put_nearest(near: Nearest, random_N: Tensor) -> Made:
    """The nearest real images of a canvas, and beside them the similarities of as many random real ones to others."""
    similarities = {"similarity_N": near.similarity_N.contiguous(), "random_N": random_N.contiguous()}
    return {"keys": list(near.keys)}, {"nearness": similarities}


def get_nearest(ref: Ref, settings: Settings) -> tuple[Nearest, Tensor]:
    found = store_of(settings).get(ref, "nearness")
    similarities = found.tensors["nearness"]
    return Nearest(tuple(found.facts["keys"]), similarities["similarity_N"]), similarities["random_N"]


def put_views(views: Views) -> dict[str, Tensor]:
    flat = {f.name: getattr(views, f.name) for f in dataclasses.fields(views)}
    for name in ("crops", "partner_crops"):
        crops = flat.pop(name)
        flat |= {f"{name}.boxes_N4": crops.boxes_N4, f"{name}.flips_N": crops.flips_N}
    return {name: tensor.contiguous() for name, tensor in flat.items()}


def get_views(ref: Ref, settings: Settings) -> Views:
    flat = store_of(settings).get(ref, "views").tensors["views"]
    crops = {
        name: Crops(flat.pop(f"{name}.boxes_N4"), flat.pop(f"{name}.flips_N")) for name in ("crops", "partner_crops")
    }
    columns: dict[str, Any] = {**flat, **crops}
    return Views(**columns)


def put_labels(labels: Labels) -> Made:
    """Compact labels: the file as it is published, and what completes it."""
    assert labels.coding is not None
    return {"coding": dataclasses.asdict(labels.coding), "side": labels.side}, {
        "labels": {"parquet": _bytes(labels.to_bytes()), "soft_NK": labels.soft_NK.contiguous()}
    }


def get_labels(ref: Ref, canvas: Canvas, settings: Settings) -> Labels:
    """The labels of the canvas as they are published, of either codec."""
    if ref.kind == "views":
        return codec.whole(get_views(ref, settings), canvas.targets_N, canvas.images_NCHW.shape[-1])
    found = store_of(settings).get(ref, "labels")
    tensors, coding = found.tensors["labels"], Coding(**found.facts["coding"])
    table = pq.read_table(pa.BufferReader(tensors["parquet"].numpy().tobytes()))
    return Labels(table, tensors["soft_NK"], found.facts["side"], coding)
