"""What `retort plan --json` prints: the work, time, memory, bytes and cost of a run that has not begun."""

from typing import Literal

from pydantic import Field

from schemas.calibration import Operation
from schemas.manifest import Frozen


class Extent(Frozen):
    """How large a labelled image dataset is."""

    name: str
    classes: int = Field(ge=2)
    images: int = Field(ge=1, description="for training")
    side: int = Field(ge=8, description="pixels at which a run works")
    image_bytes: float = Field(gt=0, description="mean of an encoded image")
    fewest: int = Field(ge=1, description="images of the smallest class")
    test: int = Field(default=0, ge=0, description="images of the final rows; 0: training images held out")
    source: str = Field(default="", description="where these numbers come from")


class Work(Frozen):
    """One line of the plan: so much of one operation."""

    stage: str = Field(description="as in the manifest's seconds")
    what: str
    operation: Operation | None = Field(default=None, description="whose measured rate tells the seconds")
    architecture: str | None = None
    terms: str | None = None
    side: int = Field(ge=1)
    batch: int = Field(default=1, ge=1)
    compiled: bool = False
    amount: int = Field(ge=0)
    unit: str
    formula: str = Field(description="of the amount, with its numbers put in")
    at_most: bool = Field(default=False, description="whether a run may need less")
    parts: int = Field(default=1, ge=1, description="that may run side by side, e.g. panels or seeds")
    seconds: float | None = Field(default=None, ge=0)
    estimate: bool | None = Field(default=None, description="whether the rate was not measured at just this size")
    memory_bytes: int | None = Field(default=None, ge=0, description="at most, above what is held anyway")


class Bytes(Frozen):
    """One line of what a run writes."""

    where: Literal["store", "artifact"]
    kind: str
    bytes: int = Field(ge=0)
    formula: str


class Totals(Frozen):
    image_updates: int = Field(
        ge=0, description="of recovery and of measured priors, as in the manifest's cost; at most, where a run may stop"
    )
    least_image_updates: int = Field(ge=0, description="as many at least: those before a run may stop early")
    training_images: int = Field(ge=0, description="of the observers and guides")
    labelled_views: int = Field(ge=0, description="of the distilled images")
    students: int = Field(ge=0)
    exact_label_bytes: int = Field(ge=0)
    compact_label_bytes: int = Field(ge=0)
    store_bytes: int = Field(ge=0)
    upload_bytes: int = Field(ge=0)
    data_memory_bytes: int = Field(ge=0, description="of real images at hand and one set of labelled views")
    peak_memory_bytes: int | None = Field(default=None, ge=0, description="on the device")
    seconds: float | None = Field(default=None, ge=0, description="with `workers` side by side")
    cost: float | None = Field(default=None, ge=0, description="seconds * workers * price_per_hour / 3600")


class Plan(Frozen):
    format: Literal["retort-plan-1"] = "retort-plan-1"
    preset: str
    ipc: int = Field(ge=1)
    data: Extent
    workers: int = Field(default=1, ge=1)
    price_per_hour: float | None = Field(default=None, ge=0)
    machine: str | None = Field(default=None, description="on which the rates were measured")
    work: list[Work]
    bytes: list[Bytes]
    stage_seconds: dict[str, float] = Field(default={}, description="with `workers` side by side")
    totals: Totals
