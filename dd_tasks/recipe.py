"""A method as a value: the five parts of a recipe, overrides by dotted name, and the identity of any frozen value."""

import dataclasses
import hashlib
import json
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from dd_tasks import guides, initialise, label, learners, schedule, terms, voters
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

    @property
    def needs_patches(self) -> bool:
        """Whether a term matches statistics of patches, which are then measured first."""
        return any(term.needs_patches for ballot in self.ballots for term in ballot.terms)

    @property
    def matches_data(self) -> bool:
        """Whether a term matches statistics of the real data, by channel or by patch."""
        return any(getattr(term, "matches_data", True) for ballot in self.ballots for term in ballot.terms)

    def check_batch(self) -> None:
        """InputError where the schedule asks for several batches a panel, and a term knows only whole panels."""
        batch, named = self.schedule.batch, [term for ballot in self.ballots for term in ballot.terms]
        for term in named if batch else ():
            if not getattr(term, "by_batch", False):
                raise InputError(f"schedule.batch={batch}: {type(term).__name__} is of whole panels (choices: 0)")


PARTS: Mapping[Any, tuple[type, ...]] = {  # what fits where a field is annotated so
    initialise.Initialiser: (
        initialise.Noise,
        initialise.WholeImages,
        initialise.Collage,
        initialise.Representatives,
    ),
    voters.Voters: (voters.One, voters.Everyone, voters.RoundRobin, voters.Lottery, learners.Learners, guides.Guides),
    terms.Term: (
        terms.CrossEntropy,
        terms.BatchNormMatching,
        terms.SmoothedStatistics,
        terms.PatchStatistics,
        terms.FeatureMean,
        terms.GradientMatching,
        terms.ContrastivePull,
    ),
    label.Labeller: (label.Relabel, label.OneHot),
}


def voters_in(value: Any) -> Iterator[voters.Voters]:
    """Every one of the parts that seats observers."""
    if isinstance(value, PARTS[voters.Voters]):
        yield typing.cast(voters.Voters, value)
    elif isinstance(value, tuple):
        for item in value:
            yield from voters_in(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from voters_in(getattr(value, field.name))


def plain(value: Any) -> Any:
    """A frozen value as JSON data; dataclasses carry their type's name under `type`, and leave out fields that came
    `LATER` while they have their defaults."""
    if is_dataclass(value) and not isinstance(value, type):
        said = [f for f in fields(value) if "later" not in f.metadata or getattr(value, f.name) != f.default]
        return {"type": type(value).__name__} | {f.name: plain(getattr(value, f.name)) for f in said}
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


def override(value: Any, path: str, text: str, within: str = "") -> Any:
    """`value` with the field at the dotted `path` set from `text`; an index picks from a tuple, a part's name makes
    that part with its defaults: `schedule.phases.0.steps=100`, `initialiser=Representatives`.

    InputError naming the place and the choices: for a place that is none, a part that does not fit there, or a number
    outside the field's range. The place is called by what the value is `within`, too.
    """
    return _override(value, type(value), path.split("."), text, within + path)


def _override(value: Any, hint: Any, keys: list[str], text: str, path: str) -> Any:
    """`hint` is the annotation of the place where `value` stands."""
    if not keys:
        return _part(hint, text, path) if is_dataclass(value) else _data(text)
    key, *rest = keys
    if isinstance(value, tuple):
        places = [str(i) for i in range(len(value))]
        if key not in places:
            raise unknown(f"index in --set {path}", key, places)
        at = int(key)
        return (*value[:at], _override(value[at], typing.get_args(hint)[0], rest, text, path), *value[at + 1 :])
    if not is_dataclass(value):
        raise InputError(f"--set {path}: {type(value).__name__} {value!r} has no field {key!r}")
    names = [f.name for f in fields(value)]
    if key not in names:
        raise unknown(f"field of {type(value).__name__} in --set {path}", key, names)
    old, inner = getattr(value, key), typing.get_type_hints(type(value), include_extras=True)[key]
    new = _override(old, inner, rest, text, path)
    if not rest and _holds_parts(old):
        raise InputError(f"--set {path}={text}: set one of its items ({path}.0 to {path}.{len(old) - 1})")
    if not (is_dataclass(old) or _holds_parts(old)):
        new = _checked(inner, new, typing.get_type_hints(type(value))[key], f"{path}={text}")
    return dataclasses.replace(value, **{key: new})  # type: ignore[type-var]


def _holds_parts(value: Any) -> bool:
    return isinstance(value, tuple) and any(map(is_dataclass, value))


def _part(hint: Any, text: str, path: str) -> Any:
    """A part by name, with its defaults, out of those that fit the annotation."""
    fitting = {part.__name__: part for part in PARTS.get(hint) or typing.get_args(hint) or (hint,)}
    if text not in fitting:
        raise unknown(f"part in --set {path}", text, fitting)
    try:
        return fitting[text]()
    except TypeError:
        names = ", ".join(f.name for f in fields(fitting[text]))
        raise InputError(f"--set {path}={text}: {text} has no defaults; set its fields ({names})") from None


def _data(text: str) -> Any:
    """JSON, or bare text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _checked(hint: Any, data: Any, expected: Any, what: str) -> Any:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(hint).validate_python(data)
    except ValidationError as error:
        name = str(expected) if typing.get_args(expected) else expected.__name__
        name = re.sub(r"typing.Optional\[(.*)\]", r"\1 or null", name)
        name = re.sub(r"typing.Literal\[(.*)\]", r"one of \1", name)
        reason = error.errors()[0]["msg"].removeprefix("Value error, ").lower()
        raise InputError(f"--set {what}: expected {name} ({reason})") from None


def without_flips(value: Any) -> Any:
    """The same parts with every left-right flip off, for classes that a mirror changes (digits, letters)."""
    return _mapped(value, lambda part: dataclasses.replace(part, flip=False) if hasattr(part, "flip") else part)


def with_guides(value: Any, pool: str) -> Any:
    """The same parts with the guides of another pool. InputError where there are no guides."""
    if not any(isinstance(part, guides.Guides) for part in voters_in(value)):
        raise InputError(f"--guides {pool!r}: this method has no guides (clom(METHOD) has)")
    return _mapped(
        value, lambda part: dataclasses.replace(part, pool=pool) if isinstance(part, guides.Guides) else part
    )


def alone(value: Any) -> Any:
    """The same parts with one observer wherever several may be seated."""

    def single(part: Any) -> Any:
        own = next(voters_in(part), None)
        return voters.One() if own is not None and own is part and not own.needs_real else part

    return _mapped(value, single)


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Every part of a frozen value, inner ones first, changed."""
    if isinstance(value, tuple):
        return tuple(_mapped(v, change) for v in value)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    inner = {f.name: _mapped(getattr(value, f.name), change) for f in fields(value)}
    return change(dataclasses.replace(value, **inner))
