"""What a frozen network's layers see: moments of their inputs, per sample, per class and over all real data.

Shape letters: N samples, K classes, C channels of the layer (or patches of its input), P x Q patches of an H x W map.
G-VBSM and EDC match these (methods section 4).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd_tasks.lean import Scaled
from dd_tasks.types import Moments
from dd_tasks.winograd import Frozen

GRID = 16  # patches a side, at most


@dataclass(frozen=True)
class LayerStatistics:
    """Of one layer's input over the real data, each the mean over samples of a sample's own mean and variance, by
    channel or by patch; of a BatchNorm's, `mean_C` and `variance_C` are its running statistics instead."""

    batch_norm: bool
    mean_C: Tensor
    variance_C: Tensor
    mean_KC: Tensor
    variance_KC: Tensor


def watched(net: nn.Module) -> tuple[nn.Module, ...]:
    """The layers whose inputs are matched, in the order of the module tree: BatchNorm and convolutions."""
    inner = {m.like for m in net.modules() if isinstance(m, Frozen)}
    kinds = nn.BatchNorm2d | Scaled | nn.Conv2d | Frozen
    return tuple(m for m in net.modules() if isinstance(m, kinds) and m not in inner)


def convolutions(net: nn.Module) -> tuple[nn.Module, ...]:
    """The layers whose inputs are matched by patches as well, in the order of the module tree."""
    return tuple(m for m in watched(net) if isinstance(m, nn.Conv2d | Frozen))


class _Moments(torch.autograd.Function):
    """In one pass over the input, sums and squared sums, and one back. What cancels in the variance's value does not in
    its gradient, which is of the distances to the mean."""

    @staticmethod
    def forward(ctx: Any, input_NPC: Tensor) -> tuple[Tensor, Tensor]:
        mean_NC = input_NPC.mean(1)
        variance_NC = (input_NPC * input_NPC).mean(1) - mean_NC.square()
        ctx.save_for_backward(input_NPC, mean_NC)
        return mean_NC, variance_NC.clamp_min(0)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:  # by mean_NC, by variance_NC
        input_NPC, mean_NC = ctx.saved_tensors
        by_mean_NC, by_variance_NC = (slope / input_NPC.shape[1] for slope in slopes)
        rest_NC = by_mean_NC - 2 * by_variance_NC * mean_NC
        return torch.addcmul(rest_NC[:, None], input_NPC, 2 * by_variance_NC[:, None])


def moments_of(input_NCHW: Tensor) -> Moments:
    """With channels last, over the positions: torch.var_mean is slow on a CPU."""
    return Moments(*_Moments.apply(input_NCHW.permute(0, 2, 3, 1).flatten(1, 2)))


def patches_of(input_NCHW: Tensor) -> Moments:
    """The moments of each cell of a GRID x GRID grid, over the cell's positions and all channels. Cells are those of
    adaptive pooling: they overlap where they do not divide the map, and in a smaller map each is one position.

    The variance is that of the channels at a position, pooled, and that of the positions' means: nothing cancels where
    a cell is one position. Pooling by two matrix products is deterministic backwards on every device.
    """
    rows_HP, columns_WQ = (_cells(size, input_NCHW) for size in input_NCHW.shape[2:])

    def pooled(map_NHW: Tensor) -> Tensor:
        return (rows_HP.mT @ map_NHW @ columns_WQ).flatten(1)

    variance_NHW, mean_NHW = torch.var_mean(input_NCHW, 1, correction=0)
    mean_NC = pooled(mean_NHW)
    between_NC = pooled(mean_NHW.square()) - mean_NC.square()
    return Moments(mean_NC, pooled(variance_NHW) + between_NC)


def _cells(size: int, like: Tensor) -> Tensor:
    """weights_HP that average each of at most GRID cells of `size` positions."""
    return F.adaptive_avg_pool1d(torch.eye(size, dtype=like.dtype, device=like.device), min(GRID, size))


@contextmanager
def listening(
    layers: Iterable[nn.Module], moments: Callable[[Tensor], Moments] = moments_of
) -> Iterator[dict[nn.Module, Moments]]:
    """Within the block, every forward pass leaves the moments of these layers' inputs in the dict it yields."""
    heard: dict[nn.Module, Moments] = {}

    def hear(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        heard[layer] = moments(inputs[0])

    handles = [layer.register_forward_pre_hook(hear) for layer in layers]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def measure(
    net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], classes: int, *, patches: bool = False
) -> tuple[tuple[LayerStatistics, ...], Tensor]:
    """One pass over (pixels_NCHW, labels_N): the statistics of every watched layer by channel, or of every convolution
    by patch, and counts_K of the samples seen.

    A class without samples gets the statistics of all classes. ValueError where there is not one sample.
    """
    layers, moments = (convolutions(net), patches_of) if patches else (watched(net), moments_of)
    sums: list[Tensor] = []
    counts_K = torch.zeros(classes, dtype=torch.float64)
    for pixels_NCHW, labels_N in batches:
        with listening(layers, moments) as heard:
            net(pixels_NCHW)
        readings = [torch.stack([heard[m].mean_NC, heard[m].variance_NC], 1).double().cpu() for m in layers]
        sums = sums or [torch.zeros(classes, 2, r.shape[2], dtype=torch.float64) for r in readings]
        labels_N = labels_N.cpu()
        counts_K.index_add_(0, labels_N, torch.ones(len(labels_N), dtype=torch.float64))
        for total, reading in zip(sums, readings, strict=True):
            total.index_add_(0, labels_N, reading)
    if not sums:
        raise ValueError("no samples to measure statistics on")
    return tuple(_summary(m, s, counts_K) for m, s in zip(layers, sums, strict=True)), counts_K


def _summary(layer: nn.Module, sums_K2C: Tensor, counts_K: Tensor) -> LayerStatistics:
    overall_2C = sums_K2C.sum(0) / counts_K.sum()
    seen = counts_K[:, None, None] > 0
    classwise_K2C = torch.where(seen, sums_K2C / counts_K.clamp_min(1)[:, None, None], overall_2C)
    batch_norm = isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None
    if batch_norm:
        overall_2C = torch.stack([layer.running_mean, layer.running_var]).cpu()  # type: ignore[list-item]
    mean_C, variance_C = overall_2C.float().unbind(0)
    mean_KC, variance_KC = classwise_K2C.float().unbind(1)
    return LayerStatistics(batch_norm, mean_C, variance_C, mean_KC, variance_KC)


def to_tensors(statistics: tuple[LayerStatistics, ...]) -> dict[str, Tensor]:
    """For safetensors: `LAYER.FIELD` -> tensor; `from_tensors` reads it back."""
    tensors: dict[str, Tensor] = {}
    for i, layer in enumerate(statistics):
        for field in ("mean_C", "variance_C", "mean_KC", "variance_KC"):
            tensors[f"{i:04d}.{field}"] = getattr(layer, field).contiguous()
        tensors[f"{i:04d}.batch_norm"] = torch.tensor(layer.batch_norm)
    return tensors


def from_tensors(tensors: dict[str, Tensor], device: torch.device) -> tuple[LayerStatistics, ...]:
    layers: dict[str, dict[str, Tensor]] = {}
    for key in sorted(tensors):
        number, field = key.split(".")
        layers.setdefault(number, {})[field] = tensors[key]
    return tuple(
        LayerStatistics(bool(fields["batch_norm"]), **{k: v.to(device) for k, v in fields.items() if k != "batch_norm"})
        for fields in layers.values()
    )
