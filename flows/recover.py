"""Recovery of a whole canvas: its panels side by side, then together."""

from dd_tasks.recipe import Recipe
from dd_tasks.store import Ref
from flows.settings import Settings
from flows.tasks import gather, recover_panel
from flows.workspace import Data, Panel, Seat


def recover(
    recipe: Recipe, first: Ref, panels: tuple[Panel, ...], seats: tuple[Seat, ...], data: Data, settings: Settings
) -> tuple[tuple[Ref, ...], Ref]:
    """The finished panels, and the canvas they make. Within a flow."""
    begun = [recover_panel.submit(recipe, first, panel, seats, data, settings) for panel in panels]
    finished = tuple(panel.result() for panel in begun)
    return finished, gather(finished, settings)
