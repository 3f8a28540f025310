"""Results in the store: found there or made now, and tensors in and out of it."""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
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
from dd_tasks.shards import Candidates
from dd_tasks.store import Ref, Store
from dd_tasks.types import Canvas, Crops, Nearest, Views
from flows.engines import is_away, threads_of
from flows.settings import Settings
from flows.walk import Reached, current

log = logging.getLogger("flows.tasks")
CORES = torch.get_num_threads()
Made = tuple[Mapping[str, Any], dict[str, Any]]  # facts, groups of tensors


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
    return len(facts_of(canvas, settings)["sources"])


def put_candidates(found: Candidates) -> dict[str, Tensor]:
    packed = np.frombuffer(b"".join(found.images), np.uint8).copy()
    sizes = torch.tensor([len(image) for image in found.images], dtype=torch.int64)
    return {
        "bytes": torch.from_numpy(packed),
        "sizes": sizes,
        "labels": torch.tensor(found.labels, dtype=torch.int64),
    }


def get_candidates(ref: Ref, settings: Settings) -> Candidates:
    found = store_of(settings).get(ref, "candidates")
    packed = found.tensors["candidates"]
    images = tuple(bytes(part.numpy()) for part in packed["bytes"].split(packed["sizes"].tolist()))
    return Candidates(images, tuple(packed["labels"].tolist()), tuple(found.facts["keys"]))


def put_canvas(canvas: Canvas) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors = {"images_NCHW": canvas.images_NCHW.contiguous(), "targets_N": canvas.targets_N}
    return {"sources": list(canvas.sources)}, tensors


def get_canvas(ref: Ref, settings: Settings) -> Canvas:
    found = store_of(settings).get(ref, "canvas")
    return Canvas(**found.tensors["canvas"], sources=tuple(map(tuple, found.facts["sources"])))


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
    file = torch.from_numpy(np.frombuffer(labels.to_bytes(), np.uint8).copy())
    return {"coding": dataclasses.asdict(labels.coding), "side": labels.side}, {
        "labels": {"parquet": file, "soft_NK": labels.soft_NK.contiguous()}
    }


def get_labels(ref: Ref, canvas: Canvas, settings: Settings) -> Labels:
    """The labels of the canvas as they are published, of either codec."""
    if ref.kind == "views":
        return codec.whole(get_views(ref, settings), canvas.targets_N, canvas.images_NCHW.shape[-1])
    found = store_of(settings).get(ref, "labels")
    tensors, coding = found.tensors["labels"], Coding(**found.facts["coding"])
    table = pq.read_table(pa.BufferReader(tensors["parquet"].numpy().tobytes()))
    return Labels(table, tensors["soft_NK"], found.facts["side"], coding)
