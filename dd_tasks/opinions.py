"""What one judge makes of a batch of views by some terms: loss, slope, hardness; for a frozen observer also compiled.

Shape letters: V views, C channels, S side. A compiled opinion is one graph of forward, terms and backward, without
hooks; it is kept with its observer, so that panels of one size share it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dd_tasks.compiling import has_compiler, traced
from dd_tasks.lean import lean
from dd_tasks.terms import Closure, SmoothedLoss, Term
from dd_tasks.types import Observer, Reading

# Pixels that a run's image-updates see: below, compiling, some ten seconds an observer, costs more than it gains.
PAYS_OFF = {"cpu": 1e8, "cuda": 1e11}


def pays_off(image_updates: int, side: int, device: torch.device) -> bool:
    """Whether so many image-updates in all are worth compiling observers for."""
    return image_updates * side**2 >= PAYS_OFF.get(device.type, float("inf")) and has_compiler()


@dataclass(frozen=True)
class Opinion:
    """Of the `rows` of a batch: loss, its gradient by their views, and, where asked for, their cross-entropy (nats)."""

    rows: Tensor | slice
    loss: Tensor
    slope_VCSS: Tensor
    hardness_V: Tensor | None


@dataclass(frozen=True)
class Panellist:
    """The terms of one ballot, at work on one panel. Opinions of frozen observers on so many views as `compiled` says
    are compiled."""

    terms: tuple[Term, ...]
    closures: tuple[Closure, ...]
    tells_hardness: bool
    compiled: int = 0

    @property
    def needs(self) -> dict[str, bool]:
        return {
            "moments": any(term.needs_moments for term in self.terms),
            "patches": any(term.needs_patches for term in self.terms),
        }

    def opinions(
        self, judge: Observer, views_VCSS: Tensor, targets_V: Tensor, shares_BV: Tensor | None = None
    ) -> Iterator[Opinion]:
        """Each reading's graph is gone before the next one. Where views are of several batches, `shares_BV` says which
        (dd_tasks.terms)."""
        batches = () if shares_BV is None else (shares_BV,)
        known = getattr(judge, "graphs", None)
        if known is not None and len(views_VCSS) == self.compiled:
            states = [c.state(judge, targets_V, *batches) if isinstance(c, SmoothedLoss) else () for c in self.closures]
            yield self._compiled(judge, known, (views_VCSS, targets_V, *batches), states)
            return
        leaf_VCSS = views_VCSS.detach().requires_grad_()
        for rows, reading in judge.readings(leaf_VCSS, targets_V, **self.needs):
            theirs_V = targets_V if isinstance(rows, slice) else targets_V[rows]  # a slice is of all
            loss = torch.stack([closure(judge, reading, theirs_V, *batches) for closure in self.closures]).sum()
            (slope_VCSS,) = torch.autograd.grad(loss, leaf_VCSS)
            yield Opinion(rows, loss.detach(), slope_VCSS, self._hardness(reading, theirs_V))

    def _hardness(self, reading: Reading, targets_V: Tensor) -> Tensor | None:
        if not self.tells_hardness:
            return None
        return F.cross_entropy(reading.logits_NK.detach(), targets_V, reduction="none")

    def _compiled(
        self, judge: Any, graphs: dict[Any, Any], inputs: tuple[Tensor, ...], states: Sequence[Any]
    ) -> Opinion:
        """Of inputs views_VCSS, targets_V and, where views are of several batches, shares_BV."""
        key = (self.terms, self.tells_hardness, *(tensor.shape for tensor in inputs), inputs[0].device)
        flat = [tensor for state in states for tensor in state]
        if key not in graphs:
            graphs[key] = traced(self._graph(judge, states, len(inputs) > 2), *inputs, *flat)
        loss, slope_VCSS, hardness_V, *kept = graphs[key](*inputs, *flat)
        after = iter(kept)
        for closure in self.closures:
            if isinstance(closure, SmoothedLoss):
                closure.keep(judge, next(after))
        return Opinion(slice(None), loss, slope_VCSS, hardness_V)

    def _graph(self, judge: Any, states: Sequence[Any], several: bool) -> Callable[..., tuple[Tensor | None, ...]]:
        twin = replace(judge, net=lean(judge.net))
        sizes = [len(state) for state in states]

        def graph(views_VCSS: Tensor, targets_V: Tensor, *flat: Tensor) -> tuple[Tensor | None, ...]:
            leaf_VCSS = views_VCSS.detach().requires_grad_()
            reading = twin.read(leaf_VCSS, **self.needs)
            losses, kept, rest = [], [], list(flat)
            batches = (rest.pop(0),) if several else ()
            for closure, size in zip(self.closures, sizes, strict=True):
                if isinstance(closure, SmoothedLoss):
                    loss, after = closure.of(judge, reading, *rest[:size], *batches)
                    kept.append(after)
                    rest = rest[size:]
                else:
                    loss = closure(judge, reading, targets_V, *batches)
                losses.append(loss)
            whole = torch.stack(losses).sum()
            (slope_VCSS,) = torch.autograd.grad(whole, leaf_VCSS)
            return whole.detach(), slope_VCSS, self._hardness(reading, targets_V), *kept

        return graph
