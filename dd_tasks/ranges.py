"""The ranges of a recipe's numbers, as types of its fields: `recipe.override` refuses what lies outside."""

from typing import Annotated

from pydantic import AfterValidator, Field


def _rising(scale: tuple[float, float]) -> tuple[float, float]:
    if scale[0] > scale[1]:
        raise ValueError("the first may not exceed the second")
    return scale


LATER = {"later": True}  # of a field that came later: at its default it has no part in an identity, which so stays

MOST = 1 << 40  # torch and the tables count in 64 bits
Count = Annotated[int, Field(strict=True, ge=0, le=MOST)]
Steps = Annotated[int, Field(strict=True, ge=0, le=1_000_000)]  # plans list them one by one
Positive = Annotated[int, Field(strict=True, ge=1, le=MOST)]
Several = Annotated[int, Field(strict=True, ge=2, le=MOST)]  # BatchNorm needs two
Amount = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Temperature = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(strict=True, ge=0, lt=1)]
Share = Annotated[float, Field(strict=True, gt=0, le=1)]
Scale = Annotated[tuple[Share, Share], AfterValidator(_rising)]  # smallest and largest area of a crop
