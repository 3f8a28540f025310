"""Pre-trained models as guides (CLoM, methods section 8): pools of frozen networks, chosen by architecture, seed, epoch
and source, one of them a step.

A pool is written as courses, separated by `;`. A course is an architecture and where its weights come from:

    convnet3@epoch=2,4,8 seeds=0..2              trained here, as it was after these epochs, from these seeds
    convnet3@epoch=2 of=8                        after 2 of 8 epochs; without `of` the last one named is the end
    convnet3@epoch=4 source=other/{0..3}.tar     the same, on the shards of another dataset
    timm/resnet18@weights=ORG/NAME sha256=...    a file or a Hub repository, safetensors

Shape letters: N views, M real images, P pool of real images, E embedding, K classes.
"""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dd_tasks.committee import Imported, Member, ObserverRecipe
from dd_tasks.errors import InputError, expect_open, unknown
from dd_tasks.networks import builder, with_features
from dd_tasks.ranges import Positive
from dd_tasks.types import Reading, RealImages, Studio
from dd_tasks.voters import Judges

POOL = "convnet3@epoch=2,4,8 seeds=0..2"
TINY_POOL = "convnet3_w32@epoch=2,4 seeds=0..1"
KEYS = ("epoch", "seeds", "of", "every", "source", "weights", "sha256")
DRAWS = 4096  # guides drawn ahead, so that no step waits for the device


@dataclass(frozen=True)
class Course:
    """How some guides of a pool come to be: a member trained on `source` (the run's own shards where None), one guide
    as it was after each of `epochs`; an imported member is one guide as it is."""

    member: Member
    epochs: tuple[int, ...] = ()
    source: str | None = None

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Where a guide's weights lie among those that its member left."""
        return tuple(f"epoch-{epoch}" for epoch in self.epochs) or ("weights",)


def courses(pool: str) -> tuple[Course, ...]:
    """What a pool asks for. InputError where it cannot be read, or names an architecture that nobody knows."""
    parts = [part.strip() for part in pool.split(";")]
    return tuple(course for part in parts for course in _courses(part, f"guides {part!r}"))


def _courses(text: str, what: str) -> Iterator[Course]:
    architecture, _, rest = text.partition("@")
    given: dict[str, str] = {}
    for pair in rest.split():
        key, equals, value = pair.partition("=")
        if key not in KEYS:
            raise unknown(f"key in {what}", key, KEYS)
        if not equals or not value:
            raise InputError(f"{what}: expected {key}=VALUE")
        given[key] = value
    builder(architecture)
    expect_open(given.get("source", ""), f"{architecture}: source", "the manifest")
    if "weights" in given:
        if set(given) != {"weights", "sha256"}:
            raise InputError(f"{what}: weights= goes with sha256=, and with nothing else")
        yield Course(Imported(architecture, given["weights"], given["sha256"].lower()))
        return
    if "epoch" not in given or "sha256" in given:
        raise InputError(f"{what}: expected epoch=, or weights= and sha256=")
    epochs = _numbers(given["epoch"], 1, f"{what}: epoch")
    (end,) = _numbers(given.get("of", str(max(epochs))), max(epochs), f"{what}: of")
    (every,) = _numbers(given.get("every", str(math.gcd(*epochs))), 1, f"{what}: every")
    if missed := [epoch for epoch in epochs if epoch % every]:
        raise InputError(f"{what}: every={every} keeps no weights of epoch {missed[0]}")
    for seed in _numbers(given.get("seeds", "0"), 0, f"{what}: seeds"):
        member = ObserverRecipe(architecture, end, peak_rate=0.05, batch=64, keep_every=every, seed=seed)
        yield Course(member, epochs, given.get("source"))


def _numbers(text: str, least: int, what: str) -> tuple[int, ...]:
    """Of 2,4,8 or 0..2, or both, each once, in order."""
    found: set[int] = set()
    for part in text.split(","):
        if not (match := re.fullmatch(r"(\d{1,4})(?:\.\.(\d{1,4}))?", part)):
            raise InputError(f"{what}={text}: expected numbers such as 2,4,8 or 0..2")
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    if not found or min(found) < least:
        raise InputError(f"{what}={text}: expected numbers from {least} on")
    return tuple(sorted(found))


def sources(pool: str) -> tuple[str, ...]:
    """The shards of other datasets that a pool is trained on."""
    return tuple(course.source for course in courses(pool) if course.source is not None)


def study(base: str, architecture: str, other: str, epochs: str, foreign: str | None) -> list[tuple[str, str]]:
    """(factor, preset): a method without guides, then with pools that differ in one factor at a time: diversity, epoch
    of the guides, architecture, and, where `foreign` shards are given, domain (methods section 8)."""
    choices = _numbers(epochs, 1, "epochs")
    middle = choices[len(choices) // 2]

    def pool(name: str, epoch: int, seeds: str, further: str = "") -> str:
        return f"{name}@epoch={epoch} of={choices[-1]} every=1 seeds={seeds}{further}"

    usual, by_other = pool(architecture, middle, "0..1"), pool(other, middle, "0..1")
    varied = [("diversity", pool(architecture, middle, seeds)) for seeds in ("0", "0..1", "0..3")]
    varied += [("epoch", pool(architecture, epoch, "0..1")) for epoch in choices]
    varied += [("architecture", text) for text in (usual, by_other, f"{usual}; {by_other}")]
    if foreign is not None:
        varied += [("domain", usual), ("domain", pool(architecture, middle, "0..1", f" source={foreign}"))]
    return [("none", base), *((factor, f"clom({base}, {text})") for factor, text in varied)]


@dataclass(frozen=True)
class Guides:
    """One guide of a pool a step, drawn at random, who sees `batch` random real images beside the views."""

    pool: str = POOL
    batch: Positive = 128
    among: Positive = 1000  # real images of a class, at most, that are kept at hand
    needs_priors = False
    needs_real = True
    tells_hardness = False  # it may know other classes

    def least(self, ipc: int) -> int:
        return 1

    def demand(self, ipc: int) -> int:
        return self.among

    def at_once(self, committee: int) -> int:
        courses(self.pool)
        return 1

    def convene(self, studio: Studio) -> Callable[[int], Judges]:
        if studio.real is None or self.pool not in studio.guides:
            raise ValueError(f"guides {self.pool!r} need their networks and real images")
        real, rng = studio.real, studio.rng
        seated = [
            Guide(f"{self.pool} [{i}]", net, real, self.batch, rng) for i, net in enumerate(studio.guides[self.pool])
        ]
        order = torch.randint(len(seated), (DRAWS,), generator=rng, device=rng.device).tolist()
        return lambda step: ((seated[order[step % DRAWS]], 1.0),)


class Guide:
    """A frozen network beside real images."""

    statistics: tuple[Any, ...] = ()
    patches: tuple[Any, ...] = ()
    prior: float | None = None

    def __init__(self, name: str, net: nn.Module, real: RealImages, batch: int, rng: torch.Generator) -> None:
        self.name, self.net, self.real, self.batch, self.rng = name, net, real, batch, rng

    def read(self, pixels_NCHW: Tensor, *, moments: bool = False, patches: bool = False) -> Reading:
        if moments or patches:
            raise InputError(f"guides {self.name}: no statistics were measured of them; judge by other terms")
        logits_NK, features_NE = with_features(self.net, pixels_NCHW)
        return Reading(logits_NK, features_NE=features_NE)

    def readings(
        self, pixels_NCHW: Tensor, targets_N: Tensor, *, moments: bool = False, patches: bool = False
    ) -> Iterator[tuple[slice, Reading]]:
        rows_M = torch.randint(len(self.real), (self.batch,), generator=self.rng, device=self.rng.device)
        rows_M = rows_M.to(self.real.targets_P.device)
        with torch.no_grad():
            real = self.read(self.real.pixels(rows_M))
        own = self.read(pixels_NCHW, moments=moments, patches=patches)
        yield slice(None), replace(own, real=real, real_targets_M=self.real.targets_P[rows_M])

    @torch.no_grad()
    def embed(self, pixels_NCHW: Tensor) -> Tensor:
        return with_features(self.net, pixels_NCHW)[1]

    def batch_statistics(self) -> AbstractContextManager[None]:
        return nullcontext()
