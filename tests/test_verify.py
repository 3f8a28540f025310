"""What a verifier asks, how it judges, and what it writes; its training is in test_verify_flow.py."""

import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import sample

from dd_tasks import artifact, verify
from dd_tasks.errors import InputError
from dd_tasks.verify import Check, Scope, judge, junit, patterns_of, plan, portable


def claimed(accuracies: list[float], **changes: object):
    return sample.claim("distilled", accuracies).model_copy(update=changes)


@pytest.mark.parametrize(
    ("accuracies", "images", "measured", "outcome"),
    [
        ([0.5], 100, [0.5], "passed"),
        ([0.5], 100, [0.599], "passed"),  # one test on 100 images at 50 %: std 5 points
        ([0.5], 100, [0.601], "failed"),
        ([0.5], 100, [0.399], "failed"),
        ([0.5], 400, [0.449], "failed"),  # four times the images: half of that
        ([0.5, 0.5], 400, [0.54, 0.558], "passed"),  # a spread of 0 does not judge by zero
        ([0.5, 0.5], 400, [0.55, 0.552], "failed"),
        ([0.4, 0.6], 10**6, [0.76, 0.80], "passed"),  # std 14.1 points
        ([0.4, 0.6], 10**6, [0.78, 0.80], "failed"),
        ([0.4, 0.5, 0.6], 10**6, [0.66, 0.66, 0.66], "passed"),  # std 10 points, of the difference of means 8.2
        ([0.4, 0.5, 0.6], 10**6, [0.67, 0.67, 0.66], "failed"),
        ([0.4, 0.6], 10**6, [0.68], "passed"),  # the first seed alone, against its own 40 %
        ([0.4, 0.6], 10**6, [0.69], "failed"),
        ([1.0], 100, [1.0], "passed"),
    ],
)
def test_a_claim_holds_within_two_standard_deviations(accuracies, images, measured, outcome):
    assert judge(claimed(accuracies), measured, images, 1.0).outcome == outcome


def test_a_judgement_names_the_claim_and_both_numbers():
    check = judge(claimed([0.5, 0.6], seeds=[3, 5]), [0.1, 0.2], 100, 2.5)
    assert check.name == "distilled, resnet_18, 3 epochs" and check.seconds == 2.5
    assert check.message == (
        "claimed 55.00 %, measured 15.00 %: 40.00 points apart, 14.14 allowed (seeds 3, 5)"
    )  # fmt: skip
    assert judge(claimed([0.5, 0.6], seeds=[3, 5]), [0.1], 100, 2.5).message.endswith("(seed 3 alone)")


def test_rows_that_need_more_than_the_artifact_are_listed_with_the_reason():
    rows = ["distilled", "distilled_hard", "distilled_plain", "random", "random_hard", "random_plain", "full"]
    claims = [*(sample.claim(row, [0.5]) for row in rows), claimed([0.5], row="a row of a later version")]
    asked = plan(sample.draft().model_copy(update={"claims": claims}), Scope())
    assert [why for claim, why in asked] == [
        "", "", "not measured here: the labels of its views are not in the artifact",
        *["not measured here: needs the source images and the committee"] * 3,
        "not measured here: needs the source images",
        "not measured here: needs the source images and the committee",
    ]  # fmt: skip


def test_students_are_chosen_by_name():
    manifest = sample.draft(claims=[claimed([0.5]), claimed([0.5], student="conv")])
    assert [why for _, why in plan(manifest, Scope(students=("conv",)))] == ["not among --students", ""]
    with pytest.raises(InputError, match=r"unknown student in --students 'cnv'; did you .* \(choices: conv, resnet_18"):
        plan(manifest, Scope(students=("conv", "cnv")))


@pytest.mark.parametrize(
    ("pattern", "travels"),
    [
        ("data/train-*.tar", True),
        ("../shards/{0000..0009}.tar", True),
        ("{a,b}/*.tar", True),
        ("https://host/data/train-{00..99}.tar", True),
        ("s3://bucket/train-*.tar", True),
        ("hf://datasets/org/name@main/data/*.tar", True),
        ("/home/someone/*.tar", False),
        ("{/data/a,/data/b}/*.tar", False),
        ("{a,~/b}/*.tar", False),
        ("~/data/*.tar", False),
        ("C:\\data\\*.tar", False),
        ("\\\\server\\share\\*.tar", False),
        ("file:///home/someone/*.tar", False),
        ("https://someone:secret@host/*.tar", False),
        ("https://host/train.tar?X-Amz-Signature=secret", False),
        ("https://host/${WDS_SECRET}.tar", False),
        ("data/a.tar::/data/b.tar", False),
        ("simplecache://data/a.tar", False),
        ("https://[/x.tar", False),
    ],
)
def test_no_machine_path_and_no_secret_travels(pattern, travels):
    assert portable(pattern) == travels


def found_at(*patterns: str) -> dict[str, object]:
    return {**sample.draft().source.model_dump(), "patterns": patterns}


@pytest.mark.parametrize(
    ("split", "scope", "patterns"),
    [
        ("test", Scope(), ("test/*.tar",)),
        ("held-out", Scope(), ("train/*.tar",)),
        ("test", Scope(test=("/mine/*.tar",)), ("/mine/*.tar",)),
        ("held-out", Scope(shards=("/mine/*.tar", "b.tar")), ("/mine/*.tar", "b.tar")),
    ],
)
def test_shards_are_those_given_or_the_manifests(split, scope, patterns):
    manifest = sample.draft(source=found_at("train/*.tar"), test=found_at("test/*.tar", "/elsewhere/*.tar"))
    assert patterns_of(manifest, split, scope) == patterns


@pytest.mark.parametrize(
    ("split", "scope", "line"),
    [
        ("test", Scope(), r"does not say where the test images lie; give --test \(train-0000.tar\)"),
        ("held-out", Scope(), r"does not say where the held-out images lie; give --shards \(train-0000.tar\)"),
        ("test", Scope(shards=("x",)), "--shards: the claims are of test images; give their shards by --test"),
        ("held-out", Scope(test=("x",)), "--test: the claims are of held-out images; give their shards by --shards"),
    ],
)
def test_shards_that_nobody_names_are_an_error(split, scope, line):
    with pytest.raises(InputError, match=line):
        patterns_of(sample.draft(), split, scope)


def test_claims_of_test_images_that_the_manifest_does_not_know_are_an_error():
    with pytest.raises(InputError, match="claims are of test images, and it names none"):
        patterns_of(sample.draft(test=None), "test", Scope(test=("x",)))


CHECKS = (
    Check("valid", "passed", "all of it", 0.25),
    Check("<distilled> & \x00\x1b\ud800", "failed", 'claimed "50" %,\x08 measured <40> %', 1.5),
    Check("random", "skipped", "not measured here"),
)


def test_junit_has_a_case_for_every_check_and_is_xml_whatever_names_hold():
    (suite,) = ET.fromstring(junit("verify <dir> \x07", CHECKS))
    assert suite.tag == "testsuite" and suite.attrib == {
        "name": "verify <dir> \ufffd", "tests": "3", "failures": "1", "skipped": "1", "errors": "0", "time": "1.750",
    }  # fmt: skip
    assert [case.get("name") for case in suite] == ["valid", "<distilled> & \ufffd\ufffd\ufffd", "random"]
    assert [[part.tag for part in case] for case in suite] == [["system-out"], ["failure"], ["skipped"]]
    assert suite[1][0].get("message") == 'claimed "50" %,\ufffd measured <40> %'
    assert suite[2][0].get("message") == "not measured here" and suite[1].get("time") == "1.500"


@pytest.mark.parametrize(("count", "fails"), [(1, False), (2, True), (3, True)])
def test_one_failed_check_fails_all(count, fails):
    assert verify.failed(CHECKS[:count]) is fails


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("verify") / "artifact"
    artifact.write(out, sample.tiny_canvas(), sample.tiny_labels(), sample.draft(), {}, nearest=sample.tiny_nearest())
    return out


def said_of(folder: Path, **changes: object) -> dict[str, tuple[str, str]]:
    """Outcome and message of each check, with the manifest changed."""
    manifest = artifact.read_manifest(folder).model_copy(update=changes)
    return {check.name: (check.outcome, check.message) for check in verify.opened(folder, manifest)}


def test_a_stranger_opens_what_is_written(written):
    assert said_of(written) == {
        "load_dataset opens images": ("passed", "20 rows"),
        "load_dataset opens soft_labels": ("passed", "60 rows"),
    }


def test_what_a_stranger_finds_is_compared_with_the_manifest(written):
    of_other_size = said_of(written, ipc=3)
    assert of_other_size["load_dataset opens images"] == ("failed", "has 20 rows, by retort.json it should be 30")
    assert of_other_size["load_dataset opens soft_labels"][0] == "passed"
    of_other_classes = said_of(written, classes=sample.CLASSES[:-1])
    for table, column in (("images", "label"), ("soft_labels", "logits")):
        outcome, message = of_other_classes[f"load_dataset opens {table}"]
        assert outcome == "failed" and message.startswith(f"column {column} is not of the type, or the classes, that")


def test_what_a_stranger_cannot_open_is_a_failed_check(written, tmp_path):
    broken = shutil.copytree(written, tmp_path / "broken")
    (broken / "images" / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    said = said_of(broken)
    outcome, message = said["load_dataset opens images"]
    assert outcome == "failed" and "Error" in message and "\n" not in message
    assert said["load_dataset opens soft_labels"] == ("passed", "60 rows")
