"""What a changelog says of two manifests."""

import pytest
from sample import DIGEST, claim, draft

from dd_tasks.changelog import SHOWN, changelog
from schemas.manifest import FileEntry

SHARDS = "images/train-00000-of-00001.parquet", "images/train-00000-of-00002.parquet"
EACH, GONE = "for each of 10 classes, 16 px", "*star*, <b>cat</b>, class_5 and 5 more"
ONE, TWO = FileEntry(bytes=1, sha256=DIGEST), FileEntry(bytes=1, sha256=DIGEST[::-1])


def test_a_first_release_says_what_it_is() -> None:
    lines = changelog(None, draft())
    assert lines[0] == "first release" and "20 images, 2 for each of 10 classes, 16 px" in lines
    assert "resnet_18 on the distilled images, 3 epochs, test: 51.00 ± 1.41 % (n=2)" in lines


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ({}, {"preset": "e2d"}, ["preset: sre2l -> e2d"]),
        ({}, {"ipc": 5}, [f"images: 20 images, 2 {EACH} -> 50 images, 5 {EACH}"]),
        ({}, {"classes": [*map(str, range(9)), "a|b"]}, [f"classes: {GONE} -> 0, 2, 3 and 5 more"]),
        (
            {"recipe": {"type": "Recipe", "schedule": {"phases": [{"steps": 10}, {"steps": 5}]}}},
            {"recipe": {"type": "Recipe", "schedule": {"phases": [{"steps": 20}]}, "flip": False}},
            [
                "recipe.schedule.phases.0.steps: 10 -> 20", "recipe.schedule.phases.1.steps: 5 -> none",
                "recipe.flip: none -> False",
            ],
        ),
        (
            {"claims": [claim("distilled", [0.5, 0.52]), claim("full", [0.8])]},
            {"claims": [claim("distilled", [0.6, 0.62]), claim("random", [0.4])]},
            [
                "resnet_18 on the distilled images, 3 epochs, test: 51.00 ± 1.41 % (n=2) -> 61.00 ± 1.41 % (n=2)",
                "resnet_18 on all real images, 3 epochs, test: 80.00 % (n=1) -> none",
                "resnet_18 on as many random real images, labelled alike, 3 epochs, test: none -> 40.00 % (n=1)",
            ],
        ),
        ({"files": {SHARDS[0]: ONE}}, {"files": {SHARDS[0]: TWO}}, ["files of images: 1 changed"]),
        ({"files": {SHARDS[0]: ONE}}, {"files": {SHARDS[1]: ONE}}, ["files of images: 1 added, 1 removed"]),
        ({}, {"command": "another"}, ["the card or what the manifest says of the making, nothing else"]),
    ],
)  # fmt: skip
def test_what_differs_is_a_line_each(old: dict, new: dict, lines: list[str]) -> None:
    assert changelog(draft(**old), draft(**new)) == lines


def test_labels_data_and_observers_are_told() -> None:
    old, new = draft().model_dump(), draft(5).model_dump()
    new["source"]["digest"] = new["observers"][0]["digest"] = DIGEST[::-1]
    assert changelog(draft(**old), draft(**new)) == [
        "labels.epochs: 3 -> 5",
        "labels.drawn: 3 -> 5",
        "labels.views: 60 -> 100",
        "real data: 100 images -> 100, other shards or classes",
        "observers: first -> first, other weights",
    ]


def test_a_long_list_of_differences_is_cut() -> None:
    recipe = {f"field_{i}": i for i in range(SHOWN + 3)}
    lines = changelog(draft(recipe={}), draft(recipe=recipe))
    assert len(lines) == SHOWN + 1 and lines[-1] == "recipe: 3 more differences"
