"""`retort.json`: everything an artifact says of itself. All numbers in it are measured or computed, none typed."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.hub import DatasetName, License

SHA256 = r"^[0-9a-f]{64}$"


class Frozen(BaseModel):
    """Base of all models here: immutable, and no field that is not named."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(Frozen):
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=SHA256)


class SourceShard(Frozen):
    name: str
    samples: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=SHA256)


class QuarantinedSample(Frozen):
    shard: str
    key: str
    reason: str


class SourceData(Frozen):
    """The real data an artifact was made from, or was tested on."""

    digest: str = Field(pattern=SHA256, description="of the shards' checksums and the class names")
    shards: list[SourceShard]
    samples: int = Field(ge=1)
    classes: list[str] | None = Field(
        default=None, description="all classes of the shards by id, where only the artifact's were used"
    )
    quarantined: list[QuarantinedSample] = []
    patterns: list[str] = Field(
        default=[],
        description="where the run found the shards; without paths of one machine and URLs that hold a secret",
    )


class ObserverEntry(Frozen):
    """One member of the committee."""

    name: str
    architecture: str
    epochs: int = Field(ge=0)
    accuracy: float = Field(ge=0, le=1, description="top-1 on the held-out part of the training data")
    digest: str = Field(pattern=SHA256, description="of its weights file")
    seconds: float = Field(ge=0)


class GuideEntry(Frozen):
    """A pre-trained network that pulled the images."""

    name: str
    architecture: str
    checkpoint: str = Field(description="which of the weights that its training left")
    digest: str = Field(pattern=SHA256, description="of its training or import")


class LabelInfo(Frozen):
    codec: Literal["exact", "compact"] = Field(
        description="exact: one float16 logit per class and view; compact: rounded logits of the top classes"
    )
    epochs: int = Field(ge=0, description="labelled views of every image")
    drawn: int = Field(ge=0, description="views of every image that were labelled; of these `epochs` are kept")
    views: int = Field(ge=0)
    rows: int = Field(ge=0, description="of the table soft_labels: exact has one a view, compact one a group of views")
    top: int | None = Field(default=None, ge=1, description="classes whose logits a compact view keeps")
    step: float | None = Field(default=None, gt=0, description="to whose multiples they are rounded")
    batch_statistics: int | None = Field(
        default=None, description="sub-batch size where BatchNorm used batch statistics"
    )
    bytes: int = Field(ge=0)


class Claim(Frozen):
    """Top-1 of one student architecture trained on one kind of data; the last epoch, never the best."""

    row: Literal[
        "distilled", "random", "full", "distilled_hard", "random_hard", "distilled_plain", "random_plain", "jpeg"
    ]  # fmt: skip
    images: int | None = Field(default=None, ge=1, description="where they are not as many as the distilled ones")
    student: str
    epochs: int = Field(ge=1)
    split: Literal["test", "held-out"]
    seeds: list[int] = Field(min_length=1)
    accuracies: list[float] = Field(min_length=1, description="fractions, one a seed")
    mean: float = Field(ge=0, le=1)
    std: float = Field(ge=0, description="sample standard deviation; 0 for one seed")
    seconds: float = Field(ge=0)

    @model_validator(mode="after")
    def one_accuracy_a_seed(self) -> "Claim":
        if len(self.seeds) != len(self.accuracies):
            raise ValueError(f"row {self.row}: {len(self.accuracies)} accuracies for {len(self.seeds)} seeds")
        return self


Similarity = Annotated[float, Field(ge=-1, le=1)]


class Nearness(Frozen):
    """How near the distilled images are to real ones, and how near real ones are to each other: the similarity of an
    image is that in its row of the table `images`."""

    least: Similarity
    median: Similarity
    most: Similarity
    above: int = Field(ge=0, description="images whose similarity is above `random_95`")
    began: int = Field(ge=0, description="images that began from real ones")
    kept: int = Field(ge=0, description="of these, images whose nearest real image is one that they began from")
    random_least: Similarity = Field(
        description="of as many random real images, each to the nearest other training image"
    )
    random_median: Similarity
    random_95: Similarity = Field(description="95th percentile: one in twenty random real images is above it")
    random_most: Similarity


class Cost(Frozen):
    image_updates: int = Field(
        ge=0, description="one image through one observer, forward and backward; those of measured priors among them"
    )
    seconds: dict[str, float] = Field(description="by stage, as measured when the stage last really ran")
    peak_memory_bytes: int = Field(ge=0)
    machine: str


class Metrics(Frozen):
    """How fast the panels were recovered when they last really ran, and what the store holds of the run."""

    panels: int = Field(ge=1)
    panels_per_second: float = Field(
        ge=0, description="of the time in which any panel was being recovered: it grows with the number of workers"
    )
    image_updates_per_second: float = Field(ge=0, description="of the same time")
    image_updates_per_second_overall: float = Field(ge=0, description="of the seconds of all stages, added up")
    store_bytes: dict[str, int] = Field(
        description="by stage: what the artifact was made of, and the random images of its claims with their labels; "
        "not what voters and JPEG rows draw of the real images, nor decoded ones"
    )


class Manifest(Frozen):
    format: Literal["retort-1"] = "retort-1"
    name: str
    preset: str
    recipe: dict[str, Any] = Field(description="every part with its type and fields")
    identity: str = Field(pattern=SHA256, description="of recipe, source, committee, ipc and seed")
    seed: int
    ipc: int = Field(ge=1)
    classes: list[str] = Field(min_length=1)
    side: int = Field(ge=1, description="images are side x side RGB")
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    source: SourceData
    test: SourceData | None = None
    held_out: float = Field(ge=0, lt=1, description="share of the training data kept from observers for choices")
    observers: list[ObserverEntry]
    guides: list[GuideEntry] = Field(default=[], description="pre-trained networks beside the observers")
    labels: LabelInfo
    student: dict[str, Any] = Field(
        default={}, description="how the students of all claims were trained, but for what a claim says itself"
    )
    claims: list[Claim]
    cost: Cost
    metrics: Metrics | None = None
    command: str
    license: License = Field(
        default="unknown", description="the Hub's identifier of the licence, as the source data has it"
    )
    source_dataset: DatasetName | None = Field(default=None, description="name of the real dataset")
    nearness: Nearness
    versions: dict[str, str]
    files: dict[str, FileEntry] = Field(description="every file but README.md and this one, by relative path")
