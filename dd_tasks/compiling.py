"""Networks made faster where the work ahead is long enough to pay for compiling."""

import os
import shutil

import torch
from torch import nn

from dd_tasks.lean import quick

WORTH_COMPILING = 2e7  # pixels: below, compiling costs more than it gains


def worth_compiling(images: int, side: int) -> bool:
    """Whether the work ahead is so many images of this side, and there is a compiler to do it."""
    return images * side**2 >= WORTH_COMPILING and has_compiler()


def has_compiler() -> bool:
    """Of C++, by the name that torch looks for."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def compiled(net: nn.Module, images: int, side: int) -> nn.Module:
    """`torch.compile` where the training ahead (so many images of this side) is worth it."""
    if not worth_compiling(images, side):
        return net
    torch._dynamo.config.suppress_errors = True  # where compiling fails, the eager network does the same, slower
    return torch.compile(net)  # type: ignore[return-value]


def thrifty(net: nn.Module, images: int, side: int) -> nn.Module:
    """The same network, by the same weights, in quicker operations: on a processor, where that is worth it."""
    return quick(net) if worth_compiling(images, side) else net
