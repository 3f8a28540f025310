"""What a network without memory says of itself is what the real one has."""

import pytest
import torch

from dd_tasks.anatomy import anatomy
from dd_tasks.errors import InputError
from dd_tasks.networks import Shape, build, with_features
from dd_tasks.statistics import measure

NETWORKS = [("convnet3_bn_w32", 16, 5), ("thin_resnet6_w16", 16, 10), ("thin_vgg_w16", 32, 10), ("resnet18", 32, 7)]


@pytest.mark.parametrize(("architecture", "side", "classes"), NETWORKS)
def test_bytes_channels_and_patches_are_those_of_the_real_network(architecture: str, side: int, classes: int) -> None:
    net = build(architecture, Shape(classes, side)).eval()
    real = [(torch.rand(4, 3, side, side), torch.arange(4) % classes)]
    found = anatomy(architecture, side, classes)
    assert found.features == with_features(net, real[0][0])[1].shape[1]
    assert found.weight_bytes == sum(tensor.nbytes for tensor in net.state_dict().values())
    assert found.channels == sum(len(layer.mean_C) for layer in measure(net, real, classes)[0])
    assert found.patches == sum(len(layer.mean_C) for layer in measure(net, real, classes, patches=True)[0])


def test_operations_are_two_for_every_weight_at_every_place() -> None:
    s, w, k = 16, 8, 10
    convolutions = sum(9 * inner * w * (s >> i) ** 2 for i, inner in enumerate((3, w)))
    assert anatomy("convnet2_w8", s, k).flops == 2 * (convolutions + w * (s // 4) ** 2 * k)
    assert anatomy("resnet18", 224, 1000).flops == pytest.approx(2 * 1.81e9, rel=0.01)  # torchvision's 1.81 GMACs


def test_an_unknown_architecture_is_told() -> None:
    with pytest.raises(InputError, match="unknown architecture 'resnet19'"):
        anatomy("resnet19", 32, 10)
