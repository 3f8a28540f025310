"""Who is seated at a step, and with what weight."""

from dataclasses import dataclass
from typing import Protocol

from dd_tasks.types import Tick

Seats = tuple[tuple[int, float], ...]  # (index of the observer, weight); the weights of a step sum to 1


class Voters(Protocol):
    def seated(self, tick: Tick, committee: int) -> Seats:
        """The observers, out of `committee`, that judge at this tick."""
        ...


@dataclass(frozen=True)
class Everyone:
    """The whole committee at every step, with equal weights."""

    def seated(self, tick: Tick, committee: int) -> Seats:
        return tuple((i, 1 / committee) for i in range(committee))


@dataclass(frozen=True)
class RoundRobin:
    """One observer a step, in turn (G-VBSM, EDC, E2D)."""

    def seated(self, tick: Tick, committee: int) -> Seats:
        return ((tick.step % committee, 1.0),)
