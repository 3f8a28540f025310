"""Axes of a drawing: from values to positions, and round numbers to mark."""

from dataclasses import dataclass
from math import ceil, floor, log10


@dataclass(frozen=True)
class Mark:
    """A tick of an axis: where, in the drawing's units, and its label."""

    at: float
    text: str


@dataclass(frozen=True)
class Axis:
    """Maps values in [low, high] to positions from `start` to `end`, linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (log10(x) if self.log else x for x in (self.low, self.high, value))
        return round(self.start + (self.end - self.start) * (value - low) / (high - low), 2)

    @property
    def marks(self) -> list[Mark]:
        values = decades(self.low, self.high) if self.log else rounds(self.low, self.high)
        return [Mark(self(value), f"{value:,.10g}") for value in values]


def step_of(span: float, parts: int = 5) -> float:
    """A round step (1, 2 or 5 times a power of ten) that divides `span` into at most about `parts`."""
    power = 10 ** floor(log10(span / parts))
    return next(round_ * power for round_ in (1, 2, 5, 10) if round_ * power * parts >= span * (1 - 1e-9))


def rounds(low: float, high: float) -> list[float]:
    """Round numbers in [low, high]."""
    step = step_of(high - low)
    return [round(i * step, 10) for i in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten in [low, high], or powers of ten alone where those are many."""
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    values = [factor * 10.0**power for power in powers for factor in (1, 2, 5) if low <= factor * 10.0**power <= high]
    return values if len(values) <= 6 else [value for value in values if log10(value) % 1 == 0]


def upper(value: float) -> float:
    """The next value above that an axis ends at."""
    return ceil(value / step_of(value) - 1e-9) * step_of(value) if value > 0 else 1.0
