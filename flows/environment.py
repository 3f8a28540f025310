"""What is set before the heavy libraries are imported. Imports nothing of theirs, so that `retort --help` is quick."""

import atexit
import ctypes
import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Set before prefect is imported; what the user has set stays. The embedded server needs more than its default 20 s on a
# small machine, and nothing we start reports on its user.
PREFECT_DEFAULTS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",  # `--explain` calls tasks outside of any run
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the command line shows its own lines
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    "PREFECT_CLI_WORDMARK": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",  # lines of several panels look alike
}


COMPILED = "TORCHINDUCTOR_CACHE_DIR"
GPUS = (  # of any maker, where there are some: their devices, and the drivers that make these
    "/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/dxg", "/dev/kfd", "/dev/dri", "/sys/module/nvidia", "/sys/module/amdgpu",
)  # fmt: skip


def prepare_environment() -> None:
    """Defaults for the libraries we start. Call before anything imports prefect."""
    for name, value in PREFECT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    if COMPILED not in os.environ and (folder := own_folder("compiled")):
        os.environ[COMPILED] = folder
    if not any(map(os.path.exists, GPUS)):
        leave_out_triton()


def leave_out_triton() -> None:
    """Torch imports it at the first step of any optimiser, which takes time there and more where the process ends.
    Where it is missing, as on some platforms, torch compiles for processors alone."""
    sys.modules.setdefault("triton", None)  # type: ignore[arg-type]
    for name in ("flop_counter", "cpp_extension"):  # warn of its absence, and of that of a GPU where there is `nvcc`
        logging.getLogger(f"torch.utils.{name}").setLevel(logging.ERROR)


def own_folder(name: str) -> str | None:
    """A folder in the user's cache that nobody else can write; None where there can be none.

    torch unpickles what it finds in its cache of compiled networks. Its default is a name in the folder for temporary
    files that anybody can take first.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = os.path.join(cache, "retort", name)
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        found = os.stat(path)
    except OSError:
        return None
    return path if found.st_uid == os.getuid() and not found.st_mode & 0o022 else None


def keep_freed_memory() -> None:
    """Let glibc keep the large blocks that every training step frees and asks for again, in one arena."""
    mmap_threshold, trim_threshold, arena_max = -3, -1, -8  # malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # another C library: nothing to tune
    for option, value in ((mmap_threshold, 1 << 30), (trim_threshold, 2**31 - 1), (arena_max, 1)):
        mallopt(option, value)


def leave_garbage() -> None:
    """Where the process ends: all that the libraries have made is not searched for garbage once more, for a second. But
    for Triton, which would tell of each thing of its own that is left."""
    atexit.register(lambda: None if sys.modules.get("triton") else gc.freeze())


@contextmanager
def importing() -> Iterator[None]:
    """Around the imports of heavy libraries: what they make stays, so that it need not be searched for garbage."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
