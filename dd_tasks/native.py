"""Programs of ours for processors, in C++: torch's compiler builds them once a machine, and keeps them on disk."""

import ctypes
import logging
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger(__name__)
SOURCES = tuple(Path(__file__).with_name(f"{name}.cpp") for name in ("winograd", "instance_norm"))
LANES = 16  # channels are a multiple of it, which any processor's vectors divide

# Tensors, sizes and other numbers that they take; between the last two, how many threads there are.
FUNCTIONS = {
    "convolve": (4, 6, 0),
    "weigh": (3, 5, 0),
    "grow": (2, 3, 0),
    "norm_relu_pool": (6, 4, 1),
    "norm_relu_pool_back": (9, 4, 0),
}


@cache
def kernels() -> ctypes.CDLL | None:
    """The functions; none where they cannot be built. Not before they are asked for: what builds them takes seconds to
    import."""
    from torch._inductor.codecache import CppCodeCache

    try:
        library = CppCodeCache.load("\n".join(path.read_text(encoding="utf-8") for path in SOURCES))
    except Exception as error:  # of the compiler, the linker, or a cache that must not hold programs
        log.debug("networks stay as they are: %s", error)
        return None
    for name, (tensors, sizes, numbers) in FUNCTIONS.items():
        function = getattr(library, name)
        function.argtypes = [ctypes.c_void_p] * tensors + [ctypes.c_int64] * (sizes + 1) + [ctypes.c_double] * numbers
        function.restype = ctypes.c_bool
    return library


def call(name: str, *tensors: Tensor | None, sizes: tuple[int, ...], numbers: tuple[float, ...] = ()) -> None:
    """A function, of contiguous float32 tensors, on as many threads as torch takes. MemoryError."""
    assert all(t is None or (t.dtype == torch.float32 and t.is_contiguous()) for t in tensors)
    places = (t if t is None else t.data_ptr() for t in tensors)
    if not getattr(kernels(), name)(*places, *sizes, torch.get_num_threads(), *numbers):
        raise MemoryError(f"{name}: no memory for sizes of {sizes}")


def nhwc(images_NCHW: Tensor) -> Tensor:
    """images_NHWC, or weights_O33C; without a copy where they lie so."""
    return images_NCHW.permute(0, 2, 3, 1).contiguous()
