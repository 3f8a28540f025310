"""A resolved run as plain values, of which `dd_tasks.plan` counts the work and `dd_tasks.footprint` the bytes."""

import re
from dataclasses import dataclass
from math import ceil
from typing import Any

from dd_tasks.committee import Member, ObserverRecipe
from dd_tasks.feeds import MEMORY_BYTES
from dd_tasks.label import Labeller
from dd_tasks.recipe import Recipe
from dd_tasks.students import StudentRecipe
from schemas.plan import Extent, Work


@dataclass(frozen=True)
class Job:
    """`rows` are (row, student) on distilled and random images each; `labellers` those
    of the distilled and of the random images, one pair a way of seeing them; `label_bytes` is an image's budget."""

    recipe: Recipe
    observers: tuple[Member, ...]
    rows: tuple[tuple[str, StudentRecipe], ...]
    full: tuple[ObserverRecipe, ...]
    labellers: tuple[tuple[Labeller, Labeller], ...]
    data: Extent
    ipc: int
    seeds: int
    panel: int
    held_out: float
    compact: bool
    label_bytes: int | None
    bytes_row: bool

    @property
    def images(self) -> int:
        return self.ipc * self.data.classes

    @property
    def panels(self) -> int:
        return ceil(self.images / self.panel)

    @property
    def training(self) -> int:
        """Real images that the observers learn from; which ones their keys decide, so about so many."""
        return self.data.images - self.held

    @property
    def held(self) -> int:
        return round(self.data.images * self.held_out)

    @property
    def scored(self) -> int:
        """Real images that score a student."""
        return self.data.test or self.held

    @property
    def at_hand(self) -> bool:
        """Whether decoded real images are kept in memory."""
        return self.data.images * 3 * self.data.side**2 <= MEMORY_BYTES

    def per_class(self, wanted: int, least: int) -> int:
        """Candidates of a class that are drawn (`flows.tasks.draw_candidates`)."""
        return wanted if wanted <= least else max(least, min(wanted, int(0.8 * (1 - self.held_out) * self.data.fewest)))

    def line(self, stage: str, what: str, amount: int, unit: str, formula: str, **more: Any) -> Work:
        formula = grouped(formula)
        return Work(stage=stage, what=what, amount=amount, unit=unit, formula=formula, side=self.data.side, **more)


def grouped(formula: str) -> str:
    """With commas in long numbers."""
    return re.sub(r"\b\d{5,}\b", lambda number: f"{int(number[0]):,}", formula)
