"""What is compiled, and that it does not depend on what was compiled before."""

import torch

from dd_tasks import compiling
from dd_tasks.networks import Shape, build


def test_a_network_compiles_to_the_same_whatever_was_compiled_before(monkeypatch):
    """Left to itself torch takes a size that differs from earlier ones for one that varies, also of another network,
    and compiles other operations for it."""
    varies = []

    def looked_at(graph, inputs, **options):
        varies.append(any(isinstance(each, torch.SymInt) for each in inputs))
        return graph.forward

    monkeypatch.setattr(compiling, "worth_compiling", lambda images, side: True)
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", looked_at)
    torch.compiler.reset()
    with torch.no_grad():
        for size in (32, 24, 10):
            compiling.for_training(build("convnet3_bn_w16", Shape(10, 16)), 1, 16)(torch.rand(size, 3, 16, 16))
    torch.compiler.reset()
    assert varies == [False] * 3


def test_a_network_is_not_compiled_where_nothing_is_left_to_join(monkeypatch):
    monkeypatch.setattr(compiling, "worth_compiling", lambda images, side: True)
    joined, other = (compiling.for_training(build(name, Shape(10, 16)), 1, 16) for name in ("convnet3", "convnet3_bn"))
    assert hasattr(other, "_orig_mod") and hasattr(joined, "_orig_mod") != compiling.has_compiler()
