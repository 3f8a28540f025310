"""What a view costs in memory under an observer, and how many views fit into what is free, before any are looked at.

The cost is what autograd keeps of two views beyond what it keeps of one: the same on every device, weights and all that
comes once left out.
"""

import logging
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dd_tasks.memory import free_memory, give_back
from dd_tasks.pieces import is_shortage
from dd_tasks.types import Observer, Studio

# Bytes at the peak for each that autograd keeps, with a gradient and without, the most of a dozen networks at 32 and
# 224 px. The tensors alone are up to 1.4 and .7; a processor's heap is less tidy than a GPU's, and its libraries copy.
PEAK = {"cuda": (1.6, 0.8)}
PEAK_ELSEWHERE = (3.2, 1.5)
COPIES = 17  # of a view's own pixels, float32, whatever looks at it: image, moments, slopes, and what crops them

log = logging.getLogger(__name__)
_known: WeakKeyDictionary[Observer, dict[tuple[object, ...], int]] = WeakKeyDictionary()


def kept_bytes(observer: Observer, views: int, side: int, device: torch.device, **needs: bool) -> int:
    """What autograd keeps of the observer's reading of so many views, for their gradient."""
    held: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    views_VCSS = torch.zeros(views, 3, side, side, device=device, requires_grad=True)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        observer.read(views_VCSS, **needs)
    return sum(held.values())


def bytes_a_view(observer: Observer, side: int, device: torch.device, **needs: bool) -> int:
    """Found once an observer: its panels ask for the same."""
    known, key = _known.setdefault(observer, {}), (side, device, *sorted(needs.items()))
    if key not in known:
        one, two = (kept_bytes(observer, views, side, device, **needs) for views in (1, 2))
        known[key] = two - one
    return known[key]


def fitting(studio: Studio, views: int, side: int, what: str, *, gradient: bool = True, **needs: bool) -> int | None:
    """As many of the views as fit into free memory at once: half, a quarter, and so on; None where all do. None too
    where memory is too short to find out, which is then for `pieces.sparing` to tell."""
    try:
        cost = max((bytes_a_view(observer, side, studio.device, **needs) for observer in studio.observers), default=0)
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        return None
    each = cost * PEAK.get(studio.device.type, PEAK_ELSEWHERE)[0 if gradient else 1]
    own = views * 3 * side**2 * 4 * COPIES
    if own + views * each <= free_memory(studio.device):
        return None
    give_back()
    free, size = free_memory(studio.device), views
    while size > 1 and own + size * each > free:
        size //= 2
    if size == views:
        return None
    wants = f"{views} views may take {(own + views * each) / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free"
    log.warning("%s: %s; %d at a time", what, wants, size)
    return size
