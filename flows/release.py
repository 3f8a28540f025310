"""@flow release_dataset: a finished artifact -> one revision on the Hub, read back, and only then tagged."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dd_tasks import publish
from dd_tasks.errors import InputError
from flows.seeing import show_release
from flows.stages import stage
from flows.walk import flow
from schemas.release import Released, ReleaseSpec

T = TypeVar("T")
VARIABLE = "HF_TOKEN"


@flow(name="release-dataset")
def release_dataset(folder: Path, spec: ReleaseSpec) -> Released:
    """Publish the artifact `folder`. The token is no parameter, since Prefect keeps those: it is read here.

    Args:
        folder: folder of the artifact, on the machine that runs
    """
    return show_release(publish.publish(folder, spec, token_of(spec), _as_task))


def expect_publishable(spec: ReleaseSpec | None) -> None:
    """InputError, before any work, for a release that is not possible, or not without a token."""
    if spec is not None:
        publish.check(spec)
        token_of(spec)


def _as_task(name: str, make: Callable[[], T], /) -> T:
    """Each step is a task without parameters."""
    return stage(name)(make)()


def token_of(spec: ReleaseSpec) -> str:
    """The token from the environment or the Secret block; empty for a folder. InputError where there is none."""
    if publish.folder_of(spec.target):
        return ""
    if spec.token_block is None:
        return publish.checked_token(os.environ.get(VARIABLE, ""), f"{VARIABLE} of the environment")
    from prefect.blocks.system import Secret

    try:
        kept = Secret.load(spec.token_block)
    except ValueError:  # Prefect's for a block that is not there
        raise InputError(f"--token-block {spec.token_block!r}: Prefect has no Secret block of that name") from None
    return publish.checked_token(str(kept.get()), f"--token-block {spec.token_block!r}")  # type: ignore[union-attr]
