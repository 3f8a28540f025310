"""Recovery of a whole canvas: its panels side by side, then together."""

from dd_tasks.learners import Learners
from dd_tasks.recipe import Recipe
from dd_tasks.store import Ref
from flows.settings import Settings
from flows.tasks import draw_candidates, gather, recover_panel
from flows.workspace import Data, Panel, Seat, seed_of


def recover(
    recipe: Recipe, first: Ref, panels: tuple[Panel, ...], seats: tuple[Seat, ...], data: Data, seed: int,
    settings: Settings,
) -> tuple[tuple[Ref, ...], Ref]:  # fmt: skip
    """The finished panels, and the canvas they make. Within a flow."""
    asking = [ballot.voters for ballot in recipe.ballots if isinstance(ballot.voters, Learners)]
    real = draw_candidates(asking[0], 1, data, seed_of(seed, "real"), settings) if asking else None
    begun = [recover_panel.submit(recipe, first, panel, seats, data, settings, real) for panel in panels]
    finished = tuple(panel.result() for panel in begun)
    return finished, gather(finished, settings)
