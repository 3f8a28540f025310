"""A method as a value: the five parts of a recipe, overrides by dotted name, and the identity of any frozen value."""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from dd_tasks import initialise, label, schedule, terms, voters
from dd_tasks.errors import InputError, unknown


@dataclass(frozen=True)
class Ballot:
    """Who judges, by which terms."""

    voters: voters.Voters
    terms: tuple[terms.Term, ...]


@dataclass(frozen=True)
class Recipe:
    """A distillation method: the first canvas, who votes by which terms, when, and the labels."""

    initialiser: initialise.Initialiser
    ballots: tuple[Ballot, ...]
    schedule: schedule.Schedule
    labeller: label.Labeller


PARTS: Mapping[str, type] = {
    part.__name__: part
    for part in (
        initialise.WholeImages, initialise.Representatives, voters.Everyone, voters.RoundRobin, terms.CrossEntropy,
        terms.SmoothedStatistics, schedule.RandomCrops, schedule.Revisit, schedule.Adam, label.Relabel,
    )
}  # fmt: skip


def plain(value: Any) -> Any:
    """A frozen value as JSON data; dataclasses carry their type's name under `type`."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__} | {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{type(value).__name__} has no identity: {value!r}")


def identity(stage: str, version: int, **inputs: Any) -> str:
    """sha256 of the canonical JSON of what a result depends on: stage, its version, and every input by value."""
    text = json.dumps([stage, version, plain(inputs)], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def override(value: Any, path: str, text: str) -> Any:
    """`value` with the field at the dotted `path` set from `text`; an index picks from a tuple, a part's name makes
    that part with its defaults: `schedule.phases.0.steps=100`, `initialiser=Representatives`.

    InputError naming the place and the choices.
    """
    return _override(value, path.split("."), text, path)


def _override(value: Any, keys: list[str], text: str, path: str) -> Any:
    if not keys:
        return _parse(value, text, path)
    key, *rest = keys
    if isinstance(value, tuple):
        if not key.isdigit() or int(key) >= len(value):
            raise unknown("index", key, [str(i) for i in range(len(value))]) from None
        at = int(key)
        return (*value[:at], _override(value[at], rest, text, path), *value[at + 1 :])
    if not is_dataclass(value):
        raise InputError(f"--set {path}: {type(value).__name__} {value!r} has no field {key!r}")
    names = [f.name for f in fields(value)]
    if key not in names:
        raise unknown(f"field of {type(value).__name__} in --set {path}", key, names)
    if not rest and not is_dataclass(getattr(value, key)):
        hint = typing.get_type_hints(type(value))[key]
        return dataclasses.replace(value, **{key: _coerce(hint, text, path)})  # type: ignore[type-var]
    return dataclasses.replace(value, **{key: _override(getattr(value, key), rest, text, path)})  # type: ignore[type-var]


def _parse(current: Any, text: str, path: str) -> Any:
    if is_dataclass(current):
        if text not in PARTS:
            raise unknown(f"part in --set {path}", text, PARTS)
        return PARTS[text]()
    return _coerce(type(current), text, path)


def _coerce(hint: Any, text: str, path: str) -> Any:
    """`text` as JSON (or bare text) of the annotated type."""
    from pydantic import TypeAdapter, ValidationError

    try:
        data = json.loads(text)
    except json.JSONDecodeError:
        data = text
    try:
        return TypeAdapter(hint).validate_python(data)
    except ValidationError as error:
        expected = hint.__name__ if isinstance(hint, type) and not isinstance(hint, types.GenericAlias) else str(hint)
        raise InputError(f"--set {path}={text}: expected {expected} ({error.errors()[0]['msg']})") from None


def without_flips(value: Any) -> Any:
    """The same parts with every left-right flip off, for classes that a mirror changes (digits, letters)."""
    if isinstance(value, tuple):
        return tuple(without_flips(v) for v in value)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    changed = {f.name: False if f.name == "flip" else without_flips(getattr(value, f.name)) for f in fields(value)}
    return dataclasses.replace(value, **changed)
