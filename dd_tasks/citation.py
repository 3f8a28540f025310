"""What to cite, as BibTeX: an artifact, and the papers of its method by the names that this project knows."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from dd_tasks.visible import one_line
from schemas.manifest import Manifest

SHOWN_IDENTITY = 12  # digits
UNPUBLISHED = "note = {not published}"
HUB = "https://huggingface.co/datasets"
PRESET = re.compile(r"(\w+)(?:\(([^,()]+)(?:,.*)?\))?")  # a method by name, perhaps built on another
TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "`": "'"} | {
    letter: f"\\{letter}" for letter in "{}%&$#_"
}


@dataclass(frozen=True)
class Paper:
    """A paper by the name of its method, and what the method is."""

    name: str
    about: str


PAPERS: Mapping[str, Paper] = {
    "sre2l": Paper("SRe2L", "squeeze, recover, relabel"),
    "cda": Paper("CDA", "curriculum data augmentation"),
    "rded": Paper("RDED", "realistic, diverse and efficient distillation"),
    "edc": Paper("EDC", "elucidating the design space of distillation"),
    "e2d": Paper("E2D", "exploration-exploitation distillation"),
    "cv_dd": Paper("CV-DD", "committee voting for distillation, with SRe2L++ as its baseline"),
    "dream_plus": Paper("DREAM+", "representative, bidirectional matching"),
    "clom": Paper("CLoM", "contrastive learning-based guidance by a pool of pre-trained models"),
}
STANDS_ON: Mapping[str, tuple[str, ...]] = {
    "sre2l": ("sre2l",),
    "sre2l_pp": ("cv_dd", "sre2l", "rded"),
    "cda": ("cda", "sre2l"),
    "cda_21k": ("cda", "sre2l"),
    "rded": ("rded",),
    "edc": ("edc",),
    "e2d": ("e2d", "edc"),
    "e2d_21k": ("e2d", "edc", "sre2l"),
    "cv_dd": ("cv_dd", "sre2l", "rded"),
    "dream_plus": ("dream_plus",),
    "clom": ("clom",),
    "retort": ("e2d", "edc", "dream_plus"),
}


def papers(preset: str) -> list[str]:
    """Keys into PAPERS of the papers that a preset stands on, its own first; none for a method of a user's own."""
    match = PRESET.fullmatch(preset)
    if match is None or match[1] not in STANDS_ON:
        return []
    base = match[2] or ("dream_plus" if match[1] == "clom" else "")
    return list(dict.fromkeys([*STANDS_ON[match[1]], *(papers(base.strip()) if base else [])]))


def tex(text: str) -> str:
    """The text on one line, so that TeX sets it as it is."""
    return "".join(TEX.get(letter, letter) for letter in one_line(text))


def title(manifest: Manifest) -> str:
    """What the artifact is, in a line."""
    return f"{manifest.name}: {manifest.ipc} distilled image{'s' * (manifest.ipc > 1)} per class ({manifest.preset})"


def of_artifact(manifest: Manifest, *more: str) -> str:
    """BibTeX of the artifact; its version is its identity. `more` are further fields."""
    version = manifest.identity[:SHOWN_IDENTITY]
    fields = (f"title = {{{tex(title(manifest))}}}", f"version = {{{version}}}", *more)
    return _entry(f"retort-{version}", fields)


def of_papers(preset: str) -> list[str]:
    """BibTeX of the papers that a preset stands on."""
    found = [(key, PAPERS[key]) for key in papers(preset)]
    return [_entry(key, (f"title = {{{tex(f'{paper.name}: {paper.about}')}}}",)) for key, paper in found]


def _entry(key: str, fields: tuple[str, ...]) -> str:
    return "\n".join([f"@misc{{{key},", *(f"  {field}," for field in fields), "}"])


def published(text: str, repository: str) -> str:
    """The text with the address of the repository in the citation of an artifact that said it was not published."""
    return text.replace(UNPUBLISHED, f"url = {{{HUB}/{repository}}}")
