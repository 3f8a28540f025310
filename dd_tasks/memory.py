"""How much memory something takes, at most, and how much there is."""

import ctypes
import gc
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

PROCESS, MACHINE, GROUPS = Path("/proc/self"), Path("/proc/meminfo"), Path("/sys/fs/cgroup")
OF_GROUPS = (  # where, limit, use, and what of this are files that the system drops when asked for more
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def resident() -> tuple[int, int]:
    """Bytes of this process now, and at most since `_forget`; where the system does not say, at most since it began."""
    try:
        status = _told(PROCESS / "status")
        return status["VmRSS"] * 1024, status["VmHWM"] * 1024
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


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take: of the GPU; else of the machine, within the limits of its control groups
    and its own. Others may take them first."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    found = [sys.maxsize]
    with suppress(OSError, KeyError, ValueError):
        found.append(_told(MACHINE)["MemAvailable"] * 1024)
    with suppress(OSError, KeyError, ValueError):
        status = _told(PROCESS / "status")
        for kind, held in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
            if (most := resource.getrlimit(kind)[0]) != resource.RLIM_INFINITY:
                found.append(most - status[held] * 1024)
    return max(0, min([*found, *_of_groups()]))


def _of_groups() -> Iterator[int]:
    """What is left in each control group around this process that has a limit."""
    lines: list[str] = []
    with suppress(OSError):
        lines = (PROCESS / "cgroup").read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for where, limit, use, files in OF_GROUPS:
            if where not in controllers.split(","):
                continue
            place = GROUPS / where / path.lstrip("/")
            for group in (place, *(above for above in place.parents if above.is_relative_to(GROUPS / where))):
                with suppress(OSError, KeyError, ValueError):  # of none: "max", or no file; the root has none
                    most = int((group / limit).read_text())
                    yield most - int((group / use).read_text()) + _told(group / "memory.stat")[files]


def _told(path: Path) -> dict[str, int]:
    """The numbers of a file such as /proc/meminfo, by name."""
    rows = (line.replace(":", " ").split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


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
