"""`calibration.json`: how fast one device does what a run is made of, as measured by `retort calibrate`."""

from typing import Literal

from pydantic import Field

from schemas.manifest import Frozen

Operation = Literal[
    "recover", "label", "student", "observer", "statistics", "patches", "score", "cluster", "compare", "encode", "read",
    "decode",
]  # fmt: skip


class Rate(Frozen):
    """One operation with one network at one size: the median over repeats, and how far they lie apart."""

    operation: Operation = Field(
        description="recover: image-updates; label: labelled views; student: its image-updates; observer: training "
        "images; statistics, patches, score: images; cluster: tries * images * centres * features, batch: those of one "
        "try; compare: pairs of images; encode: logits of compact labels; read, decode: images of a shard"
    )
    architecture: str | None = Field(default=None, description="of the network; null where there is none")
    terms: str | None = Field(default=None, description="of recover: what the observer judges by")
    side: int = Field(ge=1, description="pixels")
    batch: int = Field(ge=1, description="images at once")
    compiled: bool = Field(default=False, description="by torch.compile, or in what makes it needless")
    flops: float = Field(gt=0, description="of one image, forwards; where there is no network, its pixel values")
    per_second: float = Field(gt=0, description="median over repeats")
    spread: float = Field(ge=0, description="interquartile range of the repeats over their median")
    repeats: int = Field(ge=1)
    start_seconds: float = Field(ge=0, description="more that the first repeat took: compiling, filling of caches")
    memory_bytes: int = Field(ge=0, description="at most, above what was held before")


class Calibration(Frozen):
    format: Literal["retort-calibration-1"] = "retort-calibration-1"
    machine: str
    device: str
    torch: str = Field(description="version")
    threads: int = Field(ge=1)
    base_memory_bytes: int = Field(ge=0, description="of the process before the first measurement")
    rates: list[Rate] = Field(min_length=1)
