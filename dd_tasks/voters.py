"""Who is seated at a step, and with what weight."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from dd_tasks.errors import InputError
from dd_tasks.ranges import Count, Positive, Temperature
from dd_tasks.types import Observer, Studio

Judges = tuple[tuple[Observer, float], ...]  # with their weights, which sum to 1
Seating = Callable[[int], Judges]  # step -> who judges then


class Voters(Protocol):
    needs_real: bool  # whether it asks for real images beside the distilled ones
    tells_hardness: bool  # whether its cross-entropy is what makes a view hard

    @property
    def needs_priors(self) -> bool:
        """Whether weights come from the observers' priors, which are then measured first."""
        ...

    def at_once(self, committee: int) -> int:
        """How many observers, out of `committee`, judge in one step. InputError where they cannot be seated."""
        ...

    def convene(self, studio: Studio) -> Seating:
        """The seating of one panel. ValueError where a prior is needed that was not measured."""
        ...


@dataclass(frozen=True)
class One:
    """One observer throughout: the first of the committee, unless `seat` names another (SRe2L)."""

    seat: Count = 0
    needs_priors = False
    needs_real = False
    tells_hardness = True

    def at_once(self, committee: int) -> int:
        if self.seat >= committee:
            raise InputError(f"seat {self.seat} is not in a committee of {committee} (choices: 0 to {committee - 1})")
        return 1

    def convene(self, studio: Studio) -> Seating:
        self.at_once(len(studio.observers))
        return lambda step: ((studio.observers[self.seat], 1.0),)


@dataclass(frozen=True)
class Everyone:
    """The whole committee at every step. Equal weights; with a `temperature` softmax(prior in percent / temperature)
    (CV-DD's labels: 10, methods section 6)."""

    temperature: Temperature | None = None
    needs_real = False
    tells_hardness = True

    @property
    def needs_priors(self) -> bool:
        return self.temperature is not None

    def at_once(self, committee: int) -> int:
        return committee

    def convene(self, studio: Studio) -> Seating:
        judges = weighed(studio.observers, self.temperature)
        return lambda step: judges


@dataclass(frozen=True)
class RoundRobin:
    """One observer a step, in turn (G-VBSM, EDC, E2D)."""

    needs_priors = False
    needs_real = False
    tells_hardness = True

    def at_once(self, committee: int) -> int:
        return 1

    def convene(self, studio: Studio) -> Seating:
        return lambda step: ((studio.observers[step % len(studio.observers)], 1.0),)


@dataclass(frozen=True)
class Lottery:
    """`drawn` observers a panel, without replacement, who judge every step of it with weights
    softmax(prior in percent / temperature) (CV-DD, methods section 6). A smaller committee sits whole."""

    drawn: Positive = 2
    temperature: Temperature | None = 5.0
    needs_real = False
    tells_hardness = True

    @property
    def needs_priors(self) -> bool:
        return self.temperature is not None

    def at_once(self, committee: int) -> int:
        return min(self.drawn, committee)

    def convene(self, studio: Studio) -> Seating:
        rng, committee = studio.rng, studio.observers
        order = torch.randperm(len(committee), generator=rng, device=rng.device).tolist()
        drawn = [committee[i] for i in sorted(order[: self.at_once(len(committee))])]
        judges = weighed(drawn, self.temperature)
        return lambda step: judges


def weighed(observers: Sequence[Observer], temperature: float | None) -> Judges:
    """Equal weights, or softmax(prior in percent / temperature). A lone observer has no need of a prior."""
    if temperature is None or len(observers) == 1:
        return tuple((observer, 1 / len(observers)) for observer in observers)
    priors = [o.prior for o in observers if o.prior is not None]
    if len(priors) < len(observers):
        missing = [o.name for o in observers if o.prior is None]
        raise ValueError(f"observers without a measured prior: {', '.join(missing)}")
    scaled = torch.tensor(priors, dtype=torch.float64) * 100 / temperature
    return tuple(zip(observers, scaled.softmax(0).tolist(), strict=True))
