"""Encoded images of every kind: odd modes, animations, sizes that lie, bombs, and all of these harmed."""

import io
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from benchmarks.hostile.family import Family, asked, told
from benchmarks.hostile.mutations import SEEDS, harmed

SUFFIXES = ("jpg", "jpeg", "png", "webp", "JPG", "gif", "cls")
SIZES = ((8, 8), (16, 16), (1, 1), (1, 3000), (3000, 1), (33, 20), (640, 480))


def picture(size: tuple[int, int], mode: str) -> Image.Image:
    made = Image.new("RGB", size, (30, 120, 210))
    ImageDraw.Draw(made).ellipse((0, 0, size[0] // 2, size[1]), fill=(200, 80, 10))
    if mode == "I;16":
        return Image.fromarray(np.asarray(made.convert("L")).astype(np.uint16) * 257)
    return made.convert(mode)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def frames(kind: str) -> bytes:
    each = [picture((12, 12), "RGB").rotate(90 * i) for i in range(3)]
    return saved(each[0], kind, save_all=True, append_images=each[1:], duration=10)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *between: bytes) -> bytes:
    """A PNG file with this header and these rows, whatever they hold."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", head), *between, chunk(b"IDAT", zlib.compress(rows, 9)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@cache
def bombs() -> tuple[bytes, ...]:
    """Of many pixels in few bytes: some refused, some at the very bound."""
    grey = bytes(1 + 10_000 // 8) * 10_000
    huge = saved(picture((64, 64), "RGB"), "JPEG")
    at = huge.index(b"\xff\xc0") + 5
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000), 9))
    return (
        png(10_000, 10_000, 1, 0, grey),
        png(12_000, 12_000, 8, 2, bytes(1000)),
        png(2**31 - 1, 2**31 - 1, 8, 2, b""),
        png(0, 8, 8, 2, b""),
        png(8000, 8000, 1, 0, bytes(1001) * 8000),
        png(8000, 8000, 16, 6, bytes(1 + 8 * 8000) * 8000),
        png(8, 8, 8, 2, bytes(25) * 8, text),
        huge[:at] + struct.pack(">HH", 65_000, 65_000) + huge[at + 4 :],
        huge[:at] + struct.pack(">HH", 8000, 8000) + huge[at + 4 :],
        saved(Image.new("RGB", (16_000, 9000)), "WEBP", lossless=True, method=0),
        saved(Image.new("P", (20_000, 6000)), "GIF"),
    )


@cache
def kinds() -> tuple[bytes, ...]:
    """Sound images, or what looks like some."""
    modes = {"PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
    "WEBP": ("RGB", "RGBA")}  # fmt: skip
    plain = [saved(picture((16, 16), mode), kind) for kind, every in modes.items() for mode in every]
    sized = [saved(picture(size, "RGB"), kind) for size in SIZES for kind in modes]
    rgb = picture((24, 24), "RGB")
    paletted = picture((16, 16), "P")
    exif = Image.Exif()
    exif[0x0112] = 6
    others = [
        saved(rgb, "JPEG", progressive=True), saved(rgb, "JPEG", quality=1), saved(rgb, "JPEG", exif=exif,
        icc_profile=b"junk"),
        saved(rgb, "WEBP", lossless=True), saved(paletted, "PNG", transparency=0), frames("GIF"), frames("PNG"),
        frames("WEBP"), saved(rgb, "BMP"), saved(rgb, "TIFF"), saved(rgb, "ICO"), saved(rgb, "PPM"), saved(rgb, "EPS"),
        saved(rgb, "PDF"), png(8, 8, 16, 2, bytes(49) * 8), png(8, 8, 16, 4, bytes(33) * 8), png(8, 8, 8, 7,
        bytes(9) * 8),
        png(8, 8, 8, 3, bytes(9) * 8), png(4, 4, 8, 2, b""), png(4, 4, 8, 2, bytes(10_000)), b"", b"\0", b"\xff\xd8",
        b"\xff\xd8\xff\xc0\0\0\0\0\0\0\0", b"RIFF\xff\xff\xff\xffWEBPVP8X", b"GIF89a", b"<svg xmlns='x'/>",
        b"II*\0\xff\xff\xff\xff",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch /tmp/evil) (w) file\n",
    ]  # fmt: skip
    return (*plain, *sized, *others)


@st.composite
def images(draw: Any) -> bytes:
    """One in fifty a bomb, of the others one in two harmed."""
    if draw(st.integers(0, 49)) == 49:
        return bombs()[draw(st.integers(0, len(bombs()) - 1))]
    made = kinds()[draw(st.integers(0, len(kinds()) - 1))]
    return harmed(made, draw(SEEDS)) if draw(st.booleans()) else made


@st.composite
def cases(draw: Any) -> tuple[str, bytes, str, str]:
    """How it is handed over, the image, its suffix, and a name of a file that holds it."""
    way = draw(st.sampled_from(("shard", "shard", "decode", "decode", "pack", "dataset", "picture")))
    return (
        way,
        draw(images()),
        draw(st.sampled_from(SUFFIXES)),
        draw(st.sampled_from(("a", "é", "a b", "a.b", "..a", "__a"))),
    )


def run(case: tuple[str, bytes, str, str], room: Path, _: Path) -> list[str]:
    way, image, suffix, name = case
    ways = {"shard": shard, "decode": decode, "pack": pack, "dataset": dataset, "picture": read}
    return ways[way](image, suffix, name, room)


def shard(image: bytes, suffix: str, name: str, room: Path) -> list[str]:
    from tarred import write_tar

    path = write_tar(room / "a.tar", [(f"a.{suffix}", image), ("a.cls", b"0"), ("b.png", kinds()[4]), ("b.cls", b"1")])
    return [told("shards", "check", path, *(("--tolerate", "1") if name == "a" else ()))]


def decode(image: bytes, suffix: str, name: str, room: Path) -> list[str]:
    """The decoder's refusal is a ValueError of one line, which whoever reads samples makes a fault of."""
    from dd_tasks.decoding import decode as decoded
    from dd_tasks.errors import InputError

    def call() -> None:
        try:
            assert decoded(image, 16).shape == (3, 16, 16)
        except ValueError as error:
            raise InputError(str(error)) from error

    return [asked(call)]


def pack(image: bytes, suffix: str, name: str, room: Path) -> list[str]:
    (room / "in" / "cat").mkdir(parents=True)
    (room / "in" / "cat" / f"{name}.{suffix}").write_bytes(image)
    (room / "in" / "cat" / "sound.png").write_bytes(kinds()[4])
    outcome = told("shards", "pack", room / "in", "--out", room / "out")
    assert (outcome == "accepted") == (room / "out" / "index.json").exists(), "half a folder of shards is left"
    return [outcome]


def dataset(image: bytes, suffix: str, name: str, room: Path) -> list[str]:
    """A row of a table for `datasets`, of which any format may be packed."""
    from dd_tasks import packing

    def call() -> None:
        data, kind = packing._suffixed(image, 0)
        packing.pack([("a", data, kind, 0)], ["one"], room / "out")

    return [asked(call)]


def read(image: bytes, suffix: str, name: str, room: Path) -> list[str]:
    """As the image of an artifact."""
    from dd_tasks.validate import _picture

    return ["refused" if _picture(image, 16) else "accepted"]


FAMILY = Family("images", cases(), run, cost=3.5)
