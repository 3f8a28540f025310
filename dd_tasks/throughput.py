"""How fast panels were recovered, from what is kept of each: when it began, its seconds and its image-updates."""

from collections.abc import Iterable, Mapping
from typing import Any

from schemas.manifest import Cost, Metrics

SHORTEST = 0.001  # seconds: to this times are kept


def busy(facts: Iterable[Mapping[str, Any]]) -> float:
    """Seconds in which at least one was under way. Those that do not say when they began count one after the other."""
    known, apart = [], 0.0
    for fact in facts:
        if "began" in fact:
            known.append((fact["began"], fact["began"] + fact["seconds"]))
        else:
            apart += fact["seconds"]
    total, reached = apart, float("-inf")
    for began, ended in sorted(known):
        total += max(ended - max(began, reached), 0.0)
        reached = max(reached, ended)
    return total


def metrics(panels: list[Mapping[str, Any]], cost: Cost, store_bytes: Mapping[str, int]) -> Metrics:
    """Of a run's panels, by their facts."""
    seconds, overall = (max(s, SHORTEST) for s in (busy(panels), sum(cost.seconds.values())))
    return Metrics(
        panels=len(panels),
        panels_per_second=round(len(panels) / seconds, 3),
        image_updates_per_second=round(sum(panel["image_updates"] for panel in panels) / seconds, 3),
        image_updates_per_second_overall=round(cost.image_updates / overall, 3),
        store_bytes=dict(store_bytes),
    )
