"""Images a second on one core, from shards to uint8 tensors: `python -m benchmarks.stream --data DIR`.

At 32 px three shards of CIFAR-10; at 160 px windows cut at random out of the two photographs that scikit-learn bundles,
as JPEG files. Ways that are compared take turns, all in one process on one core, and read the same shards; each
comes to the median of its rounds. All but `datasets` with its own decoder use the decoder of torchvision. Written to
benchmarks/results/stream.json.
"""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

import argparse
import hashlib
import io
import random
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.environment import keep_freed_memory, prepare_environment

prepare_environment()

import torch  # noqa: E402
import torchvision.io  # noqa: E402, F401  # registers the operator
import webdataset  # noqa: E402
from PIL import Image  # noqa: E402
from sklearn.datasets import load_sample_images  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.calls import keep  # noqa: E402
from dd_tasks import pixels, shards  # noqa: E402
from dd_tasks.decoding import RGB  # noqa: E402
from dd_tasks.shards import Quarantine, Source, Streaming  # noqa: E402
from dd_tasks.store import Store  # noqa: E402
from flows.workspace import machine  # noqa: E402

BATCH, BUFFER, ROUNDS = 256, 1024, 5
WINDOWS, WINDOW_SHARDS, QUALITY = 4000, 4, 90


@dataclass(frozen=True)
class Bench:
    """Shards of square images, and a store that has them decoded."""

    source: Source
    side: int
    folder: Path

    @property
    def store(self) -> Store:
        return Store(str(self.folder / "store"))


def decoded(image: bytes) -> Tensor:
    """By the decoder alone, without any check."""
    return torch.ops.image.decode_image(torch.frombuffer(bytearray(image), dtype=torch.uint8), RGB, False)


# The ways: each yields images, or batches of them.


def plain(bench: Bench) -> Iterator[Tensor]:
    for url in bench.source.urls:
        with tarfile.open(url) as tar:
            for member in tar:
                content = tar.extractfile(member).read()  # type: ignore[union-attr]
                if member.name.endswith(".jpg"):
                    yield decoded(content)
                else:
                    int(content)


def streamed(bench: Bench) -> Iterator[Tensor]:
    for sample in shards.stream(bench.source, quarantine=Quarantine()):
        yield shards.decode(sample.image, bench.side)


def batched(bench: Bench) -> Iterator[Tensor]:
    feed = Streaming(bench.source, bench.side, shards.keep_all, BUFFER, Quarantine())
    return (batch.images_NCHW for batch in feed.batches(BATCH, seed=0))


def by_webdataset(bench: Bench) -> Iterator[Tensor]:
    found = webdataset.WebDataset(list(bench.source.urls), shardshuffle=False, empty_check=False)
    return (image for image, _ in found.map(lambda sample: (decoded(sample["jpg"]), int(sample["cls"]))))


def _datasets(bench: Bench) -> Any:
    from datasets import load_dataset

    files, cache = list(bench.source.urls), str(bench.folder / "datasets")
    return load_dataset("webdataset", data_files=files, split="train", streaming=True, cache_dir=cache)


def by_datasets(bench: Bench) -> Iterator[Image.Image]:
    return (row["jpg"] for row in _datasets(bench))


def by_datasets_and_decoder(bench: Bench) -> Iterator[Tensor]:
    from datasets import Image as Encoded

    rows = _datasets(bench).cast_column("jpg", Encoded(decode=False))
    return (decoded(row["jpg"]["bytes"]) for row in rows)


def first(bench: Bench) -> Iterator[Tensor]:
    """Decoded into the store, and an epoch out of it."""
    return _epoch(bench, bench.folder / "first")


def later(bench: Bench) -> Iterator[Tensor]:
    """In a process that finds them in the store: their checksum, and an epoch."""
    return _epoch(bench, bench.folder / "copy")


def again(bench: Bench) -> Iterator[Tensor]:
    """Any later epoch of that process."""
    return _epoch(bench, bench.folder / "store")


def _epoch(bench: Bench, store: Path) -> Iterator[Tensor]:
    feed = pixels.feed(bench.source, bench.side, Store(str(store)), quarantine=Quarantine())
    return (batch.images_NCHW for batch in feed.batches(BATCH, seed=0))


WAYS: dict[str, Callable[[Bench], Iterable[Any]]] = {
    "tarfile": plain,
    "retort: stream, decode": streamed,
    "retort: batches of a shuffle buffer": batched,
    "webdataset": by_webdataset,
    "datasets, the same decoder": by_datasets_and_decoder,
    "datasets, its own decoder": by_datasets,
    "retort: first pass, decoded into the store": first,
    "retort: another process, from the store": later,
    "retort: later passes": again,
}


def turn(bench: Bench, way: str) -> float:
    """Images a second of one pass."""
    shutil.rmtree(bench.folder / "first", ignore_errors=True)
    shutil.rmtree(bench.folder / "copy", ignore_errors=True)
    shutil.copytree(bench.folder / "store", bench.folder / "copy")  # of which nothing has been checked yet
    start, count = time.perf_counter(), 0
    for item in WAYS[way](bench):
        count += len(item) if isinstance(item, Tensor) and item.ndim == 4 else 1
    seconds = time.perf_counter() - start
    assert count == bench.source.index.samples, (way, count)
    return count / seconds


def checksum(images: Iterable[Tensor]) -> str:
    found = hashlib.sha256()
    for image in images:
        found.update(image.contiguous().numpy().tobytes())
    return found.hexdigest()


def measured(bench: Bench, about: str) -> list[dict[str, Any]]:
    """One row a way, all of the same pixels."""
    feed = pixels.feed(bench.source, bench.side, bench.store, quarantine=Quarantine())
    kept = (batch.images_NCHW for batch in feed.batches(BATCH, seed=None))
    assert checksum(plain(bench)) == checksum(in_order_of_urls(bench)) and checksum(streamed(bench)) == checksum(kept)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way in WAYS:
            found[way].append(turn(bench, way))
    base = statistics.median(found["tarfile"])
    rows = []
    for way, rates in found.items():
        rate = statistics.median(rates)
        spread = round((max(rates) - min(rates)) / rate, 3)
        rows.append({"way": way, "images_a_second": round(rate), "of_tarfile": round(rate / base, 2), "spread": spread})
        print(bench.side, rows[-1], flush=True)
    return [{"side": bench.side, "images": bench.source.index.samples, "of": about, **row} for row in rows]


def in_order_of_urls(bench: Bench) -> Iterator[Tensor]:
    """Of `streamed`, in the order in which `plain` reads."""
    for url in bench.source.urls:
        yield from streamed(Bench(opened([url]), bench.side, bench.folder))


def opened(paths: Iterable[str]) -> Source:
    return shards.open_source(list(paths), quarantine=Quarantine())


def windows(folder: Path, side: int) -> list[str]:
    """Shards of windows cut out of photographs."""
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    rng, paths = random.Random(0), [str(folder / f"windows-{i}.tar") for i in range(WINDOW_SHARDS)]
    for shard, path in enumerate(paths):
        with tarfile.open(path, "w") as tar:
            for i in range(WINDOWS // WINDOW_SHARDS):
                label = rng.randrange(len(photographs))
                for suffix, content in (("jpg", window(photographs[label], side, rng)), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{shard}-{i:04d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return paths


def window(photograph: Image.Image, side: int, rng: random.Random) -> bytes:
    left, top = (rng.randrange(length - side) for length in photograph.size)
    file = io.BytesIO()
    photograph.crop((left, top, left + side, top + side)).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the CIFAR-10 shards")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    keep_freed_memory()  # as the command line does
    rows, start = [], time.perf_counter()
    cifar10 = shards.expand([f"{arguments.data}/cifar10-train-{{0000..0002}}.tar"])
    photographs = f"windows of scikit-learn's two photographs, JPEG of quality {QUALITY}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for side, paths, about in ((32, cifar10, "CIFAR-10"), (160, windows(folder, 160), photographs)):
            bench = Bench(opened(paths), side, folder / str(side))
            rows += measured(bench, about)
    keep(
        "stream",
        {
            "command": "python -m benchmarks.stream --data CIFAR10", "machine": machine(), "rows": rows,
            "rounds": ROUNDS, "wall_seconds": round(time.perf_counter() - start, 1),
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
