"""The JSON Schema files say what the models say."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

import schemas
from schemas import hub
from schemas.card import CardHeader
from schemas.export import FOLDER, MODELS, export, schema_text
from schemas.manifest import Manifest
from schemas.spec import RunSpec

DIGEST = "0123456789abcdef" * 4


def manifest() -> Manifest:
    claim = {"row": "distilled", "student": "conv", "epochs": 1, "split": "test", "seeds": [0], "accuracies": [0.5]}
    near = {"least": 0.1, "median": 0.5, "most": 0.9, "above": 1, "began": 2, "kept": 2}
    near |= {"random_least": 0.1, "random_median": 0.4, "random_95": 0.8, "random_most": 0.9}
    return Manifest.model_validate(
        {
            "nearness": near,
            "name": "digits",
            "preset": "sre2l",
            "recipe": {"steps": 3},
            "identity": DIGEST,
            "seed": 0,
            "ipc": 1,
            "classes": ["a", "b"],
            "side": 8,
            "mean": (0.5, 0.5, 0.5),
            "std": (1, 1, 1),
            "held_out": 0.1,
            "source": {"digest": DIGEST, "shards": [], "samples": 1},
            "labels": {"codec": "exact", "epochs": 0, "drawn": 0, "views": 0, "rows": 0, "bytes": 0},
            "cost": {"image_updates": 0, "seconds": {}, "peak_memory_bytes": 0, "machine": "none"},
            "claims": [claim | {"mean": 0.5, "std": 0, "seconds": 1}],
            "observers": [],
            "command": "none",
            "versions": {},
            "files": {"a": {"bytes": 1, "sha256": DIGEST}},
        }
    )


def schema(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.schema.json").read_text(encoding="utf-8"))


def test_the_package_is_ours() -> None:
    assert Path(str(schemas.__file__)).resolve().is_relative_to(Path(__file__).resolve().parents[1])


@pytest.mark.parametrize("name", MODELS)
def test_files_are_as_the_models(name: str) -> None:
    text = (FOLDER / f"{name}.schema.json").read_text(encoding="utf-8")
    assert text == schema_text(MODELS[name]), "run `python -m schemas`"
    jsonschema.Draft202012Validator.check_schema(json.loads(text))


def test_export_writes_all_and_nothing_else(tmp_path: Path) -> None:
    assert sorted(file.name for file in export(tmp_path)) == sorted(file.name for file in FOLDER.iterdir())


def test_every_column_is_described() -> None:
    for name in ("images", "soft_labels"):
        columns = schema(name)["properties"]
        assert [column for column in columns if "description" not in columns[column]] in ([], ["image"])


def test_a_manifest_is_valid_by_its_schema() -> None:
    jsonschema.validate(manifest().model_dump(mode="json"), schema("manifest"))


@pytest.mark.parametrize(
    "changes",
    [{"ipc": 0}, {"format": "retort-2"}, {"identity": "x"}, {"extra": 1}, {"classes": []}, {"license": "mitt"}],
)
def test_a_broken_manifest_is_not(changes: dict) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest().model_dump(mode="json") | changes, schema("manifest"))


def header() -> dict:
    info = {"features": [{"name": "image", "dtype": "image"}], "splits": [{"num_bytes": 1, "num_examples": 1}]}
    return {
        "license": "mit",
        "pretty_name": "x",
        "task_categories": ["image-classification"],
        "task_ids": ["multi-class-image-classification"],
        "annotations_creators": ["machine-generated"],
        "source_datasets": [],
        "size_categories": [],
        "tags": ["dataset-distillation"],
        "configs": [{"config_name": "images", "default": True, "data_files": [{"path": "images/train-*.parquet"}]}],
        "dataset_info": [info | {"config_name": "images", "download_size": 1, "dataset_size": 1}],
    }


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, ""),
        ({"language": ["en"]}, ""),
        ({"source_datasets": ["extended|org/name"]}, ""),
        ({"license": "No Such"}, "the Hub knows no licence 'No Such'; choices: apache-2.0, mit, .* and others"),
        ({"license": "CC-BY-4"}, "the Hub knows no licence 'CC-BY-4'; did you mean cc-by-4.0 or "),
        ({"license": None}, "license"),
        ({"task_categories": ["image-classification", "cooking"]}, "knows no task of images 'cooking'"),
        ({"task_ids": ["multi-label-image-classification"]}, "task_ids must name multi-class"),
        (
            {"task_ids": ["multi-class"]},
            "'multi-class'; choices: multi-class-image-classification, multi-label-image-classification",
        ),
        (
            {"annotations_creators": ["robots"]},
            "knows no kind of annotators 'robots'; choices: found, crowdsourced, .*, other",
        ),
        ({"source_datasets": ["my photos"]}, "source_datasets"),
        ({"size_categories": ["n<2K"]}, "did you mean n<1K"),
        ({"tags": ["other"]}, "tags must name"),
        ({"task_categories": []}, "task_categories must name"),
        ({"configs": []}, "configs must name images"),
        ({"dataset_info": []}, "dataset_info must name images"),
    ],
)
def test_header(changes: dict, says: str) -> None:
    if not says:
        CardHeader.model_validate(header() | changes)
        jsonschema.validate(header() | changes, schema("card"))
        return
    with pytest.raises(ValueError, match=says):
        CardHeader.model_validate(header() | changes)


def test_every_identifier_is_listed_once_and_the_common_ones_among_them() -> None:
    for choices in (hub.LICENSES, hub.TASKS, hub.TASK_IDS, hub.ANNOTATORS, hub.SIZES):
        assert len(set(choices)) == len(choices)
    assert set(hub.COMMON_LICENSES) <= set(hub.LICENSES)


@pytest.mark.parametrize(
    ("feature", "says"),
    [
        ({"name": "a"}, "one of dtype and list"),
        ({"name": "a", "dtype": "int32", "list": "int32"}, "one of dtype and list"),
        ({"name": "a", "dtype": {"class_label": {"names": {"1": "x"}}}}, "class numbers"),
    ],
)
def test_a_column_that_makes_no_sense(feature: dict, says: str) -> None:
    broken = header()
    broken["dataset_info"][0]["features"] = [feature]
    with pytest.raises(ValueError, match=says):
        CardHeader.model_validate(broken)


def test_importing_schemas_loads_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "pyarrow", "datasets", "yaml"}
    code = f"import sys, schemas.export; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_specification_for_another_folder_tells_whole_paths(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = {"preset": "e2d", "shards": ["a/*.tar", "s3://b/*.tar", "/c/*.tar"], "ipc": 1, "committee": "ours.json"}
    found = RunSpec(**told).elsewhere()
    assert found["shards"] == [f"{tmp_path}/a/*.tar", "s3://b/*.tar", "/c/*.tar"]
    assert found["committee"] == f"{tmp_path}/ours.json" and RunSpec(**found).elsewhere() == found
    assert RunSpec(**{**told, "committee": "small"}).elsewhere()["committee"] == "small"
