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
            compiling.compiled(build("convnet3_w16", Shape(10, 16)), 1, 16)(torch.rand(size, 3, 16, 16))
    torch.compiler.reset()
    assert varies == [False] * 3
