"""What moves between the parts. Imports torch alone.

Shape letters: N images (slots of a panel or of a canvas), V labelled views, M remembered crops, C channels (3),
H x W pixels, S the side of a square image, K classes. `pixels` are floats in [0, 1], `images` are uint8; boxes are
(top, left, height, width) in whole pixels.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class Track(Protocol):
    """Watches a long loop: yields the items unchanged, and may show how far it is."""

    def __call__(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]: ...


def untracked(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """The Track that shows nothing."""
    return iter(items)


@dataclass(frozen=True)
class Canvas:
    """Distilled images: uint8 `images_NCHW` of classes `targets_N` (int64), and the keys of the real images that each
    began from, none where it began as noise."""

    images_NCHW: Tensor
    targets_N: Tensor
    sources: tuple[tuple[str, ...], ...]

    @property
    def began_as(self) -> str:
        """What the images were before the first step: `real` or `noise`."""
        return "real" if any(self.sources) else "noise"

    def __len__(self) -> int:
        return len(self.targets_N)

    def __getitem__(self, slots: slice) -> "Canvas":
        return Canvas(self.images_NCHW[slots], self.targets_N[slots], self.sources[slots])


@dataclass(frozen=True)
class Nearest:
    """Of each image of a canvas the training image that is most like it: its key, and how like it is (float32
    `similarity_N`, 1 for a copy)."""

    keys: tuple[str, ...]
    similarity_N: Tensor

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, slots: slice) -> "Nearest":
        return Nearest(self.keys[slots], self.similarity_N[slots])


def slots_of(targets_N: Tensor) -> Tensor:
    """Of each image, how many images of its class come before it."""
    order = torch.argsort(targets_N, stable=True)
    counts = torch.bincount(targets_N)
    first = counts.cumsum(0) - counts
    slots = torch.empty_like(targets_N)
    slots[order] = torch.arange(len(targets_N)) - first[targets_N[order]]
    return slots


@dataclass(frozen=True)
class Crops:
    """One crop per image: int64 `boxes_N4`, bool `flips_N` (left-right, after the crop)."""

    boxes_N4: Tensor
    flips_N: Tensor

    def __getitem__(self, rows: Tensor | slice) -> "Crops":
        return Crops(self.boxes_N4[rows], self.flips_N[rows])

    def to(self, device: torch.device) -> "Crops":
        return Crops(self.boxes_N4.to(device), self.flips_N.to(device))


@dataclass(frozen=True)
class CropMemory:
    """At most M hard crops an image, on the device. `hardness_NM` is the crop's cross-entropy, -inf where empty;
    `easy_N` counts the fresh crops since the last hard one."""

    boxes_NM4: Tensor
    flips_NM: Tensor
    hardness_NM: Tensor
    easy_N: Tensor

    @classmethod
    def empty(cls, images: int, capacity: int, device: torch.device) -> "CropMemory":
        return cls(
            torch.zeros(images, capacity, 4, dtype=torch.int64, device=device),
            torch.zeros(images, capacity, dtype=torch.bool, device=device),
            torch.full((images, capacity), -torch.inf, device=device),
            torch.zeros(images, dtype=torch.int64, device=device),
        )

    @property
    def occupied_NM(self) -> Tensor:
        return self.hardness_NM > -torch.inf

    def __getitem__(self, images: Tensor) -> "CropMemory":
        return CropMemory(*(getattr(self, f.name)[images] for f in fields(self)))

    def updated(self, images: Tensor, part: "CropMemory") -> "CropMemory":
        """With these images' memory as in `part`."""
        return CropMemory(*(getattr(self, f.name).index_copy(0, images, getattr(part, f.name)) for f in fields(self)))


@dataclass(frozen=True)
class Views:
    """Labelled views, each self-contained: crop `image` by `crops`, paste the partner's crop into `mix_boxes`, and the
    committee's combined logits of the result are `logits`. A view without a partner has a mix box of height 0.

    `epochs_V`, `images_V`, `partners_V` int32; `mix_boxes_V4` int16 in pixels of the S x S view; `logits_VK` float16.
    """

    epochs_V: Tensor
    images_V: Tensor
    crops: Crops
    partners_V: Tensor
    partner_crops: Crops
    mix_boxes_V4: Tensor
    logits_VK: Tensor

    def __len__(self) -> int:
        return len(self.images_V)

    def __getitem__(self, rows: Tensor | slice) -> "Views":
        return Views(
            self.epochs_V[rows], self.images_V[rows], self.crops[rows], self.partners_V[rows],
            self.partner_crops[rows], self.mix_boxes_V4[rows], self.logits_VK[rows],
        )  # fmt: skip

    def to(self, device: torch.device) -> "Views":
        return Views(
            self.epochs_V.to(device), self.images_V.to(device), self.crops.to(device), self.partners_V.to(device),
            self.partner_crops.to(device), self.mix_boxes_V4.to(device), self.logits_VK.to(device),
        )  # fmt: skip


@dataclass(frozen=True)
class Moments:
    """Of one layer's input, per sample: `mean_NC` and biased `variance_NC` of each channel, over the positions; or of
    each patch, over its positions and the channels (then C counts patches, row by row)."""

    mean_NC: Tensor
    variance_NC: Tensor


@dataclass(frozen=True)
class Reading:
    """What an observer says of a batch of views; where asked for, `moments` of its watched layers, by channel, and of
    its convolutions, by patch.

    A network in training also says what the last layer takes in, the weights of its convolutions, and what it makes of
    as many or more real images of the same class, augmented alike. A guide says what the last layer takes in, of the
    views and of real images of the classes `real_targets_M`.
    """

    logits_NK: Tensor
    moments: tuple[Moments, ...] = ()
    patches: tuple[Moments, ...] = ()
    features_NE: Tensor | None = None
    weights: tuple[Tensor, ...] = ()
    real: "Reading | None" = None
    real_targets_M: Tensor | None = None


class Observer(Protocol):
    """A frozen network trained on real data. `statistics` are those of its watched layers over that data, `patches`,
    where measured, those of its convolutions' patches; `prior`, where measured, is the top-1 (a fraction) of a student
    of images distilled from this observer alone."""

    @property
    def name(self) -> str: ...

    @property
    def statistics(self) -> tuple[Any, ...]: ...

    @property
    def patches(self) -> tuple[Any, ...]: ...

    @property
    def prior(self) -> float | None: ...

    def read(self, pixels_NCHW: Tensor, *, moments: bool = False, patches: bool = False) -> Reading: ...

    def readings(
        self, pixels_NCHW: Tensor, targets_N: Tensor, *, moments: bool = False, patches: bool = False
    ) -> "Iterator[tuple[Tensor | slice, Reading]]":
        """What is judged together: rows of the batch, and the reading of these."""
        ...

    def embed(self, pixels_NCHW: Tensor) -> Tensor: ...

    def batch_statistics(self) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class RealImages:
    """A pool of real images on the device: uint8 `images_PCSS`, int64 `targets_P`."""

    images_PCSS: Tensor
    targets_P: Tensor

    def __len__(self) -> int:
        return len(self.targets_P)

    def rows_of(self, label: int) -> Tensor:
        return (self.targets_P == label).nonzero()[:, 0]

    def pixels(self, rows: Tensor) -> Tensor:
        return self.images_PCSS[rows].float() / 255


@dataclass(frozen=True)
class Tick:
    """One step of a schedule: its number from 0, how its crops are chosen, the pixels' learning rate, and the share of
    its phase that is past, in [0, 1)."""

    step: int
    viewer: Any
    rate: float
    progress: float = 0.0


@dataclass(frozen=True)
class Studio:
    """Where a panel is made: the committee, the real data's number of classes, channel mean and std, one generator, one
    device."""

    observers: tuple[Observer, ...]
    classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rng: torch.Generator
    device: torch.device
    track: Track = untracked
    real: RealImages | None = None
    guides: Mapping[str, tuple[nn.Module, ...]] = field(default_factory=dict)  # frozen, by what asked for them
    compiled: bool = False  # whether frozen observers are compiled

    def new_seed(self) -> int:
        """From the generator, for a library that takes a number."""
        return int(torch.randint(2**31, (), generator=self.rng, device=self.rng.device))
