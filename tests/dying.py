"""`dying:e2d`: E2D in which a process that recovers a panel dies, once for each of the deaths that were set aside for
runs under one Prefect home."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from dd_tasks import presets
from dd_tasks.recipe import Recipe
from dd_tasks.terms import Term


def deaths(home: str) -> list[Path]:
    """Those that are still to come."""
    return sorted(Path(home).glob("death-*"))


def set_aside(home: str, so_many: int) -> None:
    """Just so many are to come."""
    for death in deaths(home):
        death.unlink()
    for number in range(so_many):
        (Path(home) / f"death-{number}").touch()


@dataclass(frozen=True)
class Death:
    """A term of no weight, in which the process dies."""

    needs_moments: ClassVar[bool] = False
    needs_patches: ClassVar[bool] = False

    def convene(self, studio: object) -> Callable[..., Tensor]:
        def loss(judge: object, reading: object, targets_N: Tensor) -> Tensor:
            for death in deaths(os.environ["PREFECT_HOME"]):
                with suppress(FileNotFoundError):  # another one's
                    death.unlink()
                    os.kill(os.getpid(), signal.SIGKILL)
            return torch.zeros(())

        return loss


def with_term(term: Term, side: int) -> Recipe:
    """E2D with one more."""
    method = presets.e2d(side=side)
    return replace(method, ballots=tuple(replace(b, terms=(*b.terms, term)) for b in method.ballots))


def e2d(*, side: int) -> Recipe:
    return with_term(Death(), side)
