"""Networks rewritten: the same numbers in fewer and quicker operations. `lean` ones are frozen, for their gradient by
images, and to be compiled; `quick` ones are in training; `fused` ones are frozen and need no compiler.

Modules are known by their exact types: what inherits from one of torch's, as timm's do, computes something else.

Shape letters: N images, C and O channels in and out, H x W pixels, P = C x 3 x 3 weights a channel out, S = H x W.
"""

import copy
import logging
from collections.abc import Iterator
from itertools import chain, islice, product
from typing import Any, TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from dd_tasks import winograd
from dd_tasks.instance_norm import NormReluPool
from dd_tasks.native import LANES, kernels

log = logging.getLogger(__name__)
FEW = 3  # channels of images, at most
MAKERS = nn.Conv2d, nn.GroupNorm  # of tensors that nothing else holds


class Scaled(nn.Module):
    """A frozen BatchNorm2d as what it does: one product and one sum a value."""

    scale_C11: Tensor
    shift_C11: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        scale_C = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight.detach())
        shift_C = (0 if norm.bias is None else norm.bias.detach()) - norm.running_mean * scale_C
        self.register_buffer("scale_C11", scale_C.view(-1, 1, 1))
        self.register_buffer("shift_C11", shift_C.view(-1, 1, 1))

    def forward(self, input_NCHW: Tensor) -> Tensor:
        return input_NCHW * self.scale_C11 + self.shift_C11


class Halved(nn.Module):
    """Max pooling of 2 x 2 positions as maxima of four slices: compiled, its gradient needs no scatter."""

    def forward(self, input_NCHW: Tensor) -> Tensor:
        even_NCHW = _even(input_NCHW)
        one, other, third, fourth = (even_NCHW[:, :, i::2, j::2] for j in (0, 1) for i in (0, 1))
        return torch.maximum(torch.maximum(one, other), torch.maximum(third, fourth))


class Averaged(nn.Module):
    """Average pooling of 2 x 2 positions as a mean: compiled, it and its gradient keep channels last."""

    def forward(self, input_NCHW: Tensor) -> Tensor:
        even_NHWC = _even(input_NCHW).permute(0, 2, 3, 1)
        return even_NHWC.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).mean((2, 4)).permute(0, 3, 1, 2)


def _even(input_NCHW: Tensor) -> Tensor:
    """Without an odd last row or column."""
    height, width = (size - size % 2 for size in input_NCHW.shape[2:])
    return input_NCHW[:, :, :height, :width]


class _OfImages(torch.autograd.Function):
    """A 3x3 convolution of frozen weights with a border of one zero, whose gradient is by the images alone: a matrix
    product with the weights, whose nine parts are shifted and summed."""

    @staticmethod
    def forward(ctx: Any, images_NCHW: Tensor, weight_OC33: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight_OC33)
        return F.conv2d(images_NCHW, weight_OC33, bias_O, padding=1)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        (slope_NOHW,), (weight_OC33,) = slopes, ctx.saved_tensors
        n, outer, height, width = slope_NOHW.shape
        weight_PO = weight_OC33.permute(1, 2, 3, 0).reshape(-1, outer)  # P: C, 3, 3
        parts_NPS = weight_PO @ slope_NOHW.permute(0, 2, 3, 1).reshape(n, height * width, outer).mT
        padded = F.pad(parts_NPS.view(n, -1, 3, 3, height, width), (1, 1, 1, 1))
        shifted = [
            padded[:, :, i, j, 2 - i : 2 - i + height, 2 - j : 2 - j + width] for i, j in product(range(3), repeat=2)
        ]
        return sum(shifted[1:], shifted[0]), None, None


class Stem(nn.Conv2d):
    """What a convolution of images does, whose gradient a processor's library makes slowly."""

    def __init__(self, like: nn.Conv2d) -> None:
        super().__init__(like.in_channels, like.out_channels, 3, padding=1, bias=like.bias is not None)
        self.load_state_dict(like.state_dict())

    def forward(self, input: Tensor) -> Tensor:
        return _OfImages.apply(input, self.weight, self.bias)


def lean(net: nn.Module) -> nn.Module:
    """A copy of a frozen network that compiles well and computes the same, but for the gradient of equal maxima."""
    twin = copy.deepcopy(net)
    for path, module in list(twin.named_modules()):
        if type(module) is nn.BatchNorm2d and module.running_mean is not None:
            twin.set_submodule(path, Scaled(module))
        elif _halves(module):
            twin.set_submodule(path, Halved() if type(module) is nn.MaxPool2d else Averaged())
        elif winograd.is_wide(module):
            twin.set_submodule(path, winograd.Frozen(module))
        elif winograd.is_plain(module) and module.in_channels <= FEW:
            twin.set_submodule(path, Stem(module))
    return twin


def quick(net: nn.Module) -> nn.Module:
    """The same network, to be trained by the same weights and buffers, on a processor: its wide 3x3 convolutions take
    fewer multiplications, its average pools no transposes, and what follows those of a ConvNet is one module."""
    made = copy.deepcopy(net, {id(t): t for t in chain(net.parameters(), net.buffers())})
    if not _is_of_processor(net):
        return made
    _join_pools(made)
    for path, module in list(made.named_modules()):
        if winograd.is_wide(module):
            made.set_submodule(path, winograd.Convolution(module))
        elif type(module) is nn.AvgPool2d and _halves(module):
            made.set_submodule(path, Averaged())
    return made


def fused(net: nn.Module) -> nn.Module:
    """A copy of a frozen network that says the same, without its gradient: BatchNorms join the convolutions before
    them, and on a processor other operations are quicker ones."""
    twin = _joined(net)
    if not _is_of_processor(net):
        return twin
    _join_pools(twin)
    for path, module in list(twin.named_modules()):
        if winograd.is_wide(module):
            twin.set_submodule(path, winograd.Frozen(module))
    return twin


def _joined(net: nn.Module) -> nn.Module:
    """A copy without the norms that follow a convolution, where its own code can be traced. ReLUs of what nothing else
    reads need no memory of their own."""
    from torch.fx.experimental.optimization import fuse

    try:
        twin = cast(GraphModule, fuse(net))
    except Exception as error:  # whatever a network does
        log.debug("its BatchNorms stay: %s", error)
        return copy.deepcopy(net)
    calls = _calls(twin)
    kinds: dict[str, type] = {path: type(twin.get_submodule(path)) for path in calls}
    if any(len(nodes) > 1 for path, nodes in calls.items() if kinds[path] is nn.Conv2d):
        return copy.deepcopy(net)
    for path, nodes in calls.items():
        if kinds[path] is nn.ReLU and len(nodes) == 1:
            (source,) = nodes[0].all_input_nodes
            made = kinds.get(str(source.target)) if source.op == "call_module" else None
            if made in MAKERS and len(source.users) == 1:
                cast(nn.ReLU, twin.get_submodule(path)).inplace = True
    return twin


def _join_pools(net: nn.Module) -> None:
    """Where only a ReLU reads what a norm made, and only a mean of 2 x 2 pixels what that made, all three become one
    module."""
    if not any(_is_alone(module) for module in net.modules()):
        return
    try:
        calls = _calls(torch.fx.symbolic_trace(net))
    except Exception as error:  # whatever a network does
        log.debug("its norms stay: %s", error)
        return
    for path, (node, *_) in calls.items():
        three = [path, *islice(_readers(node), 2)]
        norm, *others = (net.get_submodule(each) for each in three)
        once = all(len(calls[each]) == 1 for each in three)
        if once and _is_alone(norm) and [type(m) for m in others] == [nn.ReLU, nn.AvgPool2d] and _halves(others[1]):
            for each, module in zip(three, (NormReluPool(norm), nn.Identity(), nn.Identity()), strict=True):
                net.set_submodule(each, module)


def _calls(traced: GraphModule) -> dict[str, list[Node]]:
    """Of every module by its path, where it is called."""
    calls: dict[str, list[Node]] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(node.target, []).append(node)
    return calls


def _readers(node: Node) -> Iterator[str]:
    """The modules after it, as long as each alone reads what the one before made."""
    while len(node.users) == 1:
        (node,) = node.users
        if node.op != "call_module":
            return
        yield str(node.target)


def _is_of_processor(net: nn.Module) -> bool:
    return all(weights.device.type == "cpu" for weights in net.parameters())


def _is_alone(norm: nn.Module) -> TypeGuard[nn.GroupNorm]:
    """Of every channel by itself; where there is what joins it to others, and channels that fill its vectors."""
    if type(norm) is not nn.GroupNorm or norm.num_groups != norm.num_channels or not norm.affine:
        return False
    return norm.num_channels % LANES == 0 and kernels() is not None


def _halves(pool: nn.Module) -> TypeGuard[nn.MaxPool2d | nn.AvgPool2d]:
    if type(pool) is not nn.MaxPool2d and type(pool) is not nn.AvgPool2d:
        return False
    plain = pool.padding == 0 and not pool.ceil_mode and pool.kernel_size in (2, (2, 2)) and pool.stride in (2, (2, 2))
    if isinstance(pool, nn.AvgPool2d):
        return plain and pool.divisor_override is None
    return plain and pool.dilation == 1 and not pool.return_indices
