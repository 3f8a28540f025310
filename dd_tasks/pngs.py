"""Is a PNG file whole? libpng, as torchvision calls it, ends the process where the pixels of a file are damaged, so
such a file is told from a sound one before it is decoded."""

import zlib
from collections.abc import Iterator
from struct import unpack_from

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
FILTERS = 4  # the highest
MOST_BYTES = 1 << 28  # of pixels, unpacked
CHUNK, SLICE = 1 << 20, 1 << 16  # bytes that are looked at together, unpacked and packed
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # Adam7


def expect_whole(image: bytes) -> None:
    """ValueError with the reason where the pixels of a PNG file are damaged or not all there. Of a file that is none
    nothing is asked, nor of a header that libpng refuses by itself."""
    if image[:8] != SIGNATURE or image[12:16] != b"IHDR" or len(image) < 29:
        return
    width, height, depth, colour, _, _, interlaced = unpack_from(">IIBBBBB", image, 16)
    if colour not in CHANNELS or not width or not height:
        return
    strides = list(_strides(width, height, CHANNELS[colour] * depth, bool(interlaced)))
    if (size := sum(stride * count for stride, count in strides)) > MOST_BYTES:
        raise ValueError(f"PNG: the pixels take {size} bytes, above {MOST_BYTES}")
    pieces, have = _unpacked(image), b""
    for stride, count in strides:
        for first in range(0, count, step := max(1, CHUNK // stride)):
            wanted = stride * min(step, count - first)
            while len(have) < wanted:
                if not (piece := next(pieces, b"")):
                    raise ValueError("PNG: some of the pixels are not there")
                have += piece
            if max(have[:wanted:stride]) > FILTERS:
                raise ValueError("PNG: a row of pixels has an unknown filter")
            have = have[wanted:]
    next(pieces, b"")  # to the checksum of all


def _strides(width: int, height: int, bits: int, interlaced: bool) -> Iterator[tuple[int, int]]:
    """Bytes of a row with its filter, and how many such rows there are, of each pass over the image."""
    for left, top, across, down in PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            yield 1 + (columns * bits + 7) // 8, rows


def _unpacked(image: bytes) -> Iterator[bytes]:
    """The bytes that the pixels take, some at a time."""
    inflate = zlib.decompressobj()
    try:
        for data in _data(image):
            for at in range(0, len(data), SLICE):
                rest = data[at : at + SLICE]
                while rest:
                    if piece := inflate.decompress(rest, CHUNK):
                        yield piece
                    rest = inflate.unconsumed_tail
        while piece := inflate.decompress(b"", CHUNK):
            yield piece
    except zlib.error as error:
        raise ValueError(f"PNG: the pixels cannot be unpacked ({error})") from error


def _data(image: bytes) -> Iterator[bytes]:
    """The parts that hold pixels, up to the first chunk after them. ValueError for one that is unlike its checksum."""
    at, begun = 33, False
    while at + 12 <= len(image):
        length, kind = unpack_from(">I4s", image, at)
        if kind == b"IDAT":
            begun = True
            body = image[at + 4 : at + 8 + length]
            if image[at + 8 + length : at + 12 + length] != zlib.crc32(body).to_bytes(4):
                raise ValueError("PNG: pixels are unlike their checksum, or cut short")
            yield body[4:]
        elif begun:
            return
        at += 12 + length
