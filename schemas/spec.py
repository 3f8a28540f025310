"""A run's specification: the parameters of the flow, and the keys of a SPEC.yaml."""

import os
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.hub import DatasetName, License

Normalise = Literal["data", "imagenet"]
MOST = 1_000_000  # images, epochs or views: no run has more, and a slip of the pen must not count them one by one


def in_order(schema: dict[str, Any]) -> None:
    """Number the properties, as Prefect's forms sort them by `position` and its database does not keep their order."""
    for position, each in enumerate(schema["properties"].values()):
        each["position"] = position


def whole_path(place: str) -> str:
    """A path from the root; a URL as it is."""
    return place if "://" in place else os.path.abspath(place)


class RunSpec(BaseModel):
    """Everything that decides what a run computes. Where things live is in `flows.settings`."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=in_order)

    preset: str = Field(description="a method by name (`retort presets` lists them), or MODULE:FUNCTION")
    shards: tuple[str, ...] = Field(min_length=1, description="globs, brace patterns or URLs of WebDataset shards")
    test: tuple[str, ...] = Field(
        default=(), description="shards for the final rows; else the held-out part scores them"
    )
    ipc: int = Field(ge=1, le=MOST, description="images per class")
    classes: tuple[str, ...] = Field(default=(), description="distil these alone; default: all")
    normalise: Normalise = Field(
        default="data", description="pixels by the data's own mean and std, or by ImageNet's, which no shard changes"
    )
    side: int | None = Field(default=None, ge=8, le=8192, description="pixels a side; default: the shards' own")
    committee: str = Field(default="small", description="a committee by name")
    students: tuple[str, ...] = Field(default=("convnet3",), min_length=1, description="architectures that are scored")
    seeds: int = Field(default=3, ge=1, le=1000, description="students a row, and draws of random images")
    student_epochs: int = Field(default=300, ge=1, le=MOST, description="of every student; the last one is scored")
    student_batch: int | None = Field(
        default=None, ge=2, le=MOST, description="views a batch; default: a tenth of the images, 10 to 100"
    )
    full_epochs: int = Field(default=3, ge=0, le=MOST, description="epochs of the full-data row; 0 leaves it out")
    labels: str | None = Field(
        default=None, description="preset whose labeller labels all rows; default: the method's own"
    )
    codec: Literal["compact", "exact"] = Field(
        default="compact", description="of soft labels: few bytes a view, or one float16 logit per class"
    )
    label_bytes_per_image: int | None = Field(
        default=None, ge=1, lt=1 << 63, description="of compact labels, at most; default: as many as the images take"
    )
    guides: str | None = Field(default=None, description="pool of pre-trained guides; default: the method's own")
    hard_rows: bool = Field(default=False, description="also score hard labels on the same images")
    plain_rows: bool = Field(default=False, description="also score students without augmentation on the same images")
    bytes_row: bool = Field(
        default=True, description="also score random real JPEG images of as many bytes as images and labels have"
    )
    seed: int = Field(default=0, ge=0, lt=1 << 63, description="that all others are drawn from")
    panel: int = Field(default=100, ge=1, le=MOST, description="slots (class, index) recovered together")
    held_out: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.1, description="share kept from the observers")
    flip: bool = Field(default=True, description="whether a mirror image is of the same class; off for digits, letters")
    tolerate: int = Field(default=0, ge=0, lt=1 << 63, description="broken samples to set aside before failing")
    overrides: dict[str, str] = Field(default={}, alias="set", description="part.field: value")
    license: License = Field(default="unknown", description="of the source data, by the Hub's identifier")
    source_dataset: DatasetName | None = Field(
        default=None,
        description="the real dataset by its name on the Hub or elsewhere; `original` if it was never published",
    )
    name: str | None = Field(default=None, description="of the artifact; default: the name of its folder")

    def elsewhere(self) -> dict[str, Any]:
        """As JSON, for a process in another folder: shards, and the file of a committee, are told by whole paths."""
        places: dict[str, Any] = {name: tuple(map(whole_path, getattr(self, name))) for name in ("shards", "test")}
        if self.committee.endswith(".json"):
            places["committee"] = whole_path(self.committee)
        return self.model_copy(update=places).model_dump(mode="json", by_alias=True)

    def describe(self) -> str:
        """One line for logs and page titles."""
        return f"{self.preset} at {self.ipc} images per class"
