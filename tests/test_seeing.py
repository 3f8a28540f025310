"""What Prefect keeps of a run for its pages: progress while it runs, tables, and lines by their stage."""

import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prefect import flow, get_client
from prefect.artifacts import Artifact, create_markdown_artifact
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.logging.handlers import APILogHandler
from prefect.runtime import flow_run

from dd_tasks.verify import Check
from flows import seeing
from flows.engines import ENGINE
from flows.logs import OURS, RunPage, reach_the_page
from flows.seeing import follow, key_of, show_checks, show_release, shown
from flows.stages import stage
from schemas.release import Released

log = logging.getLogger("dd_tasks.example")
DIRTY = "<img src=x onerror=alert(1)> [here](javascript:x) | `code`\n# head"
LONG = 600.0  # seconds until what a server should keep counts as missing

pytestmark = pytest.mark.usefixtures("prefect_server")


def kept(key: str) -> Any:
    """The latest artifact of that key."""
    found = Artifact.get(key, _sync=True)
    assert found is not None, key
    return found


def awaited(found: Callable[[], Any]) -> Any:
    """What is found, once it is true."""
    end = time.monotonic() + LONG
    while not (answer := found()):
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.05)
    return answer


@pytest.fixture
def fresh() -> Iterator[None]:
    """Our loggers as a worker has them: no level, and the handler that Prefect gives them."""
    before = [(logger, logger.level, logger.handlers[:]) for logger in map(logging.getLogger, OURS)]
    for logger, _, _ in before:
        logger.setLevel(logging.NOTSET)
        logger.handlers[:] = [APILogHandler()]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("panels",), "panels"),
        (("CIFAR-10 (v2)", "claims"), "cifar-10-v2-claims"),
        (("checks of", "ORG/Name@v1"), "checks-of-org-name-v1"),
        (("Blüten & <b>", "report"), "bl-ten-b-report"),
    ],
)
def test_keys_are_lower_case_with_dashes(words: tuple[str, ...], key: str) -> None:
    assert key_of(*words) == key and re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", key)


def test_progress_is_on_the_page_while_panels_run() -> None:
    seen = []

    @stage("recover panel {panel}")
    def recover(panel: int) -> None:
        if panel:  # the second ends once the page says that the first has
            seen.append(awaited(lambda: (page := kept("panels")).description == "panels: 1 of 2 done" and page).data)

    @flow(task_runner=ENGINE)
    def run() -> None:
        follow("panels", [recover.submit(panel) for panel in range(2)])

    run()
    assert seen == [50] and (kept("panels").data, kept("panels").description) == (100, "panels: 2 of 2 done")


def test_a_panel_that_fails_is_told_and_left_to_the_flow() -> None:
    @stage("recover panel {panel}")
    def recover(panel: int) -> int:
        return 1 // panel

    @flow(task_runner=ENGINE)
    def run() -> list[bool]:
        begun = [recover.submit(panel) for panel in (0, 1, 1, 1)]
        follow("lots of panels", begun)
        return [future.state.is_completed() for future in begun]

    assert run() == [False, True, True, True]
    page = kept("lots-of-panels")
    assert (page.data, page.description) == (75, "lots of panels: 3 of 4 done, 1 failed")


def test_a_lone_stage_has_no_progress_and_many_short_ones_are_told_of_now_and_then() -> None:
    @stage("recover panel {panel}")
    def recover(panel: int) -> None:
        return None

    @flow(task_runner=ENGINE)
    def run() -> None:
        follow("a lone one", [recover.submit(0)])
        follow("many short ones", [recover.submit(panel) for panel in range(40)])

    told = []
    with pytest.MonkeyPatch.context() as patch:
        update = seeing.update_progress_artifact
        patch.setattr(seeing, "update_progress_artifact", lambda *a: told.append(a[1]) or update(*a))
        patch.setattr(seeing, "RARELY", 10**9)  # of an update: longer than these take
        run()
    assert Artifact.get("a-lone-one", _sync=True) is None
    assert told == [100 / 40, 100] and kept("many-short-ones").data == 100


def test_what_the_server_refuses_costs_a_line_and_not_the_run(caplog: pytest.LogCaptureFixture) -> None:
    @stage("recover panel {panel}")
    def recover(panel: int) -> None:
        if panel == 0:
            page = awaited(lambda: Artifact.get("short", _sync=True))
            with get_client(sync_client=True) as client:
                client.delete_artifact(page.id)

    @flow(task_runner=ENGINE)
    def run() -> str:
        follow("short", [recover.submit(panel) for panel in range(3)])
        assert shown("a picture", create_markdown_artifact, "text", "Not A Key") is None
        return "done"

    with caplog.at_level(logging.WARNING, "flows"):
        assert run() == "done"
    lines = [record.getMessage() for record in caplog.records if record.name == "flows.seeing"]
    assert [line.split(":")[0] for line in lines] == [
        f"the run's page goes without {w}" for w in ("short", "a picture")
    ]
    assert "404" in lines[0] and not any("\n" in line for line in lines)


def test_checks_are_a_table_in_which_nothing_of_the_data_is_markup() -> None:
    checks = (Check("valid", "passed", "all", 0.4), Check("distilled", "failed", DIRTY, 12.0))

    @flow
    def run() -> tuple[Check, ...]:
        return show_checks("ORG/name_x", checks)

    assert run() == checks
    page = kept("checks-of-org-name-x")
    assert page.description == "ORG/name\\_x: 1 passed, 1 failed, 0 skipped"
    lines = page.data.splitlines()
    assert len(lines) == 4 and lines[2] == "| valid | passed | all | 0 |" and lines[3].endswith("| 12 |")
    assert "<" not in page.data and not re.search(r"(?<!\\)[\[`#]|(?<!\\)\|(?! |$)", lines[3])


def test_a_release_shows_its_changes_and_where_it_is() -> None:
    @flow
    def run(**changes: Any) -> Released:
        usual = {"target": "ORG/name", "revision": "0123abc", "url": "http://hub/datasets/ORG/name", "changed": True}
        return show_release(Released(**{**usual, "changelog": ["first release", DIRTY], "tag": "v1", **changes}))

    run()
    first, _, *changes = kept("release-of-org-name").data.splitlines()
    assert first == "[ORG/name](<http://hub/datasets/ORG/name>), revision 0123abc, tag v1"
    assert changes[0] == "- first release" and len(changes) == 2 and "<" not in changes[1]
    run(changelog=[], tag=None, pull_request="http://hub/datasets/ORG/name/discussions/1")
    lines = kept("release-of-org-name").data.splitlines()
    assert lines[2:] == ["Nothing changed."] and "(<http://hub/datasets/ORG/name/discussions/1>)" in lines[0]


def test_a_line_made_in_a_stage_is_on_its_page_once_and_says_which_stage(fresh: None) -> None:
    @stage("recover panel {panel}")
    def recover(panel: int) -> None:
        log.debug("step %d of %d", 5, 10)

    @flow(task_runner=ENGINE)
    def run() -> str:
        for panel in range(2):
            recover(panel)
        logging.getLogger("flows.example").info("between stages")
        return str(flow_run.id)

    ran = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run()]))

    def read() -> list[Any]:
        with get_client(sync_client=True) as client:
            found = client.read_logs(log_filter=ran)
        ended = [line for line in found if line.name == "prefect.flow_runs" and line.message.startswith("Finished in")]
        return [line for line in found if line.name.endswith("example")] if ended else []

    lines = awaited(read)
    assert sorted((line.message, line.task_run_id is not None) for line in lines) == [
        ("between stages", False),
        ("recover panel 0: step 5 of 10", True),
        ("recover panel 1: step 5 of 10", True),
    ]


def test_a_line_made_outside_of_runs_goes_to_no_page(fresh: None, recwarn: pytest.WarningsRecorder) -> None:
    reach_the_page()
    reach_the_page()
    for name in OURS:
        (handler,) = logging.getLogger(name).handlers
        assert isinstance(handler, RunPage)
        logging.getLogger(name).warning("nowhere")
    assert not [warning for warning in recwarn if "flow run" in str(warning.message)]
