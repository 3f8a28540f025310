"""Recovery of a whole canvas: its panels side by side, then together."""

from dataclasses import replace
from typing import cast

from dd_tasks.initialise import Demanding
from dd_tasks.opinions import pays_off
from dd_tasks.recipe import Recipe
from dd_tasks.store import Ref
from flows.engines import finished
from flows.settings import Settings
from flows.tasks import draw_candidates, gather, recover_panel
from flows.workspace import Data, Panel, Pool, Seat, device_of, seed_of


def recover(
    recipe: Recipe, first: Ref, panels: tuple[Panel, ...], seats: tuple[Seat, ...], data: Data, seed: int,
    settings: Settings, pools: tuple[Pool, ...] = (),
) -> tuple[tuple[Ref, ...], Ref]:  # fmt: skip
    """The finished panels, and the canvas they make. Within a flow."""
    asking = [cast(Demanding, ballot.voters) for ballot in recipe.ballots if ballot.voters.needs_real]
    most = max(asking, key=lambda voters: voters.demand(1), default=None)
    real = draw_candidates(most, 1, data, seed_of(seed, "real"), settings) if most else None
    begun = [
        (f"panel {panel.index}", recover_panel.submit(recipe, first, panel, seats, data, settings, real, pools))
        for panel in _compiled(panels, recipe, len(seats), data, settings)
    ]
    recovered = finished(begun, "panels")
    return recovered, gather(recovered, settings)


def _compiled(
    panels: tuple[Panel, ...], recipe: Recipe, committee: int, data: Data, settings: Settings
) -> tuple[Panel, ...]:
    """Where all of them together are long enough, panels of the full size are recovered by compiled observers."""
    judges = sum(ballot.voters.at_once(committee) for ballot in recipe.ballots)
    updates = panels[-1].stop * recipe.schedule.steps * judges
    if not pays_off(updates, data.side, device_of(settings)):
        return panels
    return tuple(replace(panel, compiled=panel.stop - panel.start == panels[0].stop) for panel in panels)
