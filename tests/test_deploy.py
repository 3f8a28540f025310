"""Deployments: what Prefect's forms show, what they send, and one machine that serves them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_cli import refused

from dd_tasks.verify import Scope
from flows.environment import PREFECT_DEFAULTS
from flows.settings import NIGHTLY, WEEKLY, Distilling, Settings, Verifying
from schemas.release import ReleaseSpec
from schemas.spec import RunSpec

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "infra" / "prefect.yaml"
SPEC = {"preset": "e2d", "shards": ["s3://bucket/train-*.tar"], "ipc": 3, "set": {"labeller.epochs": "80"}}
FLOWS = {
    "distill-dataset": "flows.distill.distill_dataset",
    "verify-dataset": "flows.verify.verify_dataset",
    "release-dataset": "flows.release.release_dataset",
}


def flow(name: str) -> Any:
    from prefect.flows import load_flow_from_entrypoint

    return load_flow_from_entrypoint(FLOWS[name], use_placeholder_flow=False)


# ---- the form


def test_the_form_describes_every_field_in_the_order_of_the_specification() -> None:
    schema = flow("distill-dataset").parameters.model_dump()
    for model in (RunSpec, ReleaseSpec, Settings):
        shown = schema["definitions"][model.__name__]["properties"]
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        assert sorted(shown, key=lambda name: shown[name]["position"]) == list(fields)
        assert all(shown[name]["description"] == fields[name].description for name in shown)
    assert schema["definitions"]["RunSpec"]["properties"]["codec"]["enum"] == ["compact", "exact"]
    assert schema["definitions"]["RunSpec"]["required"] == ["preset", "shards", "ipc"]
    assert schema["properties"]["release"]["description"] == "where to publish the artifact"
    assert schema["required"] == ["spec", "out"]


@pytest.mark.parametrize(
    ("name", "sent", "meant"),
    [
        (
            "distill-dataset",
            {"spec": SPEC, "out": "runs/a", "release": {"target": "org/name"}, "settings": {"store": "s3://b/s"}},
            {
                "spec": RunSpec(**SPEC), "out": Path("runs/a"), "release": ReleaseSpec(target="org/name"),
                "settings": Settings(store="s3://b/s"),
            },
        ),
        ("distill-dataset", {"spec": SPEC, "out": "a", "release": None}, {"release": None, "settings": Settings()}),
        (
            "verify-dataset",
            {"target": "org/name", "scope": {"quick": True, "students": ["convnet3"]}, "strict": True},
            {"scope": Scope(("convnet3",), quick=True), "strict": True},
        ),
        ("verify-dataset", {"target": "org/name"}, {"scope": Scope(), "settings": Settings(store="runs/verify-store")}),
        (
            "release-dataset", {"folder": "runs/a", "spec": {"target": "org/name", "tag": "v1"}},
            {"folder": Path("runs/a"), "spec": ReleaseSpec(target="org/name", tag="v1")},
        ),
    ],
)  # fmt: skip
def test_what_a_form_sends_is_what_the_flow_gets(name: str, sent: dict[str, Any], meant: dict[str, Any]) -> None:
    found = flow(name).validate_parameters(json.loads(json.dumps(sent)))
    assert {key: found[key] for key in meant} == meant


@pytest.mark.usefixtures("prefect_server")
def test_a_value_that_does_not_fit_is_refused_before_there_is_a_run() -> None:
    from prefect import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    from flows import deploy

    release = ReleaseSpec(target="org/name", tag="v1")
    distilling = deploy.distilling(Distilling(RunSpec(**SPEC), Path("runs/a"), release), Settings())
    verifying = deploy.verifying(Verifying("org/name"), Settings())
    ids = {each.flow_name: each.apply() for each in (distilling, verifying)}
    bad = [
        ("distill-dataset", {"spec": SPEC | {"ipc": 0}}, "0 is less than the minimum of 1"),
        ("distill-dataset", {"spec": SPEC | {"shards": []}}, "[] should be non-empty"),
        ("distill-dataset", {"spec": SPEC | {"codec": "zip"}}, "'zip' is not one of"),
        ("distill-dataset", {"spec": SPEC | {"sides": 32}}, "'sides' was unexpected"),
        ("distill-dataset", {"release": {"tag": "v1"}}, "'target' is a required property"),
        ("verify-dataset", {"scope": {"quick": "slow"}}, "'slow' is not of type 'boolean'"),
    ]
    with get_client(sync_client=True) as client:
        for name, parameters, reason in bad:
            with pytest.raises(PrefectHTTPStatusError) as refusal:
                client.create_flow_run_from_deployment(ids[name], parameters=parameters)
            assert refusal.value.response.status_code == 409 and reason in refusal.value.response.text
        begun = [run for run in client.read_flow_runs() if run.deployment_id in ids.values()]
        assert all(run.auto_scheduled for run in begun)
        taken = client.create_flow_run_from_deployment(ids["distill-dataset"])
        client.delete_flow_run(taken.id)
        for found in ids.values():
            client.delete_deployment(found)
    assert flow("distill-dataset").validate_parameters(taken.parameters)["release"] == release
    assert flow("distill-dataset").validate_parameters(taken.parameters)["spec"] == RunSpec(**SPEC)


# ---- infra/prefect.yaml


def described() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def test_the_deployments_of_a_pool_are_weekly_nightly_and_on_demand() -> None:
    found = {
        (each["entrypoint"], each["name"]): [schedule["cron"] for schedule in each.get("schedules", [])]
        for each in described()["deployments"]
    }
    assert found == {
        (FLOWS["distill-dataset"], "on-demand"): [],
        (FLOWS["distill-dataset"], "weekly"): [WEEKLY],
        (FLOWS["verify-dataset"], "nightly"): [NIGHTLY],
        (FLOWS["release-dataset"], "on-demand"): [],
    }
    variables = described()["definitions"]["pool"]["job_variables"]["env"]
    assert variables and variables.items() <= PREFECT_DEFAULTS.items()


@pytest.mark.parametrize("described", described()["deployments"], ids=lambda each: each["entrypoint"] + each["name"])
def test_the_parameters_in_the_file_fit_the_flow(described: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import jsonschema
    from prefect.utilities.templating import apply_values

    places = {"RETORT_STORE": "s3://b/store", "RETORT_SHARDS": "s3://b/train-*.tar", "RETORT_DATASET": "org/name"}
    for name, value in places.items():
        monkeypatch.setenv(name, value)
    by_entrypoint = {entrypoint: name for name, entrypoint in FLOWS.items()}
    schema = flow(by_entrypoint[described["entrypoint"]]).parameters.model_dump()
    parameters = apply_values(described.get("parameters", {}), os.environ)
    jsonschema.validate(parameters, schema if described.get("schedules") else {**schema, "required": []})


# ---- retort serve


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--every", "0 0 * * *"], "retort: --every '0 0 * * *': needs --distill SPEC.yaml"),
        (["--publish", "org/name"], "retort: --publish 'org/name': needs --distill SPEC.yaml"),
        (["--verify-every", "0 0 * * *"], "retort: --verify-every '0 0 * * *': needs --verify ORG/NAME"),
        (["--verify", "org/name", "--verify-every", "daily"], "retort: --verify-every 'daily': expected five fields"),
        (["--distill", "{spec}", "--every", "61 * * * *"], "retort: --every '61 * * * *': expected five fields"),
        (["--distill", "{spec}", "--publish", "name"], "retort: target 'name': expected ORG/NAME"),
        (["--distill", "{spec}", "--publish", "org/name"], "retort: HF_TOKEN of the environment: is empty"),
        (["--distill", "none.yaml"], "retort: cannot read none.yaml: No such file"),
        ([], "retort: PREFECT_API_URL http://127.0.0.1:9/api: no Prefect server answers; start one by"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    options: list[str], line: str, quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from prefect.settings import PREFECT_API_URL, temporary_settings

    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(quick), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        assert refused(capsys, monkeypatch, "serve", *(option.format(spec=spec) for option in options)).startswith(line)


def test_without_a_server_nothing_is_served(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.chdir(tmp_path)
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        line = refused(capsys, monkeypatch, "serve")
    assert line.startswith("retort: PREFECT_API_URL is not set: there is no Prefect server to serve; start one by")


@pytest.mark.usefixtures("prefect_server")
def test_one_machine_serves_the_flows_until_it_is_told_to_stop(quick: dict[str, Any], tmp_path: Path) -> None:
    from prefect import get_client
    from prefect.settings import PREFECT_API_URL

    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(quick), encoding="utf-8")
    distilled = ["--distill", "spec.yaml", "--out", "dataset", "--every", "30 4 1 1 *"]
    options = [*distilled, "--publish", f"file://{tmp_path}/published", "--verify", "org/name"]
    serving = subprocess.Popen(
        [sys.executable, "-c", "from flows.cli import main; main()", "serve", *options], cwd=tmp_path, text=True,
        env={**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value()), "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with get_client(sync_client=True) as client:
        assert serving.stdout and serving.stdout.readline().startswith(str(PREFECT_API_URL.value()))
        assert [serving.stdout.readline() for _ in range(5)] == [
            "- distill-dataset/on-demand: on demand\n", "- verify-dataset/on-demand: on demand\n",
            "- release-dataset/on-demand: on demand\n", "- distill-dataset/scheduled: 30 4 1 1 *\n",
            "- verify-dataset/scheduled: 0 2 * * *\n",
        ]  # fmt: skip
        verify = wait(lambda: of_name(client, "verify-dataset/on-demand"), serving)
        run = client.create_flow_run_from_deployment(verify.id, parameters={"target": "/no/folder", "strict": True})
        ended = wait(lambda: (found := client.read_flow_run(run.id)).state.is_final() and found, serving)
        assert ended.state.name == "Failed" and "no folder '/no/folder'" in ended.state.message
        scheduled = wait(lambda: of_name(client, "distill-dataset/scheduled"), serving)
        assert [(each.schedule.cron, each.active) for each in scheduled.schedules] == [("30 4 1 1 *", True)]
        assert scheduled.parameters["spec"]["set"] == quick["set"] and scheduled.parameters["out"] == "dataset"
        serving.send_signal(signal.SIGTERM)
        _, complaints = serving.communicate(timeout=600)
        assert serving.returncode == 0 and "Traceback" not in complaints, complaints
        assert of_name(client, "distill-dataset/scheduled").paused, complaints


def of_name(client: Any, name: str) -> Any:
    from prefect.exceptions import ObjectNotFound

    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


def wait(asked: Any, serving: subprocess.Popen[str]) -> Any:
    """The first answer that is not empty, of a server that is served."""
    while not (answer := asked()):
        assert serving.poll() is None, serving.communicate()
        time.sleep(0.2)
    return answer
