"""The YAML header of an artifact's README.md: what the Hub and `datasets.load_dataset` read of a dataset card.

Field names, and the form of the features, are the Hub's.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.hub import SIZES, Annotator, License, Origin, Size, Task, TaskId
from schemas.manifest import Frozen


def size_category(rows: int) -> str:
    """The Hub's name for a number of rows."""
    return next((name for power, name in enumerate(SIZES, start=3) if rows < 10**power), SIZES[-1])


class ClassNames(Frozen):
    names: dict[str, str] = Field(description='from "0", "1", ... to the names of the classes')

    @model_validator(mode="after")
    def numbered_from_zero(self) -> "ClassNames":
        if list(self.names) != [str(i) for i in range(len(self.names))]:
            raise ValueError("class numbers must be 0, 1, ... in order")
        return self


class ClassLabelType(Frozen):
    class_label: ClassNames


class Feature(Frozen):
    """One column: either a `dtype`, or a `list` of some dtype."""

    name: str
    dtype: str | ClassLabelType | None = None
    items: str | None = Field(default=None, alias="list")  # a field named list would hide the type
    length: int | None = Field(default=None, ge=1, description="of every list in this column, if all are equally long")

    @model_validator(mode="after")
    def either_dtype_or_list(self) -> "Feature":
        if (self.dtype is None) == (self.items is None):
            raise ValueError(f"column {self.name} must have one of dtype and list")
        return self


class DataFiles(Frozen):
    split: Literal["train"] = "train"
    path: str = Field(description="pattern, relative to the card")


class Config(Frozen):
    """One table, as `load_dataset(repository, config_name)` finds it."""

    config_name: Literal["images", "soft_labels"]
    default: bool | None = None
    data_files: list[DataFiles] = Field(min_length=1)


class Split(Frozen):
    name: Literal["train"] = "train"
    num_bytes: int = Field(ge=0, description="of the table in memory")
    num_examples: int = Field(ge=0)


class DatasetInfo(Frozen):
    config_name: Literal["images", "soft_labels"]
    features: list[Feature]
    splits: list[Split] = Field(min_length=1, max_length=1)
    download_size: int = Field(ge=0, description="bytes of the Parquet files")
    dataset_size: int = Field(ge=0, description="bytes of the table in memory")


class CardHeader(BaseModel):
    """The whole header. Other fields of the Hub's (`language`, `arxiv`, ...) may stand beside these."""

    model_config = ConfigDict(extra="allow", frozen=True)

    license: License = Field(description="the Hub's identifier of a licence")
    pretty_name: str = Field(min_length=1)
    task_categories: list[Task]
    task_ids: list[TaskId]
    annotations_creators: list[Annotator] = Field(min_length=1, description="who labelled the images")
    source_datasets: list[Origin] = Field(
        description="`original`, or the real dataset as NAME or `extended|NAME`; empty where it is unknown"
    )
    tags: list[str]
    size_categories: list[Size]
    configs: list[Config]
    dataset_info: list[DatasetInfo]

    @model_validator(mode="after")
    def says_what_it_is(self) -> "CardHeader":
        if "dataset-distillation" not in self.tags:
            raise ValueError("tags must name dataset-distillation")
        if "image-classification" not in self.task_categories:
            raise ValueError("task_categories must name image-classification")
        if "multi-class-image-classification" not in self.task_ids:
            raise ValueError("task_ids must name multi-class-image-classification")
        return self

    @model_validator(mode="after")
    def its_tables(self) -> "CardHeader":
        for what, found in (("configs", self.configs), ("dataset_info", self.dataset_info)):
            if [entry.config_name for entry in found] not in (["images"], ["images", "soft_labels"]):
                raise ValueError(f"{what} must name images and then, if there are any, soft_labels")
        if [config.config_name for config in self.configs if config.default] != ["images"]:
            raise ValueError("configs: images must be the default, and the only one")
        if len(self.configs) != len(self.dataset_info):
            raise ValueError("configs and dataset_info must name the same tables")
        return self
