"""Networks rewritten: the same numbers in fewer and quicker operations. `lean` and `quick` ones are to be compiled, one
that is frozen for its gradient by images, one in training; `fused` ones need no compiler.

Modules are known by their exact types: what inherits from one of torch's, as timm's do, computes something else.

Shape letters: N images, C and O channels in and out, H x W pixels, P = C x 3 x 3 weights a channel out, S = H x W.
"""

import copy
import logging
from collections import Counter
from itertools import chain, product
from typing import Any, TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd_tasks import winograd

log = logging.getLogger(__name__)
FEW = 3  # channels of images, at most
MAKERS = nn.Conv2d, nn.GroupNorm  # of tensors that nothing else holds
MANY = 1024  # pixels, from which on torch normalises channels-last images as fast as others


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


class Alone(nn.Module):
    """A GroupNorm of every channel by itself: compiled, it and its gradient keep channels last."""

    def __init__(self, like: nn.GroupNorm) -> None:
        super().__init__()
        self.like = like

    def forward(self, input_NCHW: Tensor) -> Tensor:
        variance_NC11, mean_NC11 = torch.var_mean(input_NCHW, (2, 3), correction=0, keepdim=True)
        scale_NC11 = torch.rsqrt(variance_NC11 + self.like.eps) * self.like.weight[:, None, None]
        return input_NCHW * scale_NC11 + (self.like.bias[:, None, None] - mean_NC11 * scale_NC11)


class AloneInFew(Alone):
    """The same of few channels-last pixels, not compiled, where torch goes through them channel by channel."""

    def forward(self, input_NCHW: Tensor) -> Tensor:
        if input_NCHW.shape[2] * input_NCHW.shape[3] >= MANY:
            return self.like(input_NCHW)
        apart_NCHW = input_NCHW - input_NCHW.mean((2, 3), keepdim=True)
        variance_NC11 = apart_NCHW.square().mean((2, 3), keepdim=True)
        scale_NC11 = torch.rsqrt(variance_NC11 + self.like.eps) * self.like.weight[:, None, None]
        return torch.addcmul(self.like.bias[:, None, None], apart_NCHW, scale_NC11)


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
    fewer multiplications, its norms and average pools no transposes."""
    made = copy.deepcopy(net, {id(t): t for t in chain(net.parameters(), net.buffers())})
    if not _is_of_processor(net):
        return made
    for path, module in list(made.named_modules()):
        if winograd.is_wide(module):
            made.set_submodule(path, winograd.Convolution(module))
        elif type(module) is nn.AvgPool2d and _halves(module):
            made.set_submodule(path, Averaged())
        elif _is_alone(module):
            made.set_submodule(path, Alone(module))
    return made


def fused(net: nn.Module) -> nn.Module:
    """A copy of a frozen network that says the same, without its gradient: BatchNorms join the convolutions before
    them, and on a processor other operations are quicker ones."""
    twin = _joined(net)
    if not _is_of_processor(net):
        return twin
    for path, module in list(twin.named_modules()):
        if winograd.is_wide(module):
            twin.set_submodule(path, winograd.Frozen(module))
        elif _is_alone(module):
            twin.set_submodule(path, AloneInFew(module))
    return twin


def _joined(net: nn.Module) -> nn.Module:
    """A copy without the norms that follow a convolution, where its own code can be traced. ReLUs of what nothing else
    reads need no memory of their own."""
    from torch.fx.experimental.optimization import fuse

    try:
        twin = cast(torch.fx.GraphModule, fuse(net))
    except Exception as error:  # whatever a network does
        log.debug("its BatchNorms stay: %s", error)
        return copy.deepcopy(net)
    calls = [node for node in twin.graph.nodes if node.op == "call_module"]
    times, kinds = Counter(node.target for node in calls), {n.target: type(twin.get_submodule(n.target)) for n in calls}
    if any(times[path] > 1 for path, kind in kinds.items() if kind is nn.Conv2d):
        return copy.deepcopy(net)
    for node in calls:
        if kinds[node.target] is nn.ReLU and times[node.target] == 1:
            (source,) = node.all_input_nodes
            if kinds.get(source.target) in MAKERS and len(source.users) == 1:
                cast(nn.ReLU, twin.get_submodule(node.target)).inplace = True
    return twin


def _is_of_processor(net: nn.Module) -> bool:
    return all(weights.device.type == "cpu" for weights in net.parameters())


def _is_alone(norm: nn.Module) -> TypeGuard[nn.GroupNorm]:
    return type(norm) is nn.GroupNorm and norm.num_groups == norm.num_channels and norm.affine


def _halves(pool: nn.Module) -> TypeGuard[nn.MaxPool2d | nn.AvgPool2d]:
    if type(pool) is not nn.MaxPool2d and type(pool) is not nn.AvgPool2d:
        return False
    plain = pool.padding == 0 and not pool.ceil_mode and pool.kernel_size in (2, (2, 2)) and pool.stride in (2, (2, 2))
    if isinstance(pool, nn.AvgPool2d):
        return plain and pool.divisor_override is None
    return plain and pool.dilation == 1 and not pool.return_indices
