"""Pictures as deterministic PNG bytes: the preview of an artifact, single images, and where exploitation looked.

Shape letters: N images, C channels (3), H x W pixels.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from dd_tasks.seconds import spent
from dd_tasks.visible import one_line

TILE = 64  # pixels an image is scaled to, about
HEAT_TILE = 128
LARGEST = 128  # above it, images are reduced
COLUMNS = 10  # images side by side in a preview, unless more classes are asked for
MARGIN, GAP, GROUP_GAP, KIND_GAP = 24, 4, 12, 20
LABEL_WIDTH, HEADER, FOOTER = 76, 26, 26
PAPER, INK, QUIET, REAL, DISTILLED = "#fafafb", "#1d2230", "#6b7280", "#8b93a3", "#5b4bd6"
# magma at equal distances: lightness rises steadily, so the order survives in grey and for the colour-blind
HEAT = ("#0b0924", "#3b0f70", "#8c2981", "#de4968", "#fe9f6d", "#fcfdbf")
HEAT_OPACITY = 0.6


def encode(picture: Image.Image) -> bytes:
    """PNG bytes without metadata."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def picture_of(image_CHW: Tensor) -> Image.Image:
    """uint8 (3, H, W) as an RGB picture. ValueError for any other shape or type."""
    if image_CHW.ndim != 3 or image_CHW.shape[0] != 3 or str(image_CHW.dtype) != "torch.uint8":
        raise ValueError(f"an image is uint8 of shape (3, H, W), got {image_CHW.dtype} {tuple(image_CHW.shape)}")
    return Image.fromarray(image_CHW.permute(1, 2, 0).contiguous().cpu().numpy())


def scaled(picture: Image.Image, tile: int = TILE) -> Image.Image:
    """Small pictures by a whole factor to about `tile` (nearest); larger ones than LARGEST reduced (mean)."""
    side = max(picture.size)
    if side > LARGEST:
        return picture.reduce(ceil(side / LARGEST))
    factor = max(1, round(tile / side))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def png(image_CHW: Tensor) -> bytes:
    """The uint8 (3, H, W) image as PNG, at its own size."""
    return encode(picture_of(image_CHW))


def thumbnail(image_CHW: Tensor) -> bytes:
    """As `png`, but reduced where it is larger than LARGEST: small enough to embed by the hundred."""
    picture = picture_of(image_CHW)
    return encode(scaled(picture) if max(picture.size) > LARGEST else picture)


def reduced(png_bytes: bytes, most: int) -> bytes:
    """The PNG, halved (mean) until it takes at most `most` bytes or a side would be nothing."""
    while len(png_bytes) > most and min((picture := Image.open(io.BytesIO(png_bytes))).size) > 1:
        png_bytes = encode(picture.convert("RGB").reduce(2))
    return png_bytes


def data_uri(png_bytes: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png_bytes).decode()


def heat_colours(share_HW: np.ndarray) -> np.ndarray:
    """Shares in [0, 1] -> float (H, W, 3) colours in [0, 255] along HEAT."""
    stops = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in HEAT], dtype=float)
    at = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(share_HW, at, stops[:, channel]) for channel in range(3)], axis=-1)


def heat(image_CHW: Tensor, gaze_HW: Tensor) -> bytes:
    """The uint8 image in grey under its gaze (counts, any numeric type) in colour: dark never, bright most often seen.

    PNG, scaled to about HEAT_TILE. ValueError where the two differ in size.
    """
    if image_CHW.shape[1:] != gaze_HW.shape:
        raise ValueError(f"gaze of size {tuple(gaze_HW.shape)} for an image of {tuple(image_CHW.shape[1:])}")
    grey_HW = np.asarray(ImageOps.autocontrast(picture_of(image_CHW).convert("L")), dtype=float)
    counts_HW = gaze_HW.cpu().numpy().astype(float)
    colours_HWC = heat_colours(counts_HW / max(counts_HW.max(initial=0), 1))
    mixed_HWC = (1 - HEAT_OPACITY) * grey_HW[..., None] + HEAT_OPACITY * colours_HWC
    return encode(scaled(Image.fromarray(mixed_HWC.round().astype(np.uint8)), HEAT_TILE))


@dataclass(frozen=True)
class Grid:
    """Where the preview's images go: `groups` classes side by side, each `across` by `down` images of one size."""

    groups: int
    across: int
    down: int
    width: int
    height: int

    @property
    def group_width(self) -> int:
        return self.across * (self.width + GAP) - GAP

    @property
    def block_height(self) -> int:
        return self.down * (self.height + GAP) - GAP

    @property
    def size(self) -> tuple[int, int]:
        width = 2 * MARGIN + LABEL_WIDTH + self.groups * (self.group_width + GROUP_GAP) - GROUP_GAP
        return width, 2 * MARGIN + HEADER + 2 * self.block_height + KIND_GAP + FOOTER

    def left(self, group: int) -> int:
        return MARGIN + LABEL_WIDTH + group * (self.group_width + GROUP_GAP)

    def top(self, block: int) -> int:
        return MARGIN + HEADER + block * (self.block_height + KIND_GAP)

    def place(self, group: int, block: int, index: int) -> tuple[int, int]:
        """Upper left corner of image `index` of a class, in block 0 (real) or 1 (distilled)."""
        row, column = divmod(index, self.across)
        return self.left(group) + column * (self.width + GAP), self.top(block) + row * (self.height + GAP)


def fitting(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text on one line, cut with an ellipsis where it is wider than `width` pixels."""
    text = one_line(text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


@spent("report")
def preview(
    before_NCHW: Tensor,
    after_NCHW: Tensor,
    targets_N: Tensor,
    classes: Sequence[str],
    *,
    began_as: str = "real",
    per_class: int = 4,
    classes_shown: int = 10,
) -> bytes:
    """A PNG grid: one column group a class, what its first images began as above, what became of them below.

    `before_NCHW` and `after_NCHW` are uint8 (N, 3, H, W) of classes `targets_N`; a class without images takes no room.
    ValueError where there is nothing to show or the shapes differ.
    """
    if before_NCHW.shape != after_NCHW.shape or len(targets_N) != len(after_NCHW):
        shapes = tuple(before_NCHW.shape), tuple(after_NCHW.shape), tuple(targets_N.shape)
        raise ValueError("before, after and targets do not match: shapes {} {} {}".format(*shapes))
    if not len(targets_N) or per_class < 1 or classes_shown < 1:
        raise ValueError(f"no images to show: {len(targets_N)} images, {per_class=}, {classes_shown=}")
    present = sorted(set(targets_N.tolist()))
    rows = [(targets_N == target).nonzero()[:per_class, 0].tolist() for target in present[:classes_shown]]
    example, most = scaled(picture_of(after_NCHW[0])), max(map(len, rows))
    across = max(1, min(most, COLUMNS // len(rows)))
    grid = Grid(len(rows), across, ceil(most / across), *example.size)
    sheet = Image.new("RGB", grid.size, PAPER)
    for group, slots in enumerate(rows):
        for block, images_NCHW in enumerate((before_NCHW, after_NCHW)):
            for index, slot in enumerate(slots):
                sheet.paste(scaled(picture_of(images_NCHW[slot])), grid.place(group, block, index))
    write_labels(sheet, grid, [classes[target] for target in present[:classes_shown]], began_as)
    write_footer(
        sheet, grid, f"{len(targets_N):,} images in {len(present):,} classes; {sum(map(len, rows))} of them shown"
    )
    return encode(sheet)


def write_labels(sheet: Image.Image, grid: Grid, names: Sequence[str], began_as: str) -> None:
    """Draws the class names above their groups, and what each block is on its left."""
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    room = grid.group_width + GROUP_GAP - 4
    for group, name in enumerate(names):
        middle = grid.left(group) + grid.group_width / 2
        pen.text((middle, MARGIN + 8), fitting(name, room, font), INK, font, anchor="mm")
    for block, (kind, colour) in enumerate(((began_as, REAL), ("distilled", DISTILLED))):
        top, right = grid.top(block), MARGIN + LABEL_WIDTH - 8
        pen.rectangle((right - 3, top, right - 1, top + grid.block_height - 1), fill=colour)
        pen.text((right - 11, top + grid.block_height / 2), kind, INK, font, anchor="rm")


def write_footer(sheet: Image.Image, grid: Grid, text: str) -> None:
    """Draws what part of the dataset the sheet shows."""
    font = ImageFont.load_default(12)
    place, room = (MARGIN + LABEL_WIDTH, sheet.height - MARGIN), sheet.width - 2 * MARGIN - LABEL_WIDTH
    ImageDraw.Draw(sheet).text(place, fitting(text, room, font), QUIET, font, anchor="ls")
