"""What the Hub knows: the identifiers that the header of a dataset card may use there."""

import re
from difflib import get_close_matches
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

LICENSES = (
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigscience-bloom-rail-1.0",
    "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0",
    "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1",
    "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "h-research",
    "intel-research", "lppl-1.3c", "ms-pl", "apple-ascl", "apple-amlr", "mpl-2.0", "odc-by", "odbl", "openmdw-1.0",
    "openmdw-1.1", "openrail++", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl", "lgpl-lr",
    "deepfloyd-if-license", "fair-noncommercial-research-license", "llama2", "llama3", "llama3.1", "llama3.2",
    "llama3.3", "llama4", "grok2-community", "gemma", "unknown", "other",
)  # fmt: skip
COMMON_LICENSES = ("apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "other", "unknown")
TASKS = (
    "image-classification", "zero-shot-image-classification", "image-feature-extraction", "object-detection",
    "zero-shot-object-detection", "image-segmentation", "mask-generation", "keypoint-detection", "depth-estimation",
    "image-to-image", "image-to-text", "image-to-video", "image-to-3d", "text-to-image", "text-to-video", "text-to-3d",
    "unconditional-image-generation", "video-classification",
)  # fmt: skip
TASK_IDS = ("multi-class-image-classification", "multi-label-image-classification")
ANNOTATORS = ("found", "crowdsourced", "expert-generated", "machine-generated", "no-annotation", "other")
SIZES = (
    "n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B", "10B<n<100B",
    "100B<n<1T", "n>1T",
)  # fmt: skip


def known(what: str, choices: tuple[str, ...], common: tuple[str, ...] = ()) -> AfterValidator:
    """Refuses a str that is none of the choices, with those that are nearest, or else the common ones or all."""
    in_small = {name.lower(): name for name in choices}

    def check(value: str) -> str:
        if value in choices:
            return value
        if near := get_close_matches(value.lower(), in_small, n=3):
            hint = f"did you mean {' or '.join(in_small[name] for name in near)}?"
        else:
            hint = f"choices: {', '.join(common or choices)}{' and others' if common else ''}"
        raise PydanticCustomError("unknown", "{said}", {"said": f"the Hub knows no {what} {value!r}; {hint}"})

    return AfterValidator(check)


def shaped(what: str, pattern: str) -> AfterValidator:
    """Refuses a str that does not match, and says `what` it has to be."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise PydanticCustomError("unshaped", "{said}", {"said": f"{value!r} is not {what}"})
        return value

    return AfterValidator(check)


def listed(choices: tuple[str, ...]) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "enum": list(choices)})


NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)?"
LETTERS = "of letters, digits, dots, - and _"

DatasetName = Annotated[
    str,
    shaped(f"a dataset's name: NAME or OWNER/NAME, {LETTERS}", NAME),
    WithJsonSchema({"type": "string", "pattern": f"^{NAME}$"}),
]
Origin = Annotated[
    str,
    shaped(f"`original`, NAME, OWNER/NAME or extended|NAME, {LETTERS}", rf"(extended\|)?{NAME}"),
    WithJsonSchema({"type": "string", "pattern": rf"^(extended\|)?{NAME}$"}),
]
License = Annotated[str, known("licence", LICENSES, COMMON_LICENSES), listed(LICENSES)]
Task = Annotated[str, known("task of images", TASKS), listed(TASKS)]
TaskId = Annotated[str, known("kind of image classification", TASK_IDS), listed(TASK_IDS)]
Annotator = Annotated[str, known("kind of annotators", ANNOTATORS), listed(ANNOTATORS)]
Size = Annotated[str, known("size category", SIZES), listed(SIZES)]
