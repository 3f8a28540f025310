"""Observers: networks trained on real data, then frozen; their checkpoints, held-out accuracy and statistics.

A committee is an ordered tuple of observers. Training follows the stream: one-cycle SGD, flips and small shifts, a
checkpoint every k epochs. Weights are safetensors; nothing is ever unpickled.
"""

import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from textwrap import shorten
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd_tasks.augment import shifted
from dd_tasks.compiling import for_training
from dd_tasks.errors import InputError, unknown
from dd_tasks.hub import fetch_weights
from dd_tasks.networks import Shape, build, with_features
from dd_tasks.numerics import ASK_EVERY, Watch, expect_finite, expect_learning, expect_weights
from dd_tasks.pieces import sparing, whole_or_none
from dd_tasks.ranges import Amount, Count, Positive, Several
from dd_tasks.shards import Feed
from dd_tasks.statistics import LayerStatistics, convolutions, listening, measure, patches_of, watched
from dd_tasks.types import Reading, Track, untracked

log = logging.getLogger(__name__)
LISTED = '{"observers": [{"architecture": ..., "weights": ..., "sha256": ...}, ...]}'
LINE = 16  # numbers of a line of a processor's cache
AT_ONCE = 500  # images that are scored or measured at once, where memory is enough for them
LOWER_RATE = "; lower its rate (--set observers.peak_rate=X)"
SMALLER = "look at smaller images (--side N)"


@dataclass(frozen=True)
class ObserverRecipe:
    """How one observer is made. `keep_every` epochs a checkpoint is kept, and always the last.

    `peak_rate` is the top of a one-cycle schedule for SGD with Nesterov momentum .9; `reach` the random shift, pixels.
    """

    architecture: str
    epochs: Positive
    peak_rate: Amount = 0.1
    batch: Several = 128
    weight_decay: Amount = 5e-4
    reach: Count = 4
    flip: bool = True
    keep_every: Count = 0
    seed: Count = 0

    @property
    def name(self) -> str:
        return self.architecture if self.seed == 0 else f"{self.architecture}@seed={self.seed}"


VERSION = 4  # of what a training computes: where it differs, whatever was stored by it is made again
SMALL = (
    ObserverRecipe("thin_resnet8_w16", epochs=12),
    ObserverRecipe("convnet3_bn_w64", epochs=12, peak_rate=0.05),
    ObserverRecipe("thin_vgg_w32", epochs=7),
)
TINY = (
    ObserverRecipe("thin_resnet6_w16", epochs=8, batch=32),
    ObserverRecipe("convnet3_bn_w32", epochs=8, peak_rate=0.05, batch=32),
    ObserverRecipe("thin_vgg_w16", epochs=8, batch=32),
)
REFERENCE = tuple(
    ObserverRecipe(name, epochs=200)
    for name in ("resnet18", "resnet50", "shufflenet_v2_x0_5", "mobilenet_v2", "densenet121")
)


def at_224(architecture: str, peak_rate: float = 0.1) -> ObserverRecipe:
    """Trained from scratch on large images as torchvision's references are, but for one cycle and shifts as views."""
    return ObserverRecipe(architecture, epochs=90, peak_rate=peak_rate, batch=256, weight_decay=1e-4, reach=32)


IMAGENET_SHARED = at_224("resnet18"), at_224("mobilenet_v2", 0.045), at_224("shufflenet_v2_x0_5")
EDC_IMAGENET = (*IMAGENET_SHARED, at_224("efficientnet_b0"), at_224("alexnet", 0.01))  # methods section 4
CV_DD_IMAGENET = (*IMAGENET_SHARED, at_224("resnet50"), at_224("densenet121"))  # section 6
COMMITTEES: Mapping[str, tuple[ObserverRecipe, ...]] = {
    "tiny": TINY,
    "small": SMALL,
    "reference": REFERENCE,
    "resnet18_imagenet": (at_224("resnet18"),),  # E2D's on ImageNet-21K (section 5)
    "edc_imagenet": EDC_IMAGENET,
    "cv_dd_imagenet": CV_DD_IMAGENET,
}


ON_HUB = re.compile(r"[\w.-]+/[\w.-]+(@\S+)?(?<!\.safetensors)")  # a name with a dot, timm's say, is no file's suffix
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # the normalisation of weights that do not carry their own


@dataclass(frozen=True)
class Imported:
    """A pre-trained observer: an architecture and its safetensors, a local file or `ORG/NAME[@REVISION]` on the Hub,
    with the sha256 it must have."""

    architecture: str
    weights: str
    sha256: str

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise InputError(f"sha256 {self.sha256!r} of weights {self.weights!r}: expected 64 hexadecimal digits")

    @property
    def name(self) -> str:
        return f"{self.architecture}@{self.sha256[:8]}"


Member = ObserverRecipe | Imported


def named(committee: str) -> tuple[Member, ...]:
    """The members of a committee: one of COMMITTEES, or a file that `retort committee import` wrote."""
    if committee in COMMITTEES:
        return COMMITTEES[committee]
    if committee.endswith(".json"):
        return read_committee(Path(committee))
    raise unknown("committee", committee, (*COMMITTEES, "FILE.json of `retort committee import`"))


def read_committee(path: Path) -> tuple[Imported, ...]:
    """The imported observers listed in a committee file. InputError where it is none."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["observers"]
        observers = tuple(Imported(str(e["architecture"]), str(e["weights"]), str(e["sha256"])) for e in entries)
    except FileNotFoundError:
        raise InputError(f"no committee file {path}") from None
    except (KeyError, TypeError):
        raise InputError(f"{path} is not a committee file: expected {LISTED}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a committee file: {type(error).__name__} {error}") from None
    if not observers:
        raise InputError(f"{path} lists no observers")
    return observers


def load_weights(member: Imported, shape: Shape) -> dict[str, Tensor]:
    """An imported observer's weights as our networks name them. InputError where the file is missing, is not
    safetensors, or has another sha256; NumericalError for weights that no network computes by.

    Weights without a normalisation of their own are taken to expect ImageNet's channel mean and std.
    """
    local = Path(member.weights)
    path = fetch_weights(member.weights) if ON_HUB.fullmatch(member.weights) and not local.exists() else local
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # a device or a pipe has no end
            raise InputError(f"cannot read weights {member.weights}: it is no file")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read weights {member.weights}: {error.strerror}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != member.sha256:
        raise InputError(f"weights {member.weights} have sha256 {found}, not {member.sha256}")
    try:
        weights = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise InputError(f"weights {member.weights} are not safetensors: {error}") from None
    expect_weights(weights, f"weights {member.weights}")
    if "0.mean" in weights:
        return weights
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in IMAGENET)
    return {"0.mean": mean, "0.std": std} | {f"1.{name}": tensor for name, tensor in weights.items()}


@dataclass(frozen=True)
class Observer:
    """A frozen network. `read` gives logits, and on request the moments of its watched layers' inputs, and those of the
    patches of its convolutions' inputs."""

    name: str
    net: nn.Module
    statistics: tuple[LayerStatistics, ...] = ()
    accuracy: float = 0.0
    prior: float | None = None
    patches: tuple[LayerStatistics, ...] = ()
    graphs: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)  # opinions, compiled
    layers: tuple[nn.Module, ...] = field(init=False)
    convolutions: tuple[nn.Module, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.net.eval().requires_grad_(False)
        object.__setattr__(self, "layers", watched(self.net))
        object.__setattr__(self, "convolutions", convolutions(self.net))

    def read(self, pixels_NCHW: Tensor, *, moments: bool = False, patches: bool = False) -> Reading:
        layers, convolved = self.layers if moments else (), self.convolutions if patches else ()
        with listening(layers) as heard, listening(convolved, patches_of) as by_patch:
            logits_NK = self.net(pixels_NCHW)
        return Reading(logits_NK, tuple(heard[m] for m in layers), tuple(by_patch[m] for m in convolved))

    def readings(
        self, pixels_NCHW: Tensor, targets_N: Tensor, *, moments: bool = False, patches: bool = False
    ) -> Iterator[tuple[Tensor | slice, Reading]]:
        yield slice(None), self.read(pixels_NCHW, moments=moments, patches=patches)

    @torch.no_grad()
    def embed(self, pixels_NCHW: Tensor) -> Tensor:
        """embedding_NE: what the last linear layer takes in."""
        try:
            return with_features(self.net, pixels_NCHW)[1]
        except LookupError as error:
            raise InputError(f"observer {self.name} {error}") from None

    @contextmanager
    def batch_statistics(self) -> Iterator[None]:
        """Within the block BatchNorm normalises by the batch at hand; dropout stays off, running statistics stay."""
        norms = [m for m in self.net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        kept = [(m.running_mean, m.running_var) for m in norms]
        for m in norms:
            m.running_mean = m.running_var = None
        try:
            yield
        finally:
            for m, (mean, var) in zip(norms, kept, strict=True):
                m.running_mean, m.running_var = mean, var


@dataclass(frozen=True)
class Trained:
    """One observer's weights, checkpoints by epoch (the last among them), held-out top-1 and what it took."""

    weights: dict[str, Tensor]
    checkpoints: dict[int, dict[str, Tensor]]
    accuracy: float
    epochs: int
    seconds: float


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A module whose initial weights depend on `seed` alone; torch's global generator is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def as_one(net: nn.Module) -> nn.Parameter:
    """One vector, of which all weights become views, as their gradients of its gradient: an optimiser's step is then
    one operation, not several a layer."""
    own = list(net.parameters())
    places = [0, *accumulate(math.ceil(weights.numel() / LINE) * LINE for weights in own)]
    one = nn.Parameter(own[0].new_zeros(places[-1]))
    one.grad = torch.zeros_like(one)
    for weights, place in zip(own, places, strict=False):
        view, weights.grad = (t.as_strided(weights.size(), weights.stride(), place) for t in (one.detach(), one.grad))
        weights.data = view.copy_(weights.detach())
    return one


def autocast(device: torch.device) -> object:
    """bfloat16 on a GPU; float32 on a CPU, where bfloat16 is many times slower."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def train(
    recipe: ObserverRecipe,
    shape: Shape,
    feed: Feed,
    held_out: Feed,
    *,
    device: torch.device,
    track: Track = untracked,
) -> Trained:
    """Train one observer on `feed` (uint8 images, labels); score it on `held_out`.

    InputError for an unknown architecture or a set smaller than one batch; NumericalError where its loss or its weights
    do not stay finite; ShortOfMemory.
    """
    if feed.samples < recipe.batch:
        raise InputError(f"observer {recipe.name}: {feed.samples} images are fewer than a batch of {recipe.batch}")
    if recipe.reach >= shape.side:
        raise InputError(f"observer {recipe.name}: a shift of {recipe.reach} is beyond a side of {shape.side}")
    start = time.perf_counter()
    what, remedy = f"observer {recipe.name}", "train it in smaller batches (--set observers.batch=N)"
    net, checkpoints = whole_or_none(what, remedy, lambda: _trained(recipe, shape, feed, device, track))
    score = accuracy(net, held_out, device)
    log.info("observer %s: %.1f%% on %d held-out images", recipe.name, 100 * score, held_out.samples)
    return Trained(checkpoints[recipe.epochs], checkpoints, score, recipe.epochs, time.perf_counter() - start)


def _trained(
    recipe: ObserverRecipe, shape: Shape, feed: Feed, device: torch.device, track: Track
) -> tuple[nn.Module, dict[int, dict[str, Tensor]]]:
    """The network, and its checkpoints by epoch."""
    net = seeded(lambda: build(recipe.architecture, shape), recipe.seed)
    net = net.to(device).to(memory_format=torch.channels_last)
    fast = for_training(net, recipe.epochs * feed.samples, shape.side)
    steps = recipe.epochs * (feed.samples // recipe.batch)
    optimiser = torch.optim.SGD([as_one(net)], recipe.peak_rate, 0.9, weight_decay=recipe.weight_decay, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.peak_rate, total_steps=max(steps, 5), pct_start=0.25
    )  # divides by zero at 4
    checkpoints: dict[int, dict[str, Tensor]] = {}
    batches, watch = _epochs(recipe, feed), Watch(steps, device)
    for step, (images_NCHW, labels_N, rng) in enumerate(track(batches, f"train {recipe.name}", steps), 1):
        pixels_NCHW = shifted(to_pixels(images_NCHW, device), recipe.reach, rng, flip=recipe.flip)
        with autocast(device):  # type: ignore[attr-defined]
            loss = F.cross_entropy(fast(pixels_NCHW), labels_N.to(device))
        watch.note(step - 1, loss)
        optimiser.zero_grad(set_to_none=False)
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % ASK_EVERY == 0 or step == steps:
            expect_learning(watch, steps, f"observer {recipe.name}", LOWER_RATE, recipe.epochs)
        epoch, rest = divmod(step * recipe.epochs, steps)
        if recipe.keep_every and rest == 0 and epoch % recipe.keep_every == 0:
            checkpoints[epoch] = weights_of(net)
    checkpoints[recipe.epochs] = weights_of(net)
    expect_finite(checkpoints[recipe.epochs], f"observer {recipe.name}, trained", LOWER_RATE)
    return net, checkpoints


def _epochs(recipe: ObserverRecipe, feed: Feed) -> Iterator[tuple[Tensor, Tensor, torch.Generator]]:
    rng = torch.Generator().manual_seed(recipe.seed)
    for epoch in range(recipe.epochs):
        for batch in feed.batches(recipe.batch, seed=recipe.seed, epoch=epoch, drop_last=True):
            yield batch.images_NCHW, batch.labels_N, rng


def to_pixels(images_NCHW: Tensor, device: torch.device) -> Tensor:
    """uint8 images -> float pixels in [0, 1] on the device, channels last."""
    return images_NCHW.to(device, torch.float32).div_(255).contiguous(memory_format=torch.channels_last)


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().cpu().clone().contiguous() for k, v in net.state_dict().items()}


@torch.no_grad()
def accuracy(net: nn.Module, feed: Feed, device: torch.device) -> float:
    """Top-1 as a fraction, network in eval mode."""
    net.eval()

    def scored(size: int | None) -> int:
        right = torch.zeros((), dtype=torch.int64, device=device)
        for batch in feed.batches(size or AT_ONCE, seed=None):
            right += (net(to_pixels(batch.images_NCHW, device)).argmax(1) == batch.labels_N.to(device)).sum()
        return int(right)

    return sparing(scored, AT_ONCE, "top-1", SMALLER) / max(feed.samples, 1)


def statistics(
    net: nn.Module, feed: Feed, classes: int, device: torch.device, track: Track = untracked, *, patches: bool = False
) -> tuple[LayerStatistics, ...]:
    """The layer statistics of a frozen network over the feed, by channel or by patch, in one pass."""
    net.eval()
    what = "measure patches" if patches else "measure statistics"

    def measured(size: int | None) -> tuple[LayerStatistics, ...]:
        many = size or AT_ONCE
        batches = track(feed.batches(many, seed=None), what, math.ceil(feed.samples / many))
        pairs = ((to_pixels(b.images_NCHW, device), b.labels_N) for b in batches)
        return measure(net, pairs, classes, patches=patches)[0]

    return sparing(measured, AT_ONCE, what, SMALLER)


def classes_in(architecture: str, weights: Mapping[str, Tensor], shape: Shape) -> int:
    """How many classes the last linear layer of these weights tells apart; `shape.classes` where they have none."""
    net = seeded(lambda: build(architecture, shape), 0)
    linear = [name for name, m in net.named_modules() if isinstance(m, nn.Linear)]
    found = weights.get(f"{linear[-1]}.weight") if linear else None
    return shape.classes if found is None else len(found)


def restore(architecture: str, weights: Mapping[str, Tensor], shape: Shape, device: torch.device) -> nn.Module:
    """A network with these weights. InputError where they do not fit the architecture; NumericalError where no network
    computes by them."""
    expect_weights(weights, f"weights of {architecture}")
    net = seeded(lambda: build(architecture, shape), 0)
    try:
        net.load_state_dict(dict(weights))
    except RuntimeError as error:
        reason = shorten(str(error).splitlines()[-1], 160)
        raise InputError(f"weights do not fit architecture {architecture!r}: {reason}") from None
    return net.to(device).to(memory_format=torch.channels_last)
