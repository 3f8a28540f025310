"""Real images as JPEG files of as many bytes as a dataset has: what else could be published instead of it.

Shape letters: N images, C channels, S side.
"""

import io

import torch
from PIL import Image
from torch import Tensor

from dd_tasks.claims import QUALITY
from dd_tasks.decoding import decode, decode_whole
from dd_tasks.shards import Candidates
from dd_tasks.types import Canvas, slots_of


def jpeg(image_CSS: Tensor) -> bytes:
    """The uint8 image as a JPEG file, with Huffman tables of its own."""
    buffer = io.BytesIO()
    Image.fromarray(image_CSS.permute(1, 2, 0).contiguous().numpy()).save(
        buffer, "JPEG", quality=QUALITY, optimize=True
    )
    return buffer.getvalue()


def spend(found: Candidates, side: int, budget: int) -> tuple[Canvas, int]:
    """As many of the images, equally many of each class, as fit `budget` bytes as JPEG files at `side`; the canvas
    shows what these files hold. Also the bytes they take. At least one of each class, whatever the budget."""
    files = [jpeg(decode(image, side)) for image in found.images]
    labels_N = torch.tensor(found.labels)
    classes, slot_N = int(labels_N.max()) + 1, slots_of(labels_N)
    sizes_N = torch.tensor([len(file) for file in files])
    by_slot = torch.zeros(int(slot_N.max()) + 1, dtype=torch.int64).index_add_(0, slot_N, sizes_N).cumsum(0)
    each = max(1, int((by_slot <= budget).sum()))
    chosen = [i for i in range(len(files)) if slot_N[i] < each]
    assert len(chosen) == each * classes, (len(chosen), each, classes)
    images_NCSS = torch.stack([decode_whole(files[i]) for i in chosen])
    keys = tuple((found.keys[i],) for i in chosen)
    return Canvas(images_NCSS, labels_N[chosen], keys), int(by_slot[each - 1])
