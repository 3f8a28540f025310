"""What a network is before it has weights: its operations, bytes and layers, from a copy without memory."""

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dd_tasks.networks import Shape, build
from dd_tasks.statistics import GRID, convolutions, watched


@dataclass(frozen=True)
class Anatomy:
    """Floating-point operations of one image forwards (a multiplication and an addition are two), bytes of the weights,
    the layers that are watched and their channels, the convolutions among them and the patches of their inputs, and the
    features that the last linear layer takes in."""

    flops: float
    weight_bytes: int
    layers: int
    channels: int
    convolutions: int
    patches: int
    features: int


@lru_cache(maxsize=64)
def anatomy(architecture: str, side: int, classes: int) -> Anatomy:
    """InputError for an architecture that nobody knows, or that cannot look at this side."""
    with torch.device("meta"):
        net = build(architecture, Shape(classes, side)).eval()
        image_NCSS = torch.empty(1, 3, side, side)
    patches: list[int] = []

    def hear(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        patches.append(prod(min(GRID, size) for size in inputs[0].shape[2:]))

    handles = [layer.register_forward_pre_hook(hear) for layer in convolutions(net)]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(image_NCSS)
    for handle in handles:
        handle.remove()
    layers = watched(net)
    channels = sum(m.num_features if isinstance(m, nn.BatchNorm2d) else m.in_channels for m in layers)  # type: ignore[misc]
    weight_bytes = sum(tensor.nbytes for tensor in net.state_dict().values())
    flops = float(counter.get_total_flops())
    linear = [m.in_features for m in net.modules() if isinstance(m, nn.Linear)]
    return Anatomy(
        flops, weight_bytes, len(layers), channels, len(convolutions(net)), sum(patches), linear[-1] if linear else 0
    )
