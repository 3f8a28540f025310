"""A method as a value: what its identity sees, and what an override accepts."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dd_tasks.committee import ObserverRecipe
from dd_tasks.errors import InputError
from dd_tasks.initialise import Collage, Representatives, WholeImages
from dd_tasks.presets import LARGE, PRESETS, cv_dd, e2d, preset
from dd_tasks.recipe import PARTS, alone, identity, override, plain, voters_in, without_flips
from dd_tasks.schedule import Adam, Phase, RandomCrops, Revisit, Schedule, SharedCrop
from dd_tasks.students import StudentRecipe
from dd_tasks.terms import CrossEntropy
from dd_tasks.voters import Everyone, Lottery, One, RoundRobin


@dataclass(frozen=True)
class Left:
    size: float = 1.0


@dataclass(frozen=True)
class Right:
    size: float = 1.0


# Identity


def test_the_names_of_types_count():
    assert identity("stage", 1, part=Left()) != identity("stage", 1, part=Right())
    assert identity("stage", 1, voters=Everyone()) != identity("stage", 1, voters=RoundRobin())


def test_the_order_of_keys_does_not_count():
    assert identity("stage", 1, a=1, b={"x": 1, "y": 2}) == identity("stage", 1, b={"y": 2, "x": 1}, a=1)


@pytest.mark.parametrize(
    ("stage", "version", "inputs"),
    [
        ("other", 1, {"a": [1, 2]}),
        ("stage", 2, {"a": [1, 2]}),
        ("stage", 1, {"b": [1, 2]}),
        ("stage", 1, {"a": [2, 1]}),
        ("stage", 1, {"a": [1, 2], "b": None}),
    ],
)
def test_stage_version_names_values_and_their_order_count(stage, version, inputs):
    assert identity(stage, version, **inputs) != identity("stage", 1, a=[1, 2])


def test_a_change_deep_inside_counts():
    recipe = e2d(side=32)
    first, second = recipe.schedule.phases
    viewer = replace(second.viewer, threshold=0.6)
    changed = replace(recipe, schedule=replace(recipe.schedule, phases=(first, replace(second, viewer=viewer))))
    assert identity("recover", 1, recipe=changed) != identity("recover", 1, recipe=recipe)


def test_a_float_is_not_the_integer_it_equals():
    assert 1.0 == 1 and identity("stage", 1, x=1.0) != identity("stage", 1, x=1)
    assert identity("stage", 1, x=True) != identity("stage", 1, x=1)


def test_a_tuple_is_the_list_it_equals():
    assert identity("stage", 1, x=(1, 2)) == identity("stage", 1, x=[1, 2])


def test_identity_is_the_digest_of_canonical_json():
    text = r'["stage",1,{"a":["\u00e9",1],"b":{"x":null,"y":2.5},"part":{"size":0.1,"type":"Left"}}]'
    found = identity("stage", 1, part=Left(0.1), b={"y": 2.5, "x": None}, a=("é", 1))
    assert found == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("value", [torch.zeros(1), {1, 2}, b"bytes", Path("/somewhere"), object(), Left, 1j])
def test_what_is_not_plain_has_no_identity(value):
    with pytest.raises(TypeError, match="has no identity"):
        identity("stage", 1, nested={"here": [value]})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_without_json_has_no_identity(value):
    with pytest.raises(ValueError, match="JSON compliant"):
        identity("stage", 1, x=value)


def test_plain_is_json_that_names_its_types():
    found = json.loads(json.dumps(plain(e2d(side=32))))
    assert found["type"] == "Recipe" and found["initialiser"] == {"type": "WholeImages", "flip": True}
    assert [phase["viewer"]["type"] for phase in found["schedule"]["phases"]] == ["RandomCrops", "Revisit"]


# Overrides


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("initialiser", "Representatives", Representatives()),
        ("initialiser.flip", "false", False),
        ("schedule.phases.0.steps", "100", 100),
        ("schedule.phases.1.steps", "0", 0),
        ("schedule.phases.0.viewer", "Revisit", Revisit()),
        ("schedule.phases.0.viewer.scale", "[0.4,1.0]", (0.4, 1.0)),
        ("schedule.phases.0.viewer.scale", "[1, 1]", (1.0, 1.0)),
        ("schedule.phases.0.viewer.scale.0", "0.4", 0.4),
        ("schedule.optimiser.rate", "1", 1.0),
        ("schedule", "Schedule", Schedule()),
        ("labeller.epochs", "10", 10),
        ("labeller.epochs", "0", 0),
        ("labeller.mix", "no", False),
        ("labeller.batch_statistics", "8", 8),
        ("labeller.batch_statistics", "null", None),
        ("ballots.0.terms.1.weight", "0.1", 0.1),
        ("ballots.0.terms.1", "CrossEntropy", CrossEntropy()),
        ("ballots.0.voters", "Everyone", Everyone()),
        ("labeller.voters", "One", One()),
        ("labeller.voters.temperature", "10", 10.0),
        ("schedule.phases.0.viewer.threshold", "null", None),
    ],
)
def test_an_override_changes_the_field_it_names_and_nothing_else(path, text, value):
    recipe = e2d(side=32)
    changed = override(recipe, path, text)
    found = at(changed, path)
    assert found == value and type(found) is type(value)
    assert put(plain(recipe), path.split("."), plain(value)) == plain(changed)


def at(value: Any, path: str) -> Any:
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, tuple) else getattr(value, key)
    return value


def put(tree: Any, keys: list[str], leaf: Any) -> Any:
    """The same JSON data with one leaf replaced."""
    if not keys:
        return leaf
    key = int(keys[0]) if isinstance(tree, list) else keys[0]
    tree[key] = put(tree[key], keys[1:], leaf)
    return tree


INT, FLOAT, PAIR = "expected int (input should be", "expected float (input should be", "expected tuple[float, float] ("


@pytest.mark.parametrize(
    ("path", "text", "line"),
    [
        # places that are none
        (
            "steps", "3",
            "unknown field of Recipe in --set steps 'steps' (choices: ballots, initialiser, labeller, schedule)",
        ),
        ("", "3", "unknown field of Recipe in --set  '' (choices: ballots, initialiser, labeller, schedule)"),
        ("initialiser.", "3", "unknown field of WholeImages in --set initialiser. '' (choices: flip)"),
        (
            "schedule.optimiser.rates", "1",
            "unknown field of Adam in --set schedule.optimiser.rates 'rates'; did you mean 'rate'?"
            " (choices: betas, eps, rate)",
        ),
        ("schedule.phases.2.steps", "5", "unknown index in --set schedule.phases.2.steps '2' (choices: 0, 1)"),
        (
            "schedule.phases.-1.steps", "5",
            "unknown index in --set schedule.phases.-1.steps '-1'; did you mean '1'? (choices: 0, 1)",
        ),
        ("schedule.phases.²", "5", "unknown index in --set schedule.phases.² '²' (choices: 0, 1)"),
        ("schedule.phases.0.steps.x", "5", "--set schedule.phases.0.steps.x: int 140 has no field 'x'"),
        # values of another type
        ("labeller.epochs", "many", f"--set labeller.epochs=many: {INT} a valid integer)"),
        ("labeller.epochs", "", f"--set labeller.epochs=: {INT} a valid integer)"),
        ("labeller.epochs", "2.5", f"--set labeller.epochs=2.5: {INT} a valid integer)"),
        ("labeller.epochs", "true", f"--set labeller.epochs=true: {INT} a valid integer)"),
        ("labeller.epochs", "null", f"--set labeller.epochs=null: {INT} a valid integer)"),
        (
            "labeller.batch_statistics", "no",
            "--set labeller.batch_statistics=no: expected int or null (input should be a valid integer)",
        ),
        (
            "schedule.phases.0.viewer.scale", "1",
            f"--set schedule.phases.0.viewer.scale=1: {PAIR}input should be a valid tuple)",
        ),
        # values out of range
        ("labeller.epochs", "-1", f"--set labeller.epochs=-1: {INT} greater than or equal to 0)"),
        (
            "labeller.batch_statistics", "1",
            "--set labeller.batch_statistics=1: expected int or null (input should be greater than or equal to 2)",
        ),
        ("labeller.batch", "0", f"--set labeller.batch=0: {INT} greater than or equal to 1)"),
        ("schedule.phases.0.steps", "-5", f"--set schedule.phases.0.steps=-5: {INT} greater than or equal to 0)"),
        ("schedule.phases.0.steps", "9" * 18,
        f"--set schedule.phases.0.steps={'9' * 18}: {INT} less than or equal to 1000000)"),
        ("schedule.memory", "0", f"--set schedule.memory=0: {INT} greater than or equal to 1)"),
        ("schedule.optimiser.rate", "NaN", f"--set schedule.optimiser.rate=NaN: {FLOAT} a finite number)"),
        ("ballots.0.terms.1.momentum", "1", f"--set ballots.0.terms.1.momentum=1: {FLOAT} less than 1)"),
        ("ballots.0.terms.0.weight", "-1", f"--set ballots.0.terms.0.weight=-1: {FLOAT} greater than or equal to 0)"),
        ("labeller.scale", "[2,1]", f"--set labeller.scale=[2,1]: {PAIR}input should be less than or equal to 1)"),
        ("labeller.scale", "[0,1]", f"--set labeller.scale=[0,1]: {PAIR}input should be greater than 0)"),
        ("labeller.scale", "[1,0.5]", f"--set labeller.scale=[1,0.5]: {PAIR}the first may not exceed the second)"),
        ("labeller.scale.1", "0.2", f"--set labeller.scale.1=0.2: {PAIR}the first may not exceed the second)"),
        # parts that are unknown, or in the wrong place
        (
            "initialiser", "Whole",
            "unknown part in --set initialiser 'Whole'; did you mean 'WholeImages'?"
            " (choices: Collage, Noise, Representatives, WholeImages)",
        ),
        (
            "initialiser", "Adam",
            "unknown part in --set initialiser 'Adam' (choices: Collage, Noise, Representatives, WholeImages)",
        ),
        (
            "labeller.voters", "Nobody",
            "unknown part in --set labeller.voters 'Nobody' "
            "(choices: Everyone, Guides, Learners, Lottery, One, RoundRobin)",
        ),
        ("labeller", "e2d", "unknown part in --set labeller 'e2d' (choices: OneHot, Relabel)"),
        ("schedule.optimiser", "Lion", "unknown part in --set schedule.optimiser 'Lion' (choices: Adam, Sgd)"),
        (
            "schedule.phases.0.viewer", "CrossEntropy",
            "unknown part in --set schedule.phases.0.viewer 'CrossEntropy'"
            " (choices: RandomCrops, Revisit, Rolled, SharedCrop, Tiles)",
        ),
        (
            "schedule.phases.0", "Phase",
            "--set schedule.phases.0=Phase: Phase has no defaults; set its fields (steps, viewer)",
        ),
        ("ballots", "[]", "--set ballots=[]: set one of its items (ballots.0 to ballots.0)"),
    ],
)  # fmt: skip
def test_a_meaningless_override_is_one_line(path, text, line):
    with pytest.raises(InputError) as refused:
        override(e2d(side=32), path, text)
    assert str(refused.value) == line


@pytest.mark.parametrize(
    ("part", "path", "text"),
    [
        (StudentRecipe(), "epochs", "0"),
        (StudentRecipe(), "batch", "1"),
        (StudentRecipe(), "tail", "0"),
        (StudentRecipe(), "ema", "1"),
        (ObserverRecipe("convnet3", 1), "epochs", "0"),
        (ObserverRecipe("convnet3", 1), "reach", "-1"),
        (ObserverRecipe("convnet3", 1), "peak_rate", "Infinity"),
        (Representatives(), "candidates", "0"),
        (Collage(), "factor", "0"),
        (Collage(), "difficulty", "simple"),
        (Everyone(), "temperature", "0"),
        (Lottery(), "drawn", "0"),
        (SharedCrop(), "start", "0"),
        (Adam(), "betas", "[0.5, 1]"),
    ],
)
def test_numbers_without_meaning_are_refused(part, path, text):
    with pytest.raises(InputError, match=rf"^--set {path}=.* \(input should be .*\)$"):
        override(part, path, text)


def test_text_needs_no_quotes():
    assert override(StudentRecipe(), "architecture", "convnet4") == StudentRecipe("convnet4")
    assert override(StudentRecipe(), "architecture", '"convnet4"') == StudentRecipe("convnet4")


def test_every_part_fits_its_place_and_passes_its_own_ranges():
    for place, parts in PARTS.items():
        for part in parts:
            members = [name for name in vars(place) if not name.startswith("_")]
            assert all(hasattr(part(), name) for name in (*members, *place.__annotations__)), (place, part)
            for field in dataclasses.fields(part):
                value = getattr(part(), field.name)
                text = type(value).__name__ if dataclasses.is_dataclass(value) else json.dumps(value)
                assert override(part(), field.name, text) == part()


def numbers_in(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every field that is not a part, by its dotted name."""
    items = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    for name, item in items.items():
        parts = enumerate(item) if isinstance(item, tuple) else ()
        for i, part in parts:
            if dataclasses.is_dataclass(part):
                yield from numbers_in(part, f"{path}{name}.{i}.")
        if dataclasses.is_dataclass(item):
            yield from numbers_in(item, f"{path}{name}.")
        elif not (isinstance(item, tuple) and (not item or dataclasses.is_dataclass(item[0]))):
            yield path + name, item


@pytest.mark.parametrize("side", [32, 224])
@pytest.mark.parametrize("name", PRESETS | LARGE)
def test_presets_pass_their_own_ranges(name, side):
    recipe = preset(name, side=side)
    numbers = dict(numbers_in(recipe))
    assert "schedule.optimiser.rate" in numbers and "labeller.epochs" in numbers
    for path, value in numbers.items():
        assert override(recipe, path, json.dumps(value)) == recipe


# Voters


def test_voters_are_found_wherever_they_sit():
    assert list(voters_in(e2d(side=32))) == [RoundRobin(), Everyone()]
    assert list(voters_in(cv_dd(side=32))) == [One(), Lottery(), Everyone(temperature=10.0)]


def test_alone_seats_one_everywhere_and_changes_nothing_else():
    recipe = cv_dd(side=32)
    single = alone(recipe)
    assert list(voters_in(single)) == [One()] * 3
    assert single.schedule == recipe.schedule and single.labeller == replace(recipe.labeller, voters=One())
    assert single.ballots[0].terms == recipe.ballots[0].terms


# Mirrors


def test_without_flips_turns_every_flip_off_and_nothing_else():
    recipe, observers = without_flips((e2d(side=32), (ObserverRecipe("convnet3", 1),)))
    flips = [recipe.initialiser, recipe.labeller, *(p.viewer for p in recipe.schedule.phases), *observers]
    assert [part.flip for part in flips] == [False] * 5
    assert recipe.initialiser == WholeImages(flip=False)
    assert recipe.labeller == replace(e2d(side=32).labeller, flip=False)
    assert recipe.schedule.phases[0] == Phase(140, RandomCrops(flip=False))
    assert recipe.ballots == e2d(side=32).ballots
