"""The bytes foreseen are those that come."""

from dataclasses import replace

import pytest
import torch
from sample import SIDE, K, N, grouped_views

from dd_tasks import compact, plan


def test_exact_sizes_are_those_that_papers_report() -> None:
    assert plan.exact_label_bytes(50_000, 1000, 300) / 2**30 == pytest.approx(28, abs=0.1)  # E2D, IPC 50
    assert plan.exact_label_bytes(10_000, 1000, 300) / 2**30 == pytest.approx(5.7, abs=0.2)
    assert plan.exact_label_bytes(10 * 10_450, 10_450, 300) / 1e9 == pytest.approx(643, rel=0.03)


@pytest.mark.parametrize("top", [3, K])
def test_compact_sizes_are_foreseen(top: int) -> None:
    epochs, n = 300, N
    views = grouped_views(epochs=epochs)
    rng = torch.Generator().manual_seed(0)
    soft_NK = compact.fit(views, n, SIDE)
    own_VK = compact.mixed_logits(views, compact.own_logits(soft_NK), SIDE)
    left_VK = torch.randn(len(views), K, generator=rng)
    views = replace(views, logits_VK=(own_VK + left_VK).half())
    coding = compact.Coding(top, compact.COARSEST, epochs)
    found = compact.size(views, soft_NK, coding, SIDE)
    assert plan.compact_label_bytes(n, K, epochs, top) == pytest.approx(found, rel=0.35)
