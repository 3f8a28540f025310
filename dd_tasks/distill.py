"""The one loop: pixels, seen crop by crop, follow what the seated observers say.

Shape letters: N images of a panel, C channels, S side, T steps.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dd_tasks.augment import inside, look, rolled
from dd_tasks.recipe import Ballot, Recipe
from dd_tasks.types import Canvas, CropMemory, Studio, Tick

ASK_EVERY = 10  # steps between the questions whether all images have finished; each waits for the device


@dataclass(frozen=True)
class Recovered:
    """A finished panel and what the report shows of it: loss_T, remembered_T (hard crops in memory), gaze_NSS (how
    often exploitation looked at a pixel), and the image-updates spent."""

    canvas: Canvas
    loss_T: Tensor
    remembered_T: Tensor
    gaze_NSS: Tensor
    image_updates: int


def distill(recipe: Recipe, canvas: Canvas, studio: Studio, what: str = "recover") -> Recovered:
    """Optimise a panel's images by the recipe. The result depends on the arguments and the generator's state alone."""
    device, steps, side = studio.device, recipe.schedule.steps, canvas.images_NCHW.shape[-1]
    mean_C11, std_C11 = (torch.tensor(x, device=device).view(3, 1, 1) for x in (studio.mean, studio.std))
    targets_N = canvas.targets_N.to(device)
    scaled_NCSS = ((canvas.images_NCHW.to(device).float() / 255 - mean_C11) / std_C11).requires_grad_()
    optimiser = recipe.schedule.optimiser.over(scaled_NCSS)
    judge = convene(recipe.ballots, studio)
    memory = CropMemory.empty(len(canvas), recipe.schedule.memory, device)
    loss_T, remembered_T = torch.zeros(2, steps, device=device)
    gaze_NSS = torch.zeros(len(canvas), side, side, device=device)
    updates = 0
    for tick in studio.track(recipe.schedule.ticks(), what, steps):
        if tick.viewer.may_finish and tick.step % ASK_EVERY == 0 and not memory.occupied_NM.any():
            loss_T, remembered_T = loss_T[: tick.step], remembered_T[: tick.step]
            break
        chosen = tick.viewer.choose(memory, side, studio.rng, tick.progress)
        views_NCSS = look(scaled_NCSS, chosen.crops) * std_C11 + mean_C11
        if chosen.roll_2 is not None:
            views_NCSS = rolled(views_NCSS, chosen.roll_2)
        loss, hardness_N, seats = judge(views_NCSS, targets_N, tick)
        optimiser.zero_grad()
        loss.backward()
        optimiser.param_groups[0]["lr"] = tick.rate
        optimiser.step()
        with torch.no_grad():
            scaled_NCSS.clamp_(-mean_C11 / std_C11, (1 - mean_C11) / std_C11)
        memory = tick.viewer.remember(memory, chosen, hardness_N)
        loss_T[tick.step], remembered_T[tick.step] = loss.detach(), memory.occupied_NM.sum()
        gaze_NSS += inside(chosen.crops.boxes_N4, side) & (chosen.memory_N >= 0)[:, None, None]
        updates += len(canvas) * seats
    pixels_NCSS = (scaled_NCSS.detach() * std_C11 + mean_C11).clamp(0, 1)
    images_NCSS = (pixels_NCSS * 255).round().to(torch.uint8).cpu()
    finished = Canvas(images_NCSS, canvas.targets_N, canvas.sources)
    return Recovered(finished, loss_T.cpu(), remembered_T.cpu(), gaze_NSS.cpu(), updates)


Judge = Callable[[Tensor, Tensor, Tick], tuple[Tensor, Tensor, int]]


def convene(ballots: tuple[Ballot, ...], studio: Studio) -> Judge:
    """(views_NCSS, targets_N, tick) -> loss, hardness_N (the weighted cross-entropy of those seated), their number.

    The terms of one ballot share each seated observer's forward pass.
    """
    convened = [
        (
            ballot.voters.convene(studio),
            [term.convene(studio) for term in ballot.terms],
            any(term.needs_moments for term in ballot.terms),
        )
        for ballot in ballots
    ]

    def judge(views_NCSS: Tensor, targets_N: Tensor, tick: Tick) -> tuple[Tensor, Tensor, int]:
        loss, hardness_N, seated = views_NCSS.new_zeros(()), views_NCSS.new_zeros(len(views_NCSS)), 0
        for seating, terms, moments in convened:
            for observer, weight in seating(tick.step):
                reading = observer.read(views_NCSS, moments=moments)
                loss = loss + weight * sum(term(observer, reading, targets_N) for term in terms)
                with torch.no_grad():
                    own_N = F.cross_entropy(reading.logits_NK, targets_N, reduction="none")
                    hardness_N = hardness_N + weight * own_N
                seated += 1
        return loss, hardness_N, seated

    return judge
