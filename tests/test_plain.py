"""Runs that no Prefect server looks at: the same results, tries and failures as with one, and no server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE, temporary_settings

from dd_tasks.errors import InputError
from flows import stages
from flows.engines import EngineError, finished
from flows.plain import is_looked_at, is_plain
from flows.settings import Part, Settings
from flows.stages import stage
from flows.walk import flow
from schemas.manifest import Manifest
from schemas.spec import RunSpec


@pytest.fixture
def no_server() -> Iterator[None]:
    """No Prefect server is named, and none may be started."""
    with temporary_settings({PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False}, restore_defaults={PREFECT_API_URL}):
        yield


def distil(quick: dict[str, Any], root: Path) -> Manifest:
    from flows.distill import distill_dataset

    spec = RunSpec(**{**quick, "seeds": 1, "bytes_row": True})
    return distill_dataset(spec, root / "dataset", Settings(store=str(root / "store"), device="cpu"))


@pytest.fixture(scope="module")
def looked_at(quick: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Manifest:
    return distil(quick, tmp_path_factory.mktemp("looked"))


def test_a_run_without_a_server_makes_the_same_as_with_one(
    quick: dict[str, Any], looked_at: Manifest, tmp_path: Path, no_server: None
) -> None:
    with pytest.raises(ValueError, match="PREFECT_API_URL"):
        get_client()
    alone = distil(quick, tmp_path)
    made = [{name: f.sha256 for name, f in m.files.items() if name.endswith("parquet")} for m in (alone, looked_at)]
    assert made[0] == made[1]
    assert [claim.accuracies for claim in alone.claims] == [claim.accuracies for claim in looked_at.claims]


@pytest.mark.parametrize(
    ("part", "error", "tries"),
    [
        (None, ConnectionError("gone"), 3),
        ("students", TimeoutError("late"), 3),
        ("students", RuntimeError("odd"), 1),
        ("panels", RuntimeError("out of memory\nand more"), 3),
        ("panels", InputError("bad"), 1),
    ],
)
def test_a_stage_is_tried_as_often_as_with_a_server(
    part: Part | None, error: Exception, tries: int, no_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    @stage("fails", part)
    def fails(times: int) -> int:
        tried.append(times)
        if len(tried) <= times:
            raise error
        return len(tried)

    @flow(name="run")
    def run(times: int) -> int:
        return fails(times)

    monkeypatch.setattr(stages, "PAUSES", (0, 0))
    with pytest.raises(type(error), match=str(error).splitlines()[0]):
        run(3)
    assert len(tried) == tries
    if tries > 1:
        tried.clear()
        assert run(2) == 3


def test_what_is_submitted_after_a_failure_is_made_too(no_server: None) -> None:
    made = []

    @stage("make {number}")
    def make(number: int) -> int:
        made.append(1 / number)
        return number

    @flow(name="run")
    def run() -> tuple[int, ...]:
        return finished([(f"part {number}", make.submit(number)) for number in (1, 0, 2)], "parts")

    with pytest.raises(EngineError, match=r"^part 0: failed: division by zero; what the others made is kept"):
        run()
    assert made == [1, 0.5]


def test_parameters_are_checked_and_converted_as_with_a_server(no_server: None) -> None:
    @flow(name="run")
    def run(out: Path, times: int = 1) -> tuple[Path, int, bool]:
        return out, times, is_plain()

    assert run("folder", times="2") == (Path("folder"), 2, True)  # type: ignore[arg-type, comparison-overlap]
    with pytest.raises(Exception, match="times"):
        run("folder", times="two")  # type: ignore[arg-type]
    assert not is_plain()


@pytest.mark.parametrize(
    ("url", "engine", "looked"),
    [
        (None, "local", False),
        ("http://127.0.0.1:1/api", "local", True),
        (None, "ray", True),
        ("http://127.0.0.1:1/api", "pool", True),
    ],
)
def test_a_server_is_for_those_who_named_one_and_for_workers(url: str | None, engine: str, looked: bool) -> None:
    named = {PREFECT_API_URL: url} if url else {}
    with temporary_settings(named, restore_defaults=set() if url else {PREFECT_API_URL}):
        assert is_looked_at({"settings": Settings(engine=engine)}) is looked
        assert is_looked_at({}) is bool(url)
