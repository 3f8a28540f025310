"""How much memory something takes, at most."""

import ctypes
import gc
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

PROCESS = Path("/proc/self")


def resident() -> tuple[int, int]:
    """Bytes of this process now, and at most since `_forget`; where the system does not say, at most since it began."""
    try:
        lines = dict(line.split(":", 1) for line in (PROCESS / "status").read_text().splitlines())
        now, most = (int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
        return now, most
    except (OSError, KeyError, ValueError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return most, most


def give_back() -> None:
    """Freed memory to the system and to the GPU, where they take it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _forget() -> None:
    """Give freed memory back, and begin to count the most anew, where the system can."""
    give_back()
    with suppress(OSError):
        (PROCESS / "clear_refs").write_text("5")


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], int]]:
    """After the block, the bytes it took at most, above what was held before it: of the GPU, or of this process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield lambda: torch.cuda.max_memory_allocated(device) - before
        return
    _forget()
    before, _ = resident()
    found: list[int] = []
    yield lambda: found[0]
    found.append(max(0, resident()[1] - before))
