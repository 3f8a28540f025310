"""Relabelling and a student written plainly, as the field's scripts are: the yardstick of `benchmarks.students`.

A Dataset that crops one image at a time, a DataLoader, CutMix by batch, one observer after the other, half-precision
logits kept by epoch; then the same views made again for a student with AdamW and an average of its weights. The same
mathematics as `dd_tasks.label.Relabel` and `dd_tasks.students.train` (methods sections 4 and 5c), without their code.

Shape letters: N images, B views of a batch, C channels, S side, K classes.
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torchvision.transforms.functional as view
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

RATE, DECAY, EMA, CLASS_WEIGHT, TAIL = 1e-3, 0.01, 0.99, 0.025, 1 / 6
Box = tuple[int, int, int, int]  # top, left, height, width


@dataclass
class View:
    """One drawn view of one image."""

    image: int
    box: Box
    flip: bool


@dataclass
class Mixed:
    """A view, what is pasted into it and where."""

    own: View
    partner: View
    paste: Box


class Images(Dataset[Tensor]):
    """The views one by one, pixels in [0, 1]."""

    def __init__(self, images_NCSS: Tensor, views: Sequence[View]) -> None:
        self.images_NCSS, self.views = images_NCSS, views

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, i: int) -> Tensor:
        seen = self.views[i]
        image_CSS = self.images_NCSS[seen.image].float() / 255
        crop_CSS = view.resized_crop(image_CSS, *seen.box, list(image_CSS.shape[1:]), antialias=False)
        return view.hflip(crop_CSS) if seen.flip else crop_CSS


def pasted(own_BCSS: Tensor, partners_BCSS: Tensor, boxes: Sequence[Box]) -> Tensor:
    """CutMix."""
    mixed_BCSS = own_BCSS.clone()
    for i, (top, left, tall, wide) in enumerate(boxes):
        window = i, slice(None), slice(top, top + tall), slice(left, left + wide)
        mixed_BCSS[window] = partners_BCSS[window]
    return mixed_BCSS


def relabel(images_NCSS: Tensor, epochs: Sequence[Sequence[Mixed]], observers: Sequence[nn.Module]) -> list[Tensor]:
    """Of each epoch the observers' mean logits, half precision. An epoch is one batch, and holds every partner."""
    labels = []
    for every in epochs:
        row_of = {mixed.own.image: row for row, mixed in enumerate(every)}
        partners = [row_of[mixed.partner.image] for mixed in every]
        loader = DataLoader(Images(images_NCSS, [mixed.own for mixed in every]), batch_size=len(every))
        for own_BCSS in loader:
            mixed_BCSS = pasted(own_BCSS, own_BCSS[partners], [mixed.paste for mixed in every])
            with torch.no_grad():
                logits_BK = torch.stack([observer(mixed_BCSS) for observer in observers]).mean(0)
            labels.append(logits_BK.half().cpu())
    return labels


class Lessons(Dataset[tuple[Tensor, Tensor, Tensor, int, int, float]]):
    """Labelled views one by one: own and partner's pixels, the label, both classes, the own share of the area."""

    def __init__(
        self, images_NCSS: Tensor, targets: Sequence[int], views: Sequence[Mixed], labels: Sequence[Tensor]
    ) -> None:
        own, partners = [v.own for v in views], [v.partner for v in views]
        self.own, self.partners = Images(images_NCSS, own), Images(images_NCSS, partners)
        self.targets, self.views, self.labels = targets, views, labels

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor, int, int, float]:
        seen, own_CSS = self.views[i], self.own[i]
        tall, wide = seen.paste[2:]
        partner_CSS = self.partners[i] if tall and wide else own_CSS
        share = 1 - tall * wide / own_CSS[0].numel()
        return (
            own_CSS, partner_CSS, self.labels[i].float(), self.targets[seen.own.image],
            self.targets[seen.partner.image], share,
        )  # fmt: skip


def student(
    net: nn.Module, data: Lessons, epochs: Iterable[Sequence[Sequence[int]]], steps: int, watch: Callable[[float], None]
) -> nn.Module:
    """The average of the weights of `net` after all epochs, each of some batches of rows of `data`; `watch` is told of
    every loss."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=DECAY)
    average, step = copy.deepcopy(net), 0
    for batches in epochs:
        loader = DataLoader(data, batch_sampler=batches)
        for rows, (own_BCSS, partners_BCSS, labels_BK, first_B, second_B, share_B) in zip(batches, loader, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = RATE * falling(step / steps)
            logits_BK = net(pasted(own_BCSS, partners_BCSS, [data.views[row].paste for row in rows]))
            first = F.cross_entropy(logits_BK, first_B, reduction="none")
            second = F.cross_entropy(logits_BK, second_B, reduction="none")
            by_class = (share_B.float() * first + (1 - share_B.float()) * second).mean()
            loss = F.mse_loss(logits_BK, labels_BK) + CLASS_WEIGHT * by_class
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                for kept, now in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
                    kept.copy_(now if step == 0 else EMA * kept + (1 - EMA) * now)
            watch(loss.item())
            step += 1
    return average


def falling(progress: float) -> float:
    """Half a cosine of twice the length, then a line to zero."""
    smooth = 0.5 * (1 + math.cos(math.pi * min(progress, 1 - TAIL) / 2))
    return smooth if progress < 1 - TAIL else smooth * (1 - progress) / TAIL


def top1(net: nn.Module, images_NCSS: Tensor, labels_N: Tensor) -> float:
    """The share that the network gets right."""
    net.eval()
    right = 0
    for images_BCSS, labels_B in zip(images_NCSS.split(100), labels_N.split(100), strict=True):
        with torch.no_grad():
            right += int((net(images_BCSS.float() / 255).argmax(1) == labels_B).sum())
    return right / len(labels_N)
