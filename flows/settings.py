"""Where things live and how they are shown; never what is computed."""

import os

from pydantic import BaseModel, ConfigDict, Field

# Set before prefect is imported; what the user has set stays. The embedded server needs more than its default 20 s on a
# small machine, and nothing we start reports on its user.
PREFECT_DEFAULTS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "dd_tasks,flows",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the command line shows its own lines
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    "PREFECT_CLI_WORDMARK": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def prepare_environment() -> None:
    """Defaults for the libraries we start. Call before anything imports prefect."""
    for name, value in PREFECT_DEFAULTS.items():
        os.environ.setdefault(name, value)


class Settings(BaseModel):
    """Store and device of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    store: str = Field(default="runs/store", description="folder or URL (s3://...) of finished results")
    device: str = Field(default="auto", description="cpu, cuda, cuda:N or auto")

