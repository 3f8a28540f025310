"""Where things live, and when they run; never what is computed."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from schemas.release import ReleaseSpec
from schemas.spec import RunSpec, in_order

VERIFY_STORE = "runs/verify-store"  # scores of verifications; never those that a run left
WEEKLY, NIGHTLY = "0 3 * * 0", "0 2 * * *"  # cron schedules of deployments, in UTC


class Settings(BaseModel):
    """Store and device of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=in_order)

    store: str = Field(default="runs/store", description="folder or URL (s3://...) of finished results")
    device: str = Field(default="auto", description="cpu, cuda, cuda:N or auto")


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
