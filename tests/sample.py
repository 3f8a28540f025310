"""A small artifact for tests: its canvas, its views, and a manifest that fits them."""

import statistics
from dataclasses import replace

import tiny
import torch

from dd_tasks import augment, codec, compact, nearness
from dd_tasks.codec import Labels
from dd_tasks.label import OneHot
from dd_tasks.types import Canvas, Nearest, Views
from schemas.manifest import Claim, Manifest

K, IPC, SIDE, EPOCHS = 10, 2, 16, 3
N = K * IPC
DIGEST = "0123456789abcdef" * 4
CLASSES = ["yes", "<b>cat</b>", "1", "a|b", "*star*", *(f"class_{i}" for i in range(5, K))]


def claim(row: str, accuracies: list[float]) -> Claim:
    std = statistics.stdev(accuracies) if len(accuracies) > 1 else 0
    scores = {"accuracies": accuracies, "mean": statistics.fmean(accuracies), "std": std, "seconds": 1}
    about = {"row": row, "student": "resnet_18", "epochs": 3, "split": "test", "seeds": list(range(len(accuracies)))}
    return Claim.model_validate(about | scores)


def exact_info(epochs: int) -> dict[str, object]:
    return {"codec": "exact", "epochs": epochs, "drawn": epochs, "views": epochs * N, "rows": epochs * N, "bytes": 0}


def compact_info(labels: Labels) -> dict[str, object]:
    coding, epochs = labels.coding, labels.coding.epochs
    told = {"codec": "compact", "epochs": epochs, "drawn": EPOCHS, "views": epochs * N, "rows": len(labels.table)}
    return {**told, "top": coding.top, "step": coding.step, "bytes": 0}


def draft(epochs: int = EPOCHS, **changes: object) -> Manifest:
    shard = {"name": "train-0000.tar", "samples": 100, "bytes": 1000, "sha256": DIGEST}
    source = {"digest": DIGEST, "shards": [shard], "samples": 100}
    observer = {"name": "first", "architecture": "conv", "epochs": 3, "accuracy": 0.9, "digest": DIGEST, "seconds": 1}
    cost = {"image_updates": 1200, "seconds": {"recover": 1.5}, "peak_memory_bytes": 10**9, "machine": "2 cores"}
    fields: dict[str, object] = {
        "name": "digits",
        "preset": "sre2l",
        "recipe": {"steps": 3},
        "identity": DIGEST,
        "seed": 0,
        "ipc": IPC,
        "classes": CLASSES,
        "side": SIDE,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "source": source,
        "test": source,
        "held_out": 0.1,
        "observers": [observer],
        "cost": cost,
        "command": "retort distill digits",
        "labels": exact_info(epochs),
        "claims": [claim("distilled", [0.5, 0.52]), claim("random", [0.4, 0.42]), claim("full", [0.8])],
        "nearness": nearness.summary(tiny_nearest(), tiny_canvas().sources, torch.linspace(0.2, 0.7, N)),
        "versions": {"torch": "2"},
        "files": {},
    }
    return Manifest.model_validate(fields | changes)


def tiny_canvas() -> Canvas:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (N, 3, SIDE, SIDE), generator=rng, dtype=torch.uint8)
    return Canvas(images, torch.arange(K).repeat(IPC), tuple([(), ("one key",), ("a", "b")][i % 3] for i in range(N)))


def tiny_nearest() -> Nearest:
    """One in three is nearest to the one it began from."""
    return Nearest(tuple(["other", "one key", "c"][i % 3] for i in range(N)), torch.linspace(0.1, 1, N))


def tiny_views(epochs: int = EPOCHS) -> Views:
    rng, count = torch.Generator().manual_seed(0), N * epochs
    crops = [augment.random_crops(count, SIDE, (0.3, 1.0), rng) for _ in range(2)]
    epoch, image = torch.arange(epochs).repeat_interleave(N).int(), torch.arange(N).repeat(epochs).int()
    partners = torch.randint(0, N, (count,), generator=rng).int()
    mixes = augment.random_mix_boxes(count, SIDE, rng).short()
    mixes[::4] = 0
    logits = torch.randn(count, K, generator=rng).half()
    return Views(epoch, image, crops[0], partners, crops[1], mixes, logits)


def tiny_labels(epochs: int = EPOCHS) -> Labels:
    return codec.whole(tiny_views(epochs), tiny_canvas().targets_N, SIDE)


def grouped_views(epochs: int = EPOCHS, n: int = N, classes: int = K) -> Views:
    """Views drawn in groups, with logits that depend on image and partner."""
    rng = torch.Generator().manual_seed(1)
    drawn = OneHot(epochs=epochs, group=compact.GROUP)
    views = drawn.label(
        Canvas(torch.zeros(n, 3, SIDE, SIDE), torch.arange(n) % classes, ((),) * n), tiny.studio(classes=classes)
    )
    own_NK = 3 * torch.randn(n, classes, generator=rng)
    mixed_VK = compact.mixed_logits(views, own_NK, SIDE)
    return replace(views, logits_VK=(mixed_VK + 0.5 * torch.randn(len(views), classes, generator=rng)).half())


def compact_labels(top: int = K, step: float = 0.5, epochs: int = 2) -> Labels:
    views = grouped_views()
    soft_NK, coding = compact.fit(views, N, SIDE), compact.Coding(top, step, epochs)
    return Labels(compact.encode(views, soft_NK, coding, SIDE), soft_NK, SIDE, coding)
