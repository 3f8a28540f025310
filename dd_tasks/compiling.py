"""Networks made faster where the work ahead is long enough to pay for compiling."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dd_tasks.instance_norm import NormReluPool
from dd_tasks.lean import fused, quick
from dd_tasks.types import Observer

NETWORKS = 64  # that one process compiles, each for the size of its batches and for that of the last one
WORTH_COMPILING = 2e7  # pixels: below, compiling costs more than it gains


def worth_compiling(images: int, side: int) -> bool:
    """Whether the work ahead is so many images of this side, and there is a compiler to do it."""
    return images * side**2 >= WORTH_COMPILING and has_compiler()


def has_compiler() -> bool:
    """Of C++, by the name that torch looks for."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def for_training(net: nn.Module, images: int, side: int) -> nn.Module:
    """The network, to be trained by the same weights, in quicker operations, where the training ahead (so many images
    of this side) is worth it; and compiled, where those leave something to join. For every size of a batch by itself:
    what a process compiled before, and for which sizes, changes nothing."""
    if not worth_compiling(images, side):
        return net
    made = quick(net)
    if any(isinstance(module, NormReluPool) for module in made.modules()):
        return made
    _prepare()
    return torch.compile(made, dynamic=False)  # type: ignore[return-value]


def traced(graph: Callable[..., Any], *inputs: Tensor) -> Callable[..., Any]:
    """The graph, traced by the shapes of these inputs, by `torch.compile`, for others of the same; where there is no
    compiler torch runs it as it is."""
    from torch.fx.experimental.proxy_tensor import make_fx

    _prepare()
    by_shapes = make_fx(graph, tracing_mode="fake", _allow_non_fake_inputs=True)  # weights have values
    return torch.compile(by_shapes(*inputs), dynamic=False)


def _prepare() -> None:
    torch._dynamo.config.suppress_errors = True  # where compiling fails, the eager network does the same, slower
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * NETWORKS)


def swift(judge: Any, images: int, side: int) -> Observer:
    """The same observer, to be asked for the logits of so many images of this side: in fewer operations, where that is
    worth it and memory does not ask for pieces."""
    known = getattr(judge, "graphs", None)
    if known is None or not worth_compiling(images, side):
        return judge
    if "logits" not in known:
        known["logits"] = replace(judge, net=fused(judge.net))
    found: Observer = known["logits"]
    return found
