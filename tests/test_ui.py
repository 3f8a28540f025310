"""Prefect's pages of a run, as a browser shows them: a server that serves them, the command line, Chromium."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import Tab, browsing, chromium
from stack import free_port
from test_seeing import awaited

from dd_tasks.artifact import read_manifest
from dd_tasks.claims import result_rows

NAME = "digits & <b>more</b>"  # of a dataset, with what a page might take for markup
STARTING = 600.0  # seconds


@dataclass(frozen=True)
class Served:
    """A Prefect server, and one finished run on it."""

    address: str
    run: str
    artifact: Path

    @property
    def page(self) -> str:
        return f"{self.address}/runs/flow-run/{self.run}"


def ask(address: str, path: str, **body: Any) -> Any:
    """The server's answer to a POST of JSON."""
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/api/{path}", json.dumps(body).encode(), head)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=600) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server with its pages, on a database of its own."""
    chromium()
    home, port = tmp_path_factory.mktemp("prefect"), free_port()
    url = f"http://127.0.0.1:{port}"
    ours = {"PREFECT_HOME": str(home), "PREFECT_SERVER_UI_API_URL": f"{url}/api"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    said = home / "said.txt"
    with said.open("w") as file:
        server = subprocess.Popen(command, env=os.environ | ours, stdout=file, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + STARTING
        while not _answers(url):
            assert server.poll() is None and time.monotonic() < end, said.read_text()
            time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=600)


def _answers(url: str) -> bool:
    try:
        return bool(ask(url, "flow_runs/count") == 0)
    except OSError:
        return False


@pytest.fixture(scope="module")
def served(address: str, quick: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Served:
    root = tmp_path_factory.mktemp("served")
    (root / "spec.yaml").write_text(yaml.safe_dump({**quick, "name": NAME}))
    code = "from flows.cli import main; main()"
    options = ["--out", root / "dataset", "--store", root / "store", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", code, "run", root / "spec.yaml", *options],
        env=os.environ | {"PREFECT_API_URL": f"{address}/api"}, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "loss" not in done.stderr and "recover panel" not in done.stderr  # the terminal has one line a panel
    assert len(re.findall(r"panel \d .* made in", done.stderr)) == 2
    flows = {"name": {"any_": ["distill-dataset"]}}
    (run,) = ask(address, "flow_runs/filter", flows=flows)
    return Served(address, run["id"], root / "dataset")


@pytest.fixture(scope="module")
def tab(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browsing(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


def test_the_page_of_a_run_shows_the_progress_of_panels_and_leads_to_the_table_of_results(
    served: Served, tab: Tab
) -> None:
    manifest = read_manifest(served.artifact)
    tab.open(served.page)
    tab.wait("Completed", "distill-dataset", "recover panel 1: panel 1 (slots 10..19): step 10 of 10, loss")
    tab.click("Artifacts")
    tab.wait("panels: 2 of 2 done", "students: 6 of 6 done", f"{NAME}: top-1 of students on test images, last epoch")
    tab.click("panels")
    tab.wait("Progress: 100%")
    tab.open(served.page)
    tab.wait("Artifacts")
    tab.click("Artifacts")
    tab.click("digits-b-more-b-claims")
    rows = result_rows(manifest.claims)
    assert len(rows) == 3
    tab.wait("images student epochs n mean ± std, % seconds", *(" ".join(row) for row in rows))


def test_the_preview_is_a_picture_and_the_name_of_the_dataset_is_text(served: Served, tab: Tab) -> None:
    artifacts = ask(served.address, "artifacts/filter", flow_runs={"id": {"any_": [served.run]}})
    ids = {artifact["key"]: artifact["id"] for artifact in artifacts}
    tab.open(f"{served.address}/artifacts/artifact/{ids['digits-b-more-b-preview']}")
    tab.wait(NAME, "real ones above, distilled ones below", "Created")
    wide = int.from_bytes((served.artifact / "assets" / "preview.png").read_bytes()[16:20], "big")
    assert tab.value("[...document.images].map(image => image.naturalWidth)") == [wide]
    tab.open(f"{served.address}/artifacts/artifact/{ids['digits-b-more-b-report']}")
    tab.wait(str(served.artifact / "assets" / "report.html"))
    assert tab.value("Boolean(document.querySelector('a[href$=\"assets/report.html\"]'))")


def test_the_page_of_a_panel_has_its_own_lines_alone(served: Served, tab: Tab) -> None:
    asked = {"flow_runs": {"id": {"any_": [served.run]}}, "task_runs": {"name": {"any_": ["recover panel 1"]}}}
    (run,) = awaited(lambda: ask(served.address, "task_runs/filter", **asked))
    tab.open(f"{served.address}/runs/task-run/{run['id']}")
    text = tab.wait("panel 1 (slots 10..19): step 10 of 10, loss", "panel 1 (slots 10..19): made in", "Finished in")
    assert "panel 0" not in text and "labels of" not in text
