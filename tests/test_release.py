"""`retort publish` and its flow: what a user sees, and where the token is not."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_server import client_environment
from hub_state import WRITE, Fault, Hub
from sample import draft, tiny_canvas, tiny_labels, tiny_nearest
from test_cli import call, refused
from test_seeing import awaited

from dd_tasks import artifact
from dd_tasks import hub as client
from dd_tasks.errors import InputError
from flows.settings import Settings
from schemas.release import ReleaseSpec
from schemas.spec import RunSpec

NAME, ROOT = "org/name", Path(__file__).parents[1]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    artifact.write(
        tmp_path / "out", tiny_canvas(), tiny_labels(), draft(), {"preview.png": b"picture"}, nearest=tiny_nearest()
    )
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ([NAME], "retort: HF_TOKEN of the environment: is empty"),
        ([NAME, "--tag", "v 1"], "retort: --tag 'v 1': expected a name of letters"),
        (["name"], "retort: target 'name': expected ORG/NAME"),
        ([NAME, "--pr", "--tag", "v1"], "retort: --pr and --tag: a pull request is to main, and is not tagged"),
        ([NAME, "--endpoint", "hub.example"], "retort: --endpoint 'hub.example': expected http:// or https://"),
    ],
)
def test_what_cannot_be_published_is_one_line_and_starts_nothing(
    options: list[str], line: str, out: Path, hub: Hub, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert refused(capsys, monkeypatch, "publish", out, *options).startswith(line)
    assert not hub.calls


def test_a_folder_that_is_no_artifact_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = refused(capsys, monkeypatch, "publish", tmp_path, NAME)
    assert line == f"retort: {tmp_path} is not an artifact: cannot read retort.json (No such file or directory)"


def kept_by_prefect() -> str:
    """All that Prefect stores of the latest runs, as text."""
    from prefect import get_client
    from prefect.client.schemas.sorting import ArtifactSort, FlowRunSort, LogSort, TaskRunSort

    with get_client(sync_client=True) as prefect:
        found = [
            *prefect.read_flow_runs(sort=FlowRunSort.START_TIME_DESC),
            *prefect.read_task_runs(sort=TaskRunSort.EXPECTED_START_TIME_DESC),
            *prefect.read_logs(sort=LogSort.TIMESTAMP_DESC),
            *prefect.read_artifacts(sort=ArtifactSort.CREATED_DESC),
        ]
        return "\n".join(each.model_dump_json() for each in found)


KEPT = ("release-dataset", NAME, "read back", "503 Service Unavailable")


@pytest.mark.usefixtures("prefect_server")
def test_publish_prints_the_release_and_keeps_the_token_to_itself(
    out: Path, hub: Hub, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("DEBUG")
    monkeypatch.setenv("HF_TOKEN", WRITE)
    monkeypatch.setattr(client, "PAUSES", (0.01,))
    hub.fault = Fault("500", 3, 3)
    assert call(monkeypatch, "publish", out, NAME, "--tag", "v1", "--verbose") == 0
    head = hub.repositories["datasets", NAME].oid("v1")
    printed, shown = capfd.readouterr()
    assert printed.startswith("- first release\n- resnet_18 on the distilled images, 3 epochs, test: 51.00")
    url = f"{os.environ['HF_ENDPOINT']}/datasets/{NAME}/tree/{head}"
    assert printed.endswith(f"\nrevision: {head}\nurl: {url}\ntag: v1\n")
    assert "org/name: list refs: Server error '500 Internal Server Error'" in shown and "; again in 0.01 s" in shown
    assert call(monkeypatch, "publish", out, NAME, "--tag", "v1") == 0
    assert capfd.readouterr().out.startswith(f"{NAME} holds this artifact already\nrevision: {head}\n")

    hub.fault = Fault("503", 1, 9)
    failure = call(monkeypatch, "publish", out, NAME), *capfd.readouterr()
    assert failure[0] == 2 and "retort: org/name: look: Server error '503 Service Unavailable' for url" in failure[2]
    stored = awaited(lambda: (found := kept_by_prefect()) and all(text in found for text in KEPT) and found)
    for text in (printed, shown, str(failure), caplog.text, stored):
        assert text and WRITE not in text


@pytest.mark.usefixtures("prefect_server")
def test_the_token_may_come_from_a_secret_block(
    out: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.blocks.system import Secret

    Secret(value=WRITE).save("hub-token")
    assert call(monkeypatch, "publish", out, NAME, "--token-block", "hub-token") == 0
    assert ("datasets", NAME) in hub.repositories and WRITE not in kept_by_prefect()
    line = refused(capsys, monkeypatch, "publish", out, NAME, "--token-block", "other")
    assert line == "retort: --token-block 'other': Prefect has no Secret block of that name"


@pytest.mark.usefixtures("prefect_server")
def test_a_run_with_a_release_publishes_and_again_changes_nothing(
    hub: Hub, quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.distill import distill_dataset

    spec, out = RunSpec(**quick | {"full_epochs": 0}), tmp_path / "out"
    settings, release = Settings(store=str(tmp_path / "store"), device="cpu"), ReleaseSpec(target=NAME)
    with pytest.raises(InputError, match="HF_TOKEN of the environment: is empty"):
        distill_dataset(spec, out, settings, release=release)
    assert not (tmp_path / "store").exists(), "a token that is missing is noticed before any work"

    monkeypatch.setenv("HF_TOKEN", WRITE)
    distill_dataset(spec, out, settings, release=release)
    repository = hub.repositories["datasets", NAME]
    first, commits = repository.oid("main"), len(repository.commits)
    assert repository.commits[first or ""].files["retort.json"].content == (out / "retort.json").read_bytes()
    distill_dataset(spec, out, settings, release=release)
    assert (repository.oid("main"), len(repository.commits)) == (first, commits)


@pytest.mark.usefixtures("prefect_server")
def test_an_endpoint_is_another_hub(out: Path, hub: Hub, tmp_path: Path) -> None:
    """In a process of its own, which knows no Hub but by the option."""
    from prefect.settings import PREFECT_API_URL

    url = os.environ["HF_ENDPOINT"]
    environment = os.environ | client_environment(url, str(tmp_path / "home"))
    environment |= {"HF_TOKEN": WRITE, "PREFECT_API_URL": PREFECT_API_URL.value(), "PYTHONPATH": str(ROOT)}
    del environment["HF_ENDPOINT"]
    command = ["publish", str(out), NAME, "--private", "--branch", "try", "--tag", "v1", "--endpoint", url]
    done = subprocess.run(
        [sys.executable, "-c", "from flows.cli import main; main()", *command], env=environment, cwd=tmp_path,
        capture_output=True, text=True,
    )  # fmt: skip
    made = hub.repositories["datasets", NAME]
    assert done.returncode == 0 and f"{url}/datasets/{NAME}/tree/{made.oid('v1')}" in done.stdout, done.stderr
    assert made.private and made.oid("v1") == made.oid("try") != made.oid("main")
    assert "%|" not in done.stderr, "a progress bar where there is no terminal"
