"""The one loop: pixels, seen crop by crop, follow what the seated observers say.

Shape letters: N images of a panel, V views of them, C channels, S side, T steps.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from dd_tasks.augment import inside, look, rolled
from dd_tasks.numerics import Watch
from dd_tasks.opinions import Panellist
from dd_tasks.recipe import Ballot, Recipe
from dd_tasks.schedule import at_work
from dd_tasks.types import Canvas, CropMemory, Studio, Tick

log = logging.getLogger(__name__)
SAID = 4  # lines a panel on its loss
ASK_EVERY = 10  # steps between the questions whether all images have finished; each waits for the device


@dataclass(frozen=True)
class Recovered:
    """A finished panel and what the report shows of it: loss_T, remembered_T (hard crops in memory), gaze_NSS (how
    often exploitation looked at a pixel), the image-updates spent, and the pixels_NCSS before they were rounded."""

    canvas: Canvas
    loss_T: Tensor
    remembered_T: Tensor
    gaze_NSS: Tensor
    image_updates: int
    pixels_NCSS: Tensor


def distill(recipe: Recipe, canvas: Canvas, studio: Studio, what: str = "recover") -> Recovered:
    """Optimise a panel's images by the recipe. The result depends on the arguments and the generator's state alone.

    Unsound where a loss or its gradient is not finite.
    """
    device, steps, side = studio.device, recipe.schedule.steps, canvas.images_NCHW.shape[-1]
    mean_C11, std_C11 = (torch.tensor(x, device=device).view(3, 1, 1) for x in (studio.mean, studio.std))
    targets_N = canvas.targets_N.to(device)
    scaled_NCSS = ((canvas.images_NCHW.to(device).float() / 255 - mean_C11) / std_C11).requires_grad_()
    optimiser = recipe.schedule.optimiser.over(scaled_NCSS)
    judge = convene(recipe.ballots, studio, len(canvas))
    memory = CropMemory.empty(len(canvas), recipe.schedule.memory, device)
    loss_T, remembered_T = torch.zeros(2, steps, device=device)
    gaze_NSS = torch.zeros(len(canvas), side, side, device=device)
    every_N, updates = torch.arange(len(canvas), device=device), 0
    watch = Watch(steps, device)
    active_N = every_N
    recipe.check_batch()
    batch = recipe.schedule.batch if recipe.schedule.batch < len(canvas) else 0
    every_BV = shares(every_N, batch, len(canvas)) if batch else None
    for tick in studio.track(recipe.schedule.ticks(), what, steps):
        if asked := tick.step % ASK_EVERY == 0:
            watch.expect()
        if asked and tick.viewer.may_finish and not memory.occupied_NM.any():
            loss_T, remembered_T = loss_T[: tick.step], remembered_T[: tick.step]
            break
        if asked or tick.progress == 0:
            left_N = at_work(tick.viewer, memory)
            active_N = every_N if left_N is None else left_N.nonzero()[:, 0]
        if not len(active_N):
            loss_T[tick.step], remembered_T[tick.step] = torch.nan, memory.occupied_NM.sum()
            continue
        some = len(active_N) < len(every_N)
        looked = memory[active_N] if some else memory
        chosen = tick.viewer.choose(looked, side, studio.rng, tick.progress)
        images_V = active_N if chosen.images_V is None else active_N[chosen.images_V]
        whole = chosen.images_V is None and not some
        seen_VCSS = scaled_NCSS if whole else scaled_NCSS[images_V]
        views_VCSS = look(seen_VCSS, chosen.crops) * std_C11 + mean_C11
        if chosen.roll_2 is not None:
            views_VCSS = rolled(views_VCSS, chosen.roll_2)
        shares_BV = every_BV if whole or not batch else shares(images_V, batch, len(canvas))
        found = judge(views_VCSS, targets_N if whole else targets_N[images_V], tick, shares_BV)
        watch.note(tick.step, found.loss, found.slope_VCSS)
        optimiser.zero_grad()
        views_VCSS.backward(found.slope_VCSS)
        optimiser.param_groups[0]["lr"] = tick.rate
        before_NCSS = scaled_NCSS.detach().clone() if some else None
        optimiser.step()
        with torch.no_grad():
            scaled_NCSS.clamp_(-mean_C11 / std_C11, (1 - mean_C11) / std_C11)
            if before_NCSS is not None:  # momentum moves those that have left, too
                scaled_NCSS.copy_(before_NCSS.index_copy(0, active_N, scaled_NCSS[active_N]))
        looked = tick.viewer.remember(looked, chosen, found.hardness_V.nan_to_num(0, 0))  # of what the watch reports
        memory = memory.updated(active_N, looked) if some else looked
        loss_T[tick.step] = found.loss if shares_BV is None else found.loss / shares_BV.sum()
        remembered_T[tick.step] = memory.occupied_NM.sum()
        if tick.viewer.may_finish:
            revisited_VSS = inside(chosen.crops.boxes_N4, side) & (chosen.memory_N >= 0)[:, None, None]
            gaze_NSS.index_add_(0, images_V, revisited_VSS.float())
        updates += len(views_VCSS) * found.seats
        if (tick.step + 1) % max(steps // SAID, 1) == 0 and log.isEnabledFor(logging.DEBUG):
            log.debug("%s: step %d of %d, loss %.4g", what, tick.step + 1, steps, found.loss.item())
    watch.expect()
    pixels_NCSS = (scaled_NCSS.detach() * std_C11 + mean_C11).clamp(0, 1)
    images_NCSS = (pixels_NCSS * 255).round().to(torch.uint8).cpu()
    finished = Canvas(images_NCSS, canvas.targets_N, canvas.sources)
    return Recovered(finished, loss_T.cpu(), remembered_T.cpu(), gaze_NSS.cpu(), updates, pixels_NCSS.cpu())


def shares(images_V: Tensor, batch: int, images: int) -> Tensor:
    """shares_BV of the views of these images in the mean of each of the batches, `batch` neighbouring images each."""
    of_VB = F.one_hot(images_V // batch, ceil(images / batch)).float()
    return (of_VB / of_VB.sum(0).clamp_min(1)).T


@dataclass(frozen=True)
class Verdict:
    """What those seated make of the views: loss, its gradient `slope_VCSS`, hardness_V (their weighted cross-entropy,
    nats), and their number."""

    loss: Tensor
    slope_VCSS: Tensor
    hardness_V: Tensor
    seats: int


Judge = Callable[[Tensor, Tensor, Tick, Tensor | None], Verdict]


def convene(ballots: tuple[Ballot, ...], studio: Studio, panel: int = 0) -> Judge:
    """(views_VCSS, targets_V, tick, shares_BV or None) -> Verdict. The terms of one ballot share the forward passes of
    those seated. Opinions on as many views as the `panel` are compiled where the studio says so."""
    size = panel if studio.compiled else 0
    convened = [
        (
            ballot.voters.convene(studio),
            Panellist(ballot.terms, tuple(t.convene(studio) for t in ballot.terms), ballot.voters.tells_hardness, size),
        )
        for ballot in ballots
    ]

    def judge(views_VCSS: Tensor, targets_V: Tensor, tick: Tick, shares_BV: Tensor | None = None) -> Verdict:
        loss, hardness_V, seats = views_VCSS.new_zeros(()), views_VCSS.new_zeros(len(views_VCSS)), 0
        slope_VCSS, views_VCSS = torch.zeros_like(views_VCSS), views_VCSS.detach()
        for seating, panellist in convened:
            for observer, weight in seating(tick.step):
                for opinion in panellist.opinions(observer, views_VCSS, targets_V, shares_BV):
                    loss = loss + weight * opinion.loss
                    slope_VCSS.add_(opinion.slope_VCSS, alpha=weight)
                    if opinion.hardness_V is not None:
                        hardness_V[opinion.rows] += weight * opinion.hardness_V
                seats += 1
        return Verdict(loss, slope_VCSS, hardness_V, seats)

    return judge
