"""`index.json`: what a set of WebDataset shards holds, so that a shard cut short or swapped is noticed."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Sha256 = Field(pattern=r"^[0-9a-f]{64}$")
Rgb = tuple[float, float, float]
ClassPixels = tuple[int, int, int, int, int, int, int]
LARGEST = 1 << 20  # pixels a side
MOST = 1 << 62  # of anything that is counted


class ShardEntry(BaseModel):
    """One tar file of the set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="file name, relative to index.json")
    samples: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str = Sha256
    classes: list[int] | None = Field(
        default=None, description="ids of the classes it holds, ascending; null where they are many or were not noted"
    )


class ShardIndex(BaseModel):
    """The shards of one set, how many samples of each class they hold, and the statistics of their pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["retort-shards-1"] = "retort-shards-1"
    classes: list[str] = Field(min_length=1, description="class names; the position is the class id")
    shards: list[ShardEntry]
    samples_per_class: list[int]
    height: int | None = Field(ge=1, le=LARGEST, description="pixels; null when images differ in size")
    width: int | None = Field(ge=1, le=LARGEST, description="pixels; null when images differ in size")
    mean: Rgb = Field(description="per channel over all pixels of all images, pixels in [0, 1]")
    std: Rgb = Field(description="per channel over all pixels of all images, biased, pixels in [0, 1]")

    pixels_per_class: list[ClassPixels] | None = Field(
        default=None,
        description="of each class how many pixels, their sum in each channel, and the sum of their squares in each; "
        "pixels in 0..255",
    )

    @property
    def samples(self) -> int:
        return sum(self.samples_per_class)

    @model_validator(mode="after")
    def _names(self) -> Self:
        names = [shard.name for shard in self.shards]
        for name in names:
            if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
                raise ValueError(f"shard name {name!r} is not a bare file name")
        if twice := sorted({name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()):
            raise ValueError(f"shard {twice[0]!r} is listed twice")
        if "" in self.classes or len(set(self.classes)) < len(self.classes):
            raise ValueError("class names must be non-empty and differ")
        return self

    @model_validator(mode="after")
    def _counts(self) -> Self:
        if len(self.samples_per_class) != len(self.classes):
            raise ValueError(f"{len(self.samples_per_class)} counts for {len(self.classes)} classes")
        if self.pixels_per_class is not None and len(self.pixels_per_class) != len(self.classes):
            raise ValueError(f"pixels of {len(self.pixels_per_class)} for {len(self.classes)} classes")
        if not 0 <= min(self.samples_per_class) <= max(self.samples_per_class) < MOST:
            raise ValueError("a count in samples_per_class is negative, or above what there can be")
        if (in_shards := sum(shard.samples for shard in self.shards)) != self.samples:
            raise ValueError(f"shards hold {in_shards} samples, classes {self.samples}")
        return self

    @model_validator(mode="after")
    def _pixels(self) -> Self:
        for i, (pixels, *sums) in enumerate(self.pixels_per_class or ()):
            pairs = list(zip(sums[:3], sums[3:], strict=True))
            possible = all(
                0 <= one <= 255 * pixels and one**2 <= pixels * square <= 255 * one * pixels for one, square in pairs
            )
            if not 0 <= pixels < MOST or not possible or (self.samples_per_class[i] > 0) != (pixels > 0):
                raise ValueError(f"pixels_per_class.{i} cannot be: {self.samples_per_class[i]} images, {pixels} pixels")
        return self
