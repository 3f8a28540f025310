"""What differs between two artifacts, as lines of text, from their manifests alone."""

from collections.abc import Iterator, Mapping
from typing import Any

from dd_tasks.claims import ROWS, accuracy
from schemas.manifest import Claim, Manifest

FIELDS = ("name", "preset", "seed", "license", "held_out")
LABELS = ("codec", "epochs", "drawn", "views", "top", "step", "batch_statistics")
SHOWN = 20  # differences of the recipe
NONE = "none"


def changelog(old: Manifest | None, new: Manifest) -> list[str]:
    """One line a difference in what it is, its recipe, images, claims and files; without `old`, what it begins with."""
    if old is None:
        return ["first release", *(f"{_name(claim)}: {_score(claim)}" for claim in new.claims), _images(new)]
    recipe = list(_differences("recipe", _flat(old.recipe), _flat(new.recipe)))
    more = [f"recipe: {len(recipe) - SHOWN} more differences"] if len(recipe) > SHOWN else []
    return [*_facts(old, new), *recipe[:SHOWN], *more, *_contents(old, new), *_claims(old, new)] or [
        "the card or what the manifest says of the making, nothing else"
    ]


def _images(manifest: Manifest) -> str:
    count = manifest.ipc * len(manifest.classes)
    return f"{count} images, {manifest.ipc} for each of {len(manifest.classes)} classes, {manifest.side} px"


def _facts(old: Manifest, new: Manifest) -> Iterator[str]:
    """What was made from what."""
    for of, names in (("", FIELDS), ("labels", LABELS)):
        was, is_ = (getattr(manifest, of) if of else manifest for manifest in (old, new))
        yield from _differences(of, *({name: getattr(each, name, None) for name in names} for each in (was, is_)))
    if old.source.digest != new.source.digest:
        yield f"real data: {old.source.samples} images -> {new.source.samples}, other shards or classes"
    observers = [", ".join(each.name for each in manifest.observers) or NONE for manifest in (old, new)]
    if [each.digest for each in old.observers] != [each.digest for each in new.observers]:
        yield f"observers: {observers[0]} -> {observers[1]}, other weights"


def _contents(old: Manifest, new: Manifest) -> Iterator[str]:
    """Images by their number and kind, then files by their checksums."""
    if _images(old) != _images(new):
        yield f"images: {_images(old)} -> {_images(new)}"
    if old.classes != new.classes:
        yield f"classes: {_few(set(old.classes) - set(new.classes))} -> {_few(set(new.classes) - set(old.classes))}"
    for part in ("images", "soft_labels", "assets"):
        was, is_ = ({n: e.sha256 for n, e in m.files.items() if n.startswith(f"{part}/")} for m in (old, new))
        counts = {
            "changed": sum(was[name] != is_[name] for name in was.keys() & is_.keys()),
            "added": len(is_.keys() - was.keys()),
            "removed": len(was.keys() - is_.keys()),
        }
        if any(counts.values()):
            yield f"files of {part}: " + ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def _few(names: set[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or NONE


def _claims(old: Manifest, new: Manifest) -> Iterator[str]:
    was, is_ = ({_name(claim): _score(claim) for claim in manifest.claims} for manifest in (old, new))
    yield from _differences("", was, is_)


def _name(claim: Claim) -> str:
    return f"{claim.student} on {ROWS[claim.row]}, {claim.epochs} epochs, {claim.split}"


def _score(claim: Claim) -> str:
    return f"{accuracy(claim)} % (n={len(claim.seeds)})"


def _differences(of: str, was: Mapping[str, Any], is_: Mapping[str, Any]) -> Iterator[str]:
    """`of.name: old -> new` of every name whose value differs or that one side lacks, in the order of both."""
    for name in dict.fromkeys([*was, *is_]):
        if was.get(name, NONE) != is_.get(name, NONE):
            yield f"{of}.{name}: ".lstrip(".") + f"{was.get(name, NONE)} -> {is_.get(name, NONE)}"


def differences(of: str, was: Any, is_: Any) -> list[str]:
    """One line a leaf of nested data that differs: `of.name: old -> new`, or `old -> new` of what is no nested data."""
    return [line.removeprefix(": ") for line in _differences(of, _flat(was), _flat(is_))]


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one mapping from dotted paths to what is no mapping and no list."""
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = dict(enumerate(value)).items()
    else:
        return {path: value}
    return {at: leaf for key, part in parts for at, leaf in _flat(part, f"{path}.{key}".lstrip(".")).items()}
