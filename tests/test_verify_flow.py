"""Claims measured again on real digits: by the flow, by the command, and by the workflow that owners copy."""

import json
import logging
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_cli import call, refused

from dd_tasks import card
from dd_tasks.artifact import read_manifest
from dd_tasks.validate import validate
from dd_tasks.verify import Check, Scope
from flows.settings import Settings
from schemas.spec import RunSpec

pytestmark = pytest.mark.usefixtures("prefect_server")
ROOT = Path(__file__).parents[1]
RAISED = 0.3  # of a claim: seeds of three epochs lie far apart
WORKFLOW = ROOT / "infra" / "ci" / "validate-dataset.yml"


@pytest.fixture(scope="module")
def made(quick: dict[str, object], tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Path:
    """A folder with the artifact `dataset`, and `store`, where its run left what it made."""
    from flows.distill import distill_dataset

    root = tmp_path_factory.mktemp("verify")
    spec = RunSpec(**{**quick, "hard_rows": True, "full_epochs": 0})  # type: ignore[arg-type]
    distill_dataset(spec, root / "dataset", Settings(store=str(root / "store"), device="cpu"))
    return root


def verified(folder: Path, store: Path, **scope: Any) -> dict[str, Check]:
    """The checks by the beginning of their names."""
    from flows.verify import verify_dataset

    checks = verify_dataset(str(folder), Scope(**scope), Settings(store=str(store), device="cpu"))
    return {check.name.split(",")[0]: check for check in checks}


def outcomes(checks: dict[str, Check]) -> dict[str, str]:
    return {name: check.outcome for name, check in checks.items()}


def altered(made: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the artifact with another manifest, and a card that claims the same."""
    shutil.copytree(made / "dataset", folder)
    fields, before = json.loads((folder / "retort.json").read_text()), card.claims_table(read_manifest(folder))
    change(fields)
    (folder / "retort.json").write_text(json.dumps(fields))
    text, after = (folder / "README.md").read_text(), card.claims_table(read_manifest(folder))
    (folder / "README.md").write_text(text.replace("\n".join(before), "\n".join(after)))
    return folder


def raise_mean(fields: dict[str, Any]) -> None:
    fields["claims"][0]["mean"] += RAISED


@pytest.fixture(scope="module")
def measured(made: Path, digits: Path) -> dict[str, Check]:
    """The checks of the artifact as it is, in a store of their own."""
    return verified(made / "dataset", made / "verify-store", test=(f"{digits}/test/*.tar",))


def test_an_artifact_keeps_its_promises(measured: dict[str, Check]) -> None:
    assert outcomes(measured) == {
        "valid": "passed", "load_dataset opens images": "passed", "load_dataset opens soft_labels": "passed",
        "distilled": "passed", "random": "skipped", "distilled_hard": "passed", "random_hard": "skipped",
    }  # fmt: skip


def test_a_student_trained_from_the_artifact_is_the_runs_own_to_the_last_image(
    measured: dict[str, Check], made: Path
) -> None:
    scores = [json.loads(entry.read_text())["facts"] for entry in (made / "verify-store" / "score").iterdir()]
    claims = [claim for claim in read_manifest(made / "dataset").claims if claim.row.startswith("distilled")]
    assert sorted(score["accuracy"] for score in scores) == sorted(a for claim in claims for a in claim.accuracies)
    assert {score["images"] for score in scores} == {355}


def test_what_the_run_left_in_the_store_is_not_taken_for_a_measurement(
    made: Path, digits: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scope = {"test": (f"{digits}/test/*.tar",), "quick": True}
    with caplog.at_level(logging.INFO, "flows"):
        first = verified(made / "dataset", made / "store", **scope)
        again = verified(made / "dataset", made / "store", **scope)
    said = [record.getMessage() for record in caplog.records if " again, seed " in record.getMessage()]
    assert [("made in" in line, "found in" in line) for line in said] == [(True, False)] * 2 + [(False, True)] * 2
    assert "(seed 0 alone)" in first["distilled"].message and again["distilled"] == first["distilled"]


def test_a_mean_raised_alone_is_found_without_training(made: Path, digits: Path, tmp_path: Path) -> None:
    raised = altered(made, tmp_path / "raised", raise_mean)
    found = verified(raised, tmp_path / "store", test=(f"{digits}/test/*.tar",))
    assert found["valid: retort.json"].outcome == "failed" and "(distilled" in found["valid: retort.json"].message
    assert found["distilled"].message == "the artifact is not sound" and not (tmp_path / "store" / "score").exists()
    assert set(outcomes(found).values()) == {"failed", "skipped"}


def test_a_strict_verification_fails_its_run_and_names_the_check(made: Path, digits: Path, tmp_path: Path) -> None:
    from dd_tasks.verify import NotAsPromised
    from flows.verify import verify_dataset

    raised = altered(made, tmp_path / "raised", raise_mean)
    scope, settings = Scope(test=(f"{digits}/test/*.tar",)), Settings(store=str(tmp_path / "store"), device="cpu")
    state = verify_dataset(str(raised), scope, settings, strict=True, return_state=True)
    with pytest.raises(
        NotAsPromised, match=r"raised: valid: retort.json: .*claims.0 \(distilled, convnet3_w32\): mean is"
    ):
        state.result()
    assert state.is_failed() and "claims.0 (distilled, convnet3_w32): mean is" in (state.message or "")


def forget_student(fields: dict[str, Any]) -> None:
    del fields["student"]


def only_random(fields: dict[str, Any]) -> None:
    fields["claims"] = [claim for claim in fields["claims"] if claim["row"] == "random"]


@pytest.mark.parametrize(
    ("change", "name", "line"),
    [
        (forget_student, "distilled", "student: the manifest gives nothing; training one again takes batch, rate, "),
        (only_random, "claims", "there is none that can be measured from the artifact alone"),
    ],
)
def test_a_manifest_that_cannot_be_verified_fails(
    made: Path, digits: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], name: str, line: str
) -> None:
    folder = altered(made, tmp_path / "altered", change)
    check = verified(folder, made / "verify-store", test=(f"{digits}/test/*.tar",))[name]
    assert check.outcome == "failed" and check.message.startswith(line)


def test_claims_of_held_out_images_are_measured_on_these(
    quick: dict[str, object], made: Path, digits: Path, tmp_path: Path
) -> None:
    from flows.distill import distill_dataset

    spec = RunSpec(**{**quick, "test": [], "full_epochs": 0, "seeds": 1})  # type: ignore[arg-type]
    manifest = distill_dataset(spec, tmp_path / "dataset", Settings(store=str(made / "store"), device="cpu"))
    found = verified(tmp_path / "dataset", tmp_path / "store", shards=(f"{digits}/train/*.tar",))
    assert {claim.split for claim in manifest.claims} == {"held-out"} and found["distilled"].outcome == "passed"
    assert ": 0.00 points apart" in found["distilled"].message


def test_a_manifest_says_where_its_shards_lay_but_no_path_of_a_machine(made: Path) -> None:
    manifest = read_manifest(made / "dataset")
    assert manifest.test and manifest.source.patterns == manifest.test.patterns == []  # those of the tests are absolute
    assert manifest.student == {
        "batch": 10, "rate": 0.001, "weight_decay": 0.01, "class_weight": 0.025, "ema": 0.99, "tail": 1 / 6,
        "mirror": False, "across": True,
    }  # fmt: skip


# ---- the command


def lie_in_test(fields: dict[str, Any]) -> None:
    fields["test"]["patterns"] = ["test/*.tar"]


def raise_all(fields: dict[str, Any]) -> None:
    lie_in_test(fields)
    raise_mean(fields)
    fields["claims"][0]["accuracies"] = [accuracy + RAISED for accuracy in fields["claims"][0]["accuracies"]]


@pytest.mark.parametrize(
    ("change", "code", "failed"), [(lie_in_test, 0, []), (raise_all, 1, ["distilled, convnet3_w32, 3 epochs"])]
)
def test_the_command_prints_every_check_writes_junit_and_names_a_claim_that_does_not_hold(
    change: Callable[[dict[str, Any]], None], code: int, failed: list[str], made: Path, digits: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder, page = altered(made, tmp_path / "artifact", change), tmp_path / "new" / "junit.xml"
    assert validate(folder) == []
    monkeypatch.chdir(digits)  # the manifest names shards relative to where the command is given
    options = ["--store", made / "verify-store", "--students", "convnet3_w32", "--junit", page]
    assert call(monkeypatch, "verify", folder, *options) == code
    said = capsys.readouterr().out
    assert all(word in said for word in ("load_dataset opens images", "distilled_hard", "skipped", "not measured"))
    (suite,) = ET.parse(page).getroot()
    failures = {case.get("name"): case[0].get("message", "") for case in suite if case[0].tag == "failure"}
    assert list(failures) == failed and all("30.00 points apart" in message for message in failures.values())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["{dataset}", "--students", "convnet"], "retort: unknown student in --students 'convnet'; did you mean"),
        (["{dataset}"], "retort: retort.json does not say where the test images lie; give --test (test-0000.tar)"),
        (["{dataset}", "--test", "/no/*.tar"], "retort: --test: no shard matches '/no/*.tar'"),
        (["{dataset}", "--shards", "/no/*.tar"], "retort: --shards: the claims are of test images; give their"),
        (["{dataset}", "--test", "{test}", "--device", "tpu"], "retort: device 'tpu' is not here"),
        (["/no/folder/here"], "retort: no folder '/no/folder/here', and no dataset '/no/folder/here' on the Hub: "),
        (["no-org/no-name@v1"], "retort: no folder 'no-org/no-name@v1', and no dataset 'no-org/no-name@v1' on the Hub"),
    ],
)  # fmt: skip
def test_what_cannot_be_verified_is_one_line(
    arguments: list[str], line: str, made: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    places = {"dataset": made / "dataset", "test": f"{digits}/test/*.tar"}
    given = [argument.format(**places) for argument in arguments]
    said = refused(capsys, monkeypatch, "verify", *given, "--store", tmp_path / "store")
    assert said.startswith(line), said


def test_other_test_images_are_named_with_those_expected(made: Path, digits: Path, tmp_path: Path) -> None:
    from dd_tasks.errors import InputError

    manifest = read_manifest(made / "dataset")
    with pytest.raises(InputError) as refusal:
        verified(made / "dataset", tmp_path / "store", test=(f"{digits}/train/*.tar",))
    assert manifest.test and manifest.test.digest in str(refusal.value) and manifest.source.digest in str(refusal.value)


# ---- the workflow


def workflow() -> dict[Any, Any]:
    return yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))


def steps() -> list[dict[str, Any]]:
    (job,) = workflow()["jobs"].values()
    return job["steps"]


def test_the_workflow_has_the_shape_that_github_reads() -> None:
    fields = workflow()
    (job,) = fields["jobs"].values()
    assert set(fields[True]) == {"push", "pull_request", "schedule", "workflow_dispatch"}  # YAML 1.1 reads `on` so
    assert fields["permissions"] == {"contents": "read"} and job["runs-on"] and job["timeout-minutes"]
    assert all(("uses" in step) != ("run" in step) for step in steps())
    assert all("@" in step["uses"] for step in steps() if "uses" in step)
    assert not [step for step in steps() if "${{" in step.get("run", "")], "values reach a shell as variables alone"
    (keeps,) = [step for step in steps() if step.get("uses", "").startswith("actions/upload-artifact")]
    assert keeps["if"] == "always()" and keeps["with"]["path"] == "${{ runner.temp }}/results"


def test_the_workflows_steps_verify_a_dataset(made: Path, digits: Path, tmp_path: Path) -> None:
    from prefect.settings import PREFECT_API_URL

    repository = shutil.copytree(made / "dataset", tmp_path / "repository")
    runs = {step["name"]: step["run"] for step in steps() if "run" in step}
    assert runs.pop("Install").split() == ["python", "-m", "pip", "install", '"$RETORT"']
    assert list(runs) == ["Validate", "Verify"]
    ours = {"DATASET": workflow()["env"]["DATASET"], "TEST_SHARDS": f"{digits}/test/*.tar", "EXTENT": "--quick"}
    assert set(ours) | {"RETORT"} == set(workflow()["env"])
    where = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    here = {**where, "RUNNER_TEMP": str(tmp_path / "temp"), "PREFECT_API_URL": str(PREFECT_API_URL.value())}
    for name, script in runs.items():
        ran = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script], cwd=repository,
            env={**os.environ, **ours, **here}, capture_output=True, text=True,
        )  # fmt: skip
        assert ran.returncode == 0, f"{name}: {ran.stdout}{ran.stderr}"
    (suite,) = ET.parse(tmp_path / "temp" / "results" / "junit.xml").getroot()
    assert suite.get("failures") == "0" and int(suite.get("tests", 0)) == 7
    assert sorted(path.name for path in repository.iterdir()) == sorted(p.name for p in (made / "dataset").iterdir())
