"""`retort plan` and `retort calibrate`, called as a user does."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from test_cli import call, refused

from schemas.export import FOLDER

PLANNED = ["plan", "e2d", "--committee", "tiny", "--student", "convnet3_w32", "--ipc", "2"]
RATE = {"architecture": None, "side": 16, "batch": 1, "per_second": 1.0, "spread": 0, "repeats": 1, "flops": 1.0}


def schema(name: str) -> dict[str, object]:
    return json.loads((FOLDER / f"{name}.schema.json").read_text())


def test_a_named_dataset_is_planned_without_its_shards(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(monkeypatch, *PLANNED, "--dataset", "cifar10") == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "50,000 images of 10 classes at 32 px", "at most 1,340 image-updates", "67 steps * 20 images",
        "image-updates, priors' among them: 2,800 to 4,000", "labelled views: 6,000", "retort calibrate",
    ):  # fmt: skip
        assert words in said


def test_json_says_the_same(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, *PLANNED, "--classes", "7", "--images", "700", "--side", "16", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    jsonschema.validate(found, schema("plan"))
    assert found["data"]["classes"] == 7 and found["totals"]["image_updates"] == 200 * 14
    assert found["totals"]["seconds"] is None


def test_shards_are_planned_by_their_index(
    digits: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--shards", f"{digits}/train/*.tar", "--test", f"{digits}/test/*.tar", "--json"]
    assert call(monkeypatch, *PLANNED, *options) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert (data["images"], data["test"], data["side"], data["fewest"]) == (1442, 355, 16, 140)
    assert data["image_bytes"] == pytest.approx(557, rel=0.3)


def test_a_dry_run_prints_the_counts_of_the_plan(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ["run", *PLANNED[1:], "--shards", f"{digits}/train/*.tar", "--out", tmp_path / "out", "--dry-run"]
    assert call(monkeypatch, *run) == 0
    counts = yaml.safe_load(capsys.readouterr().out)["plan"]["in all"]
    assert counts["image-updates"] == "2,800 to 4,000" and counts["labelled views"] == 6000
    for shard in (digits / "train").glob("*.tar"):
        (tmp_path / shard.name).symlink_to(shard)
    run[run.index(f"{digits}/train/*.tar")] = f"{tmp_path}/*.tar"
    assert call(monkeypatch, *run) == 0
    assert "no index.json" in yaml.safe_load(capsys.readouterr().out)["plan"]["in all"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--dataset", "imagenet"], "unknown dataset 'imagenet'; did you mean 'imagenette'"),
        (["--classes", "3", "--images", "90"], "--classes, --images and --side together"),
        (["--classes", "30", "--images", "9", "--side", "16"], "--images 9 are fewer than --classes 30"),
        (["--classes", "3", "--images", "5", "--side", "16"], "ipc 2 is above the 1 images of the smallest class"),
        ([], "--shards is missing"),
        (["--dataset", "digits", "--calibration", "none.json"], "calibration none.json: No such file"),
    ],
)
def test_bad_input_is_one_line(
    options: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert says in refused(capsys, monkeypatch, *PLANNED, *options)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{}", "machine Field required"),
        (b"\xff", "no text"),
        (b"[]", "Input should be an object"),
        (
            json.dumps(
                {"machine": "m", "device": "cpu", "torch": "2", "threads": 1, "base_memory_bytes": 1}
                | {"rates": [{"operation": "dream", "start_seconds": 0, "memory_bytes": 0, **RATE}]}
            ).encode(),
            "rates.0.operation",
        ),
        (
            json.dumps(
                {"machine": "m", "device": "cpu", "torch": "2", "threads": 1, "base_memory_bytes": 1}
                | {"rates": [{"operation": "read", "start_seconds": 0, "memory_bytes": 0, **RATE}]}
            ).encode(),
            "the calibration has no rate of 'observer'",
        ),
    ],
)
def test_a_file_that_is_no_calibration_is_told(
    content: bytes, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.json").write_bytes(content)
    options = ["--dataset", "digits", "--calibration", tmp_path / "c.json"]
    assert says in refused(capsys, monkeypatch, *PLANNED, *options)
