"""`comparison.json`: several methods under the same observers, labels, students and seeds. All numbers are measured."""

from typing import Literal

from pydantic import Field

from schemas.manifest import SHA256, Claim, Frozen, ObserverEntry


class ComparisonRow(Frozen):
    """One method at one number of images per class."""

    factor: str | None = Field(default=None, description="what this row of a study varies")
    preset: str
    ipc: int = Field(ge=1)
    folder: str = Field(description="of its artifact, beside this file")
    identity: str = Field(pattern=SHA256, description="of its artifact")
    image_updates: int = Field(ge=0, description="one image through one observer, forward and backward")
    seconds: float = Field(
        ge=0,
        description="to measure priors, to choose and to optimise the images; not for observers, guides and labels",
    )
    claims: list[Claim]


class Comparison(Frozen):
    format: Literal["retort-comparison-1"] = "retort-comparison-1"
    labels: str | None = Field(description="preset whose labels all methods got; null if each got its own")
    rows: list[ComparisonRow] = Field(min_length=1)
    observers: list[ObserverEntry]
    source: str = Field(pattern=SHA256, description="digest of the real data")
    test: str | None = Field(default=None, description="digest of the data that scored; null for the held-out part")
    seed: int
    command: str
    machine: str
    versions: dict[str, str]
