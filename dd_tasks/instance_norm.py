"""What ConvNets do between two convolutions, in one, for processors: a norm of every channel of an image by itself
(instance norm; Ulyanov et al. 2016), a ReLU, and a mean of 2 x 2 pixels.

By instance_norm.cpp, which goes through an image while the cache holds it. As exact as torch's operations,
deterministic with any number of threads, and nothing is left for torch's compiler to join.

Shape letters: N images, C channels, H x W pixels, h x w means of 2 x 2 pixels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dd_tasks.native import call, nhwc


class _NormReluPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images_NCHW: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
        images_NHWC = nhwc(images_NCHW)
        n, height, width, channels = shape = tuple(images_NHWC.shape)
        made_NhwC = images_NHWC.new_empty(n, height // 2, width // 2, channels)
        means_NC, over_stds_NC = images_NHWC.new_empty(2, n, channels)
        tensors = images_NHWC, weight_C, bias_C, made_NhwC, means_NC, over_stds_NC
        call("norm_relu_pool", *tensors, sizes=shape, numbers=(eps,))
        ctx.save_for_backward(images_NHWC, weight_C, bias_C, means_NC, over_stds_NC)
        return made_NhwC.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        images_NHWC, *others = ctx.saved_tensors
        made_NHWC, slopes_NhwC = torch.empty_like(images_NHWC), nhwc(slopes[0])
        by_weights_2NC = images_NHWC.new_empty(2, len(images_NHWC), images_NHWC.shape[3])
        sizes = tuple(images_NHWC.shape)
        call("norm_relu_pool_back", images_NHWC, *others, slopes_NhwC, made_NHWC, *by_weights_2NC, sizes=sizes)
        return made_NHWC.permute(0, 3, 1, 2), *by_weights_2NC.sum(1), None


class NormReluPool(nn.Module):
    """A norm and the two operations after it, by its weights."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return _NormReluPool.apply(images_NCHW, self.norm.weight, self.norm.bias, self.norm.eps)
