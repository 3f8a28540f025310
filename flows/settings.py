"""Where things live; never what is computed."""

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Store and device of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    store: str = Field(default="runs/store", description="folder or URL (s3://...) of finished results")
    device: str = Field(default="auto", description="cpu, cuda, cuda:N or auto")
