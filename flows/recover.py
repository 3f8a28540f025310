"""Recovery of a whole canvas: its panels side by side, then together."""

from typing import cast

from dd_tasks.initialise import Demanding
from dd_tasks.recipe import Recipe
from dd_tasks.store import Ref
from flows.engines import finished
from flows.settings import Settings
from flows.tasks import draw_candidates, gather, recover_panel
from flows.workspace import Data, Panel, Pool, Seat, seed_of


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
        for panel in panels
    ]
    recovered = finished(begun, "panels")
    return recovered, gather(recovered, settings)
