"""Engines: the same results on Ray as here, whatever dies; a panel that fails three times fails the run alone."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from dying import deaths, set_aside, with_term
from prefect.settings import PREFECT_API_URL, temporary_settings
from torch import Tensor

from dd_tasks.errors import InputError
from dd_tasks.recipe import Recipe
from flows.engines import ENGINE, TRIES, EngineError, expect, own_of, requests_of
from flows.settings import Part, Request, Settings
from schemas.manifest import Manifest
from schemas.spec import RunSpec

PANELS = 4


def distil(quick: dict[str, object], root: Path, panels: int = PANELS, **settings: object) -> Manifest:
    """Into `root`, with a store of its own."""
    from flows.distill import distill_dataset

    changed: dict[str, Any] = {**quick, "panel": 20 // panels, "full_epochs": 0}
    where: dict[str, Any] = {"store": str(root / "store"), "device": "cpu", **settings}
    return distill_dataset(RunSpec(**changed), root / "dataset", Settings(**where))


def tables(manifest: Manifest) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in manifest.files.items() if name.endswith(".parquet")}


@pytest.fixture(scope="module", autouse=True)
def known() -> Iterator[None]:
    """Where workers find the methods of tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        yield


@pytest.fixture(scope="module")
def here(quick: dict[str, object], tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Manifest:
    """What a run in this process makes, on one thread."""
    return distil(quick, tmp_path_factory.mktemp("here"), threads=1)


def scores(manifest: Manifest) -> dict[str, list[float]]:
    return {claim.row: claim.accuracies for claim in manifest.claims}


@pytest.mark.parametrize("workers", [1, 2])
def test_ray_makes_the_same_with_any_number_of_workers(
    quick: dict[str, object], here: Manifest, tmp_path: Path, workers: int
) -> None:
    made = distil(quick, tmp_path, engine="ray", workers=workers)
    assert tables(made) == tables(here) and scores(made) == scores(here)


@pytest.fixture
def dying(quick: dict[str, object]) -> dict[str, object]:
    """The run, of a method in which the deaths of workers can be set aside."""
    return {**quick, "preset": "dying:e2d"}


HOME = os.environ["PREFECT_HOME"]


def test_a_worker_that_is_killed_has_its_panel_run_elsewhere(
    dying: dict[str, object], here: Manifest, tmp_path: Path
) -> None:
    set_aside(HOME, 1)
    made = distil(dying, tmp_path, engine="ray", workers=2)
    assert deaths(HOME) == [] and tables(made) == tables(here)


def test_workers_that_always_die_fail_the_run_which_continues_later(
    dying: dict[str, object], tmp_path: Path, prefect_server: None
) -> None:
    """Of one panel: Ray takes seconds to start a worker in place of each that died."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = distil(dying, whole, panels=1, threads=1)
    set_aside(HOME, TRIES + 1)
    with pytest.raises(EngineError, match=r"^panel 0: its worker died 3 times: .*; .* the same command continues$"):
        distil(dying, killed, panels=1, engine="ray", workers=2)
    assert len(deaths(HOME)) == 1
    set_aside(HOME, 0)
    assert len(list((killed / "store" / "observer").iterdir())) == len(undisturbed.observers)
    assert tables(distil(dying, killed, panels=1, threads=1)) == tables(undisturbed)


TRIED: list[int] = []  # of every panel that failed, its first class


@dataclass(frozen=True)
class Failing:
    """A term that fails wherever class 9 is judged."""

    needs_moments: ClassVar[bool] = False
    needs_patches: ClassVar[bool] = False

    def convene(self, studio: object) -> Callable[..., Tensor]:
        def loss(judge: object, reading: object, targets_N: Tensor) -> Tensor:
            if (targets_N == 9).any():
                TRIED.append(int(targets_N.min()))
                raise RuntimeError("out of luck\nand more")
            return torch.zeros(())

        return loss


def failing(*, side: int) -> Recipe:
    """E2D with that term."""
    return with_term(Failing(), side)


def test_a_panel_that_fails_three_times_fails_the_run_and_the_others_are_kept(
    quick: dict[str, object], tmp_path: Path, prefect_server: None
) -> None:
    TRIED.clear()
    with pytest.raises(EngineError, match=r"^panel 1: failed: out of luck; what the others made is kept, and"):
        distil({**quick, "preset": "test_engines:failing"}, tmp_path)
    assert len(TRIED) == 2 * TRIES  # every other panel has class 9
    assert len(list((tmp_path / "store" / "panel").iterdir())) == PANELS - 2


@pytest.mark.parametrize(
    ("settings", "part", "found"),
    [
        ({}, "panels", {"num_cpus": 1, "num_gpus": 0, "max_retries": 2}),
        ({"threads": 4}, "students", {"num_cpus": 4, "num_gpus": 0, "max_retries": 2}),
        ({"device": "cuda"}, "panels", {"num_cpus": 1, "num_gpus": 1, "max_retries": 2}),
        ({"device": "cuda:1"}, "labels", {"num_cpus": 1, "num_gpus": 1, "max_retries": 2}),
        (
            {"device": "cuda", "requests": (Request(part="students", gpus=0.25, memory=5),)},
            "students",
            {"num_cpus": 1, "num_gpus": 0.25, "max_retries": 2, "memory": 5},
        ),
        ({"requests": (Request(part="students", cpus=3),)}, "panels", {"num_cpus": 1, "num_gpus": 0, "max_retries": 2}),
    ],
)
def test_every_part_asks_for_what_it_needs(settings: dict[str, Any], part: Part, found: dict[str, float]) -> None:
    assert requests_of(Settings(engine="ray", **settings))[part] == found


def test_a_ray_of_ones_own_has_room_for_so_many_workers() -> None:
    assert own_of(Settings(engine="ray", workers=3, threads=2))["num_cpus"] == 6
    assert own_of(Settings(engine="ray"))["num_cpus"] == os.cpu_count()


def test_workers_elsewhere_need_a_server_to_report_to() -> None:
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(InputError, match=r"^engine 'pool:gpus': PREFECT_API_URL is not set; its workers"),
    ):
        expect(Settings(engine="pool:gpus"))
    expect(Settings(engine="ray"))


class Walked(tuple):
    """Faults that count how often one goes through them."""

    times = 0

    def __iter__(self) -> Iterator[Any]:
        Walked.times += 1
        return super().__iter__()


def test_nobody_goes_through_the_data_to_start_a_stage(digits: Path, prefect_server: None) -> None:
    """Or a panel would take the longer the more classes there are."""
    from prefect import flow

    from flows.stages import stage
    from flows.tasks import index_shards
    from flows.workspace import Data

    @stage("look")
    def look(data: Data, number: int) -> tuple[int, Data]:
        return number, data

    @flow(task_runner=ENGINE, validate_parameters=False)
    def run() -> list[tuple[int, Data]]:
        data = replace(index_shards((f"{digits}/train/*.tar",), (), None, 0.1, 0, 1), faults=Walked())
        begun = Walked.times
        found = [look(data, 0), look.submit(data, 1).result(), look.submit(number=2, data=data).result()]
        assert all(each.faults is data.faults and each == data for _, each in found)
        assert Walked.times == begun
        return found

    found = run()
    assert [number for number, _ in found] == [0, 1, 2]


def test_a_flow_within_a_flow_takes_data_of_any_number_of_classes(digits: Path, prefect_server: None) -> None:
    """The server refuses parameters of more than half a megabyte."""
    from flows.tasks import index_shards
    from flows.walk import flow
    from flows.workspace import Data

    @flow(name="within", validate_parameters=False)
    def within(data: Data) -> int:
        return len(data.source.index.classes)

    @flow(name="whole", task_runner=ENGINE, validate_parameters=False)
    def run() -> int:
        data = index_shards((f"{digits}/train/*.tar",), (), None, 0.1, 0, 1)
        many = data.source.index.model_copy(update={"classes": [f"class of number {i:020d}" for i in range(20_000)]})
        return within(replace(data, source=replace(data.source, index=many)))

    assert run() == 20_000
