"""`profile.json`: where the seconds of a process went, as measured by `retort run --profile`."""

from typing import Literal

from pydantic import Field

from schemas.manifest import Frozen

Kind = Literal["work", "files", "overhead"]


class Spent(Frozen):
    """Seconds by what they were spent on. Concurrent work counts once, for what began last."""

    on: str = Field(description="imports, orchestration, decode, ..., as a stage of the run or what every run does")
    kind: Kind = Field(description="work: of the method; files: store, artifact and report; overhead: everything else")
    seconds: float = Field(ge=0)


class Traced(Frozen):
    """Steps of one kind of stage that the trace shows in full."""

    on: str
    steps: int = Field(ge=1)
    events: int = Field(ge=0)
    left_out: int = Field(ge=0, description="the shortest events, where there were too many")


class Profile(Frozen):
    format: Literal["retort-profile-1"] = "retort-profile-1"
    command: str
    machine: str
    wall_seconds: float = Field(ge=0, description="since the process began; the sum of all seconds")
    spent: list[Spent]
    traced: list[Traced]
