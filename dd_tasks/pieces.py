"""Batches that do not fit into memory, in pieces, where the mathematics allows it.

A frozen network that normalises by running statistics says of every image the same in whatever batch: so its reading,
and the gradient of any loss of that, can be taken piece by piece. Networks in training cannot.

Shape letters: N views, C channels, H x W pixels, E embedding, L layers.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from dd_tasks.errors import ShortOfMemory
from dd_tasks.memory import give_back
from dd_tasks.types import Moments, Observer, Reading, Studio

R = TypeVar("R")
REFUSED = (  # what a processor's libraries say, which have no exception of their own for it
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "could not create a primitive",
    "could not execute a primitive",
)

log = logging.getLogger(__name__)


def is_shortage(error: BaseException) -> bool:
    """Whether memory was asked for that is not free, of a GPU or of the machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in REFUSED)


def sparing(make: Callable[[int | None], R], whole: int, what: str, remedy: str, begin: int | None = None) -> R:
    """`make(begin)`, which is None for all at once; where memory runs out `make(size)` instead, for as many of `whole`
    at once as half of that, a quarter, and so on. ShortOfMemory where even one at a time is too much."""
    size = begin
    while True:
        try:
            return make(size)
        except (RuntimeError, MemoryError) as error:
            if not is_shortage(error):
                raise
            said = next(iter(str(error).splitlines()), "") or type(error).__name__
        size = (size or whole) // 2
        if not size:
            raise ShortOfMemory(f"{what}: out of memory ({said}); {remedy}")
        give_back()
        log.warning("%s: out of memory (%s); again, %d at a time", what, said, size)


def whole_or_none(what: str, remedy: str, make: Callable[[], R]) -> R:
    """`make()`, of what cannot be taken in pieces. ShortOfMemory with the remedy where memory runs out."""
    return sparing(lambda size: make(), 1, what, remedy)


def in_pieces(studio: Studio, size: int | None) -> Studio:
    """The studio whose observers look at no more than `size` images at once; None: at all of them."""
    if size is None:
        return studio
    observers = tuple(InPieces(observer, size) for observer in studio.observers)
    return replace(studio, observers=observers, compiled=False)


@dataclass(frozen=True)
class InPieces:
    """An observer that looks at no more than `size` images at once, and again at each piece for its gradient."""

    inner: Observer
    size: int

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def statistics(self) -> tuple[Any, ...]:
        return self.inner.statistics

    @property
    def patches(self) -> tuple[Any, ...]:
        return self.inner.patches

    @property
    def prior(self) -> float | None:
        return self.inner.prior

    def read(self, pixels_NCHW: Tensor, *, moments: bool = False, patches: bool = False) -> Reading:
        layers: set[int] = set()

        def look(part_NCHW: Tensor) -> tuple[Tensor, ...]:
            found = self.inner.read(part_NCHW, moments=moments, patches=patches)
            layers.add(len(found.moments))
            return _flat(found)

        logits_NK, *rest = _Pieces.apply(pixels_NCHW, look, self.size)
        pairs = [Moments(mean, variance) for mean, variance in zip(rest[::2], rest[1::2], strict=True)]
        (own,) = layers
        return Reading(logits_NK, tuple(pairs[:own]), tuple(pairs[own:]))

    def readings(
        self, pixels_NCHW: Tensor, targets_N: Tensor, *, moments: bool = False, patches: bool = False
    ) -> Iterator[tuple[Tensor | slice, Reading]]:
        yield slice(None), self.read(pixels_NCHW, moments=moments, patches=patches)

    def embed(self, pixels_NCHW: Tensor) -> Tensor:
        return torch.cat([self.inner.embed(part) for part in pixels_NCHW.split(self.size)])

    def batch_statistics(self) -> AbstractContextManager[None]:
        raise ShortOfMemory(
            f"observer {self.name}: out of memory, and a batch that it normalises by cannot be looked at in pieces; "
            "take smaller ones (--set labeller.batch_statistics=N)"
        )


def _flat(reading: Reading) -> tuple[Tensor, ...]:
    """All that a frozen observer says, a row an image: logits, then mean and variance of each layer."""
    return reading.logits_NK, *(t for m in (*reading.moments, *reading.patches) for t in (m.mean_NC, m.variance_NC))


class _Pieces(torch.autograd.Function):
    """Of each piece only what is said of it is kept; its graph is built again when the gradient is asked for."""

    @staticmethod
    def forward(ctx: Any, pixels_NCHW: Tensor, look: Callable[[Tensor], Sequence[Tensor]], size: int) -> Any:
        ctx.save_for_backward(pixels_NCHW)
        ctx.look, ctx.size = look, size
        said = [look(part) for part in pixels_NCHW.split(size)]
        return tuple(torch.cat(column) for column in zip(*said, strict=True))

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        (pixels_NCHW,) = ctx.saved_tensors
        found = []
        for part, *theirs in zip(pixels_NCHW.split(ctx.size), *(s.split(ctx.size) for s in slopes), strict=True):
            leaf_NCHW = part.detach().requires_grad_()
            with torch.enable_grad():
                said = ctx.look(leaf_NCHW)
            asked = [(one, slope) for one, slope in zip(said, theirs, strict=True) if one.requires_grad]
            outputs, gradients = zip(*asked, strict=True)
            (slope_NCHW,) = torch.autograd.grad(outputs, leaf_NCHW, gradients, allow_unused=True)
            found.append(slope_NCHW)
        return torch.cat(found), None, None
