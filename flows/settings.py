"""Where things live, and where and when they run; never what is computed."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from schemas.release import ReleaseSpec
from schemas.spec import RunSpec, in_order

VERIFY_STORE = "runs/verify-store"  # scores of verifications; never those that a run left
WEEKLY, NIGHTLY = "0 3 * * 0", "0 2 * * *"  # cron schedules of deployments, in UTC
Part = Literal["observers", "panels", "labels", "students"]  # of whose stages many may run side by side
PARTS: tuple[Part, ...] = get_args(Part)
MOST = 4096  # cores, GPUs or workers: OpenMP ends the process where it is asked for far more threads
ENGINES = r"^(local|ray|ray://[^/\s]+|pool|pool:[^\s:/]+)$"


class Request(BaseModel):
    """What an engine sets aside for one stage of a part."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    part: Part
    cpus: int | None = Field(default=None, ge=1, le=MOST, description="default: its threads")
    gpus: float | None = Field(
        default=None, ge=0, le=MOST, description="default: 1 for cuda, and for auto where one is here"
    )
    memory: int | None = Field(default=None, ge=1, lt=1 << 63, description="bytes; default: not asked for")


class Settings(BaseModel):
    """Store, device and engine of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=in_order)

    store: str = Field(default="runs/store", description="folder or URL (s3://...) of finished results")
    device: str = Field(default="auto", description="cpu, cuda, cuda:N or auto")
    engine: str = Field(
        default="local",
        json_schema_extra={"pattern": ENGINES},
        description="local: one stage after the other, in this process; ray: side by side, on this machine's own Ray; "
        "ray://HOST:PORT: on that cluster; pool or pool:NAME: on the workers of a work pool of Prefect's",
    )
    workers: int | None = Field(
        default=None, ge=1, le=MOST, description="stages that an own Ray runs at once; default: as cores and GPUs allow"
    )
    threads: int | None = Field(
        default=None, ge=1, le=MOST, description="of a stage on the processor; default: local all cores, elsewhere one"
    )
    requests: tuple[Request, ...] = Field(default=(), description="of parts that need other than the usual resources")

    @field_validator("engine")
    @classmethod
    def _is_engine(cls, engine: str) -> str:
        if not re.fullmatch(ENGINES, engine):
            raise ValueError("expected local, ray, ray://HOST:PORT, pool or pool:NAME")
        return engine


@dataclass(frozen=True)
class Distilling:
    """A scheduled distillation: what, into which folder, where it is published, and a cron schedule in UTC."""

    spec: RunSpec
    out: Path
    release: ReleaseSpec | None = None
    cron: str = WEEKLY


@dataclass(frozen=True)
class Verifying:
    """A scheduled verification: of what, and a cron schedule in UTC."""

    target: str
    cron: str = NIGHTLY
