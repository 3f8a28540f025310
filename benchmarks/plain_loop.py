"""The two-phase method written plainly, as its authors' scripts are: the yardstick of `benchmarks.recover`.

One crop an image in Python, a hook a layer, Adam, a copy to the host at every step. The same mathematics as
`dd_tasks.distill` under the preset e2d (methods sections 4 and 5), without its code.

Shape letters: N images, C channels, S side, K classes.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
import torchvision.transforms.functional as view
from torch import Tensor, nn
from torchvision.transforms import RandomResizedCrop

RATE, BETAS, MEMORY_THRESHOLD = 0.1, (0.5, 0.9), 0.5
STATISTICS_WEIGHT, FIRST_LAYER, MOMENTUM = 0.01, 10.0, 0.8
SCALE, RATIO = (0.5, 1.0), (3 / 4, 4 / 3)


@dataclass
class Layer:
    """What one layer's input should look like, and the average of what it did look like."""

    batch_norm: bool
    mean_C: Tensor
    variance_C: Tensor
    mean_KC: Tensor
    variance_KC: Tensor
    average: list[Tensor] = field(default_factory=list)
    gap: Tensor | None = None

    def hook(self, targets_N: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0]
            mean = x.mean([2, 3]).mean(0)
            within = x.var([2, 3], unbiased=False).mean(0)
            whole = x.var([0, 2, 3], unbiased=False)
            now = [mean, within, whole]
            if not self.average:
                self.average = [t.detach() for t in now]
            self.average = [MOMENTUM * a + (1 - MOMENTUM) * t.detach() for a, t in zip(self.average, now, strict=True)]
            mean, within, whole = (t + (a - t).detach() for a, t in zip(self.average, now, strict=True))
            overall = torch.norm(mean - self.mean_C) + torch.norm(
                (whole if self.batch_norm else within) - self.variance_C
            )
            by_class = torch.norm(mean - self.mean_KC[targets_N].mean(0)) + torch.norm(
                within - self.variance_KC[targets_N].mean(0)
            )
            self.gap = 0.5 * overall + 0.5 * by_class

        return after


@dataclass
class Judge:
    """A frozen network of normalised images, and its hooked layers."""

    net: nn.Module
    layers: list[Layer]


@dataclass
class Step:
    """What one step looked at: of every image its box (top, left, height, width), whether it was flipped, and which
    remembered crop it was, -1 for a fresh one; the images after it, normalised."""

    boxes: list[tuple[int, int, int, int]]
    flips: list[bool]
    memory: list[int]
    images_NCSS: Tensor


def explore_and_exploit(
    images_NCSS: Tensor,
    targets_N: Tensor,
    judges: Sequence[Judge],
    bounds: tuple[Tensor, Tensor],
    steps: tuple[int, int],
    watch: Callable[[Step], None],
) -> Tensor:
    """The normalised images after `steps` of exploration and of exploitation; `bounds` are the lowest and the highest
    value of each channel. `watch` is told of every step."""
    hooks = [
        module.register_forward_hook(layer.hook(targets_N))
        for judge in judges
        for module, layer in zip(_hooked(judge.net), judge.layers, strict=True)
    ]
    images_NCSS = images_NCSS.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([images_NCSS], lr=RATE, betas=BETAS, eps=1e-8, foreach=False)
    remembered: list[list[tuple[tuple[int, int, int, int], bool, float] | None]] = [[] for _ in range(len(images_NCSS))]
    every = sum(steps)
    for step in range(every):
        judge = judges[step % len(judges)]
        views, boxes, flips, memory = [], [], [], []
        for i in range(len(images_NCSS)):
            box, flip, place = choose(images_NCSS[i], remembered[i], exploring=step < steps[0])
            crop = view.resized_crop(images_NCSS[i], *box, list(images_NCSS.shape[2:]), antialias=False)
            views.append(view.hflip(crop) if flip else crop)
            boxes.append(box)
            flips.append(flip)
            memory.append(place)
        for group in optimiser.param_groups:
            group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / every))
        optimiser.zero_grad()
        logits = judge.net(torch.stack(views))
        loss = F.cross_entropy(logits, targets_N)
        for number, layer in enumerate(judge.layers):
            assert layer.gap is not None
            loss = loss + STATISTICS_WEIGHT * (FIRST_LAYER if number == 0 else 1.0) * layer.gap
        loss.backward()
        optimiser.step()
        for channel, (low, high) in enumerate(zip(*bounds, strict=True)):
            images_NCSS.data[:, channel] = torch.clamp(images_NCSS.data[:, channel], low.item(), high.item())
        hardness = F.cross_entropy(logits.detach(), targets_N, reduction="none").tolist()
        for i, hard in enumerate(hardness):
            if step < steps[0]:
                remembered[i].append((boxes[i], flips[i], hard) if hard > MEMORY_THRESHOLD else None)
            elif memory[i] >= 0:
                remembered[i][memory[i]] = (boxes[i], flips[i], hard) if hard > MEMORY_THRESHOLD else None
        watch(Step(boxes, flips, memory, images_NCSS.detach()))
    for handle in hooks:
        handle.remove()
    return images_NCSS.detach()


def choose(
    image_CSS: Tensor, crops: list[tuple[tuple[int, int, int, int], bool, float] | None], *, exploring: bool
) -> tuple[tuple[int, int, int, int], bool, int]:
    """A random crop; in exploitation one that was remembered, the harder the likelier."""
    kept = [(place, crop) for place, crop in enumerate(crops) if crop is not None]
    if exploring or not kept:
        return RandomResizedCrop.get_params(image_CSS, list(SCALE), list(RATIO)), random.random() < 0.5, -1
    odds = torch.softmax(torch.tensor([crop[2] for _, crop in kept]), 0).tolist()
    place, (box, flip, _) = random.choices(kept, odds)[0]
    return box, flip, place


def _hooked(net: nn.Module) -> list[nn.Module]:
    return [m for m in net.modules() if isinstance(m, nn.BatchNorm2d | nn.Conv2d)]
