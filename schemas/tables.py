"""The rows of an artifact's two tables, column by column and in the order of the Parquet files.

Image numbers are row numbers of the table `images`, from 0. Boxes are whole pixels; top and left count from the upper
left corner.
"""

from typing import Annotated

from pydantic import Field

from schemas.manifest import Frozen

Png = bytes  # a field named bytes hides the type of that name

Epoch = Annotated[
    int, Field(ge=0, description="pass over all images that this belongs to; each has one view of each image")
]
Top = Annotated[int, Field(ge=0, description="of the crop, in pixels of the image")]
Left = Annotated[int, Field(ge=0, description="of the crop")]
Edge = Annotated[int, Field(ge=1, description="of the crop")]
Flip = Annotated[bool, Field(description="left and right change places, after the crop")]
MixTop = Annotated[int, Field(ge=0, description="of the box pasted in from the partner, in pixels of the view")]
MixLeft = Annotated[int, Field(ge=0, description="of the mix box")]
MixHeight = Annotated[int, Field(ge=0, description="of the mix box; 0 if nothing is mixed in")]
MixWidth = Annotated[int, Field(ge=0, description="of the mix box")]


class PngImage(Frozen):
    """An image as it lies in the Parquet file; `datasets` shows it decoded."""

    bytes: Png = Field(description="a PNG file: RGB, 8 bits a channel, as wide as it is high")
    path: str | None = Field(default=None, description="not used")


class ImageRow(Frozen):
    """Table `images`: one distilled image."""

    image: PngImage
    label: int = Field(ge=0, description="class, as a number; the names are in the card and in retort.json")
    soft_label: list[float] = Field(
        min_length=1,
        description="one probability per class. Exact labels: the mean of softmax(logits) over all labelled views of "
        "this image, mixed ones included. Compact labels: the softmax of the logits that, mixed with those of its "
        "partners by area, come nearest to the views'. Without any view: 1 for the label and 0 elsewhere",
    )
    slot: int = Field(ge=0, description="number of this image within its class, from 0")
    sources: list[str] = Field(
        description="keys (names in the shards of the real data) of the real images that this one began from; empty if "
        "it began as noise"
    )
    nearest: str = Field(description="key of the training image that is most like this one or its mirror image")
    similarity: float = Field(
        ge=-1,
        le=1,
        description="to `nearest`: cosine similarity of the pixels at this size, each image minus its own mean; "
        "1 is a copy",
    )


class ViewRow(Frozen):
    """Table `soft_labels`: one labelled view, that is a crop of one image, perhaps with a box pasted in from another,
    and what the committee of observers said of it.

    To see the view again: cut the crop out of the image, resize it to the image's size (bilinear, no antialiasing),
    flip it if told. If `mix_height` is not 0, do the same with the partner, and copy the mix box from there to the same
    place.
    """

    image: int = Field(ge=0, description="image that is shown")
    epoch: Epoch
    top: Top
    left: Left
    height: Edge
    width: Edge
    flip: Flip
    partner: int = Field(ge=0, description="image that the mix box is taken from; any where there is no mix box")
    partner_top: int = Field(ge=0, description="of the partner's crop, in pixels of the partner")
    partner_left: int = Field(ge=0, description="of the partner's crop")
    partner_height: int = Field(ge=1, description="of the partner's crop")
    partner_width: int = Field(ge=1, description="of the partner's crop")
    partner_flip: bool = Field(description="whether the partner's crop is flipped")
    mix_top: MixTop
    mix_left: MixLeft
    mix_height: MixHeight
    mix_width: MixWidth
    logits: list[float] = Field(min_length=1, description="the committee's combined logits, one per class, as float16")


class GroupRow(Frozen):
    """Table `soft_labels` of compact labels: one view each of `count` images in a row, and what the committee said of
    them. These views have crop, flip and mix box in common, for the image and for its partner.

    Image first + i has the partner first + (i + ahead) % count. Its logits are the mix, by the areas of the view that
    they fill, of its own and its partner's log(soft_label), each less its mean over the classes; plus step * code.
    """

    epoch: Epoch
    first: int = Field(ge=0, description="the first image that is shown")
    count: int = Field(ge=1, description="how many images are shown, one after the other")
    ahead: int = Field(ge=0, description="the partner of image first + i is first + (i + ahead) % count")
    top: Top
    left: Left
    height: Edge
    width: Edge
    flip: Flip
    mix_top: MixTop
    mix_left: MixLeft
    mix_height: MixHeight
    mix_width: MixWidth
    step: float = Field(gt=0, description="unit of the codes, in logits")
    classes: list[int] | None = Field(
        default=None,
        description="image by image, the classes that its codes are of; there is no such column where they are of "
        "every class in order",
    )
    codes: Png = Field(description="signed bytes, image by image: what is added to the mix of logits, in steps")
