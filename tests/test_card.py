"""The dataset card: its header is what `datasets` makes of the tables, its example runs, its sentences are honest."""

import re
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from sample import (
    CLASSES,
    DIGEST,
    EPOCHS,
    N,
    claim,
    compact_info,
    compact_labels,
    draft,
    exact_info,
    tiny_canvas,
    tiny_labels,
    tiny_nearest,
)  # fmt: skip
from torch import nn

from dd_tasks import artifact, augment, card
from schemas.card import CardHeader, size_category


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` keeps what it reads in a folder of this test, and asks no server."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


SIZES = {"images": 1000, "soft_labels": 500}


def rendered(epochs: int = EPOCHS, **changes: object) -> str:
    return card.render(draft(epochs, **changes), SIZES)


def header_of(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_header_is_what_datasets_says_of_the_tables() -> None:
    header = header_of(rendered())
    CardHeader.model_validate(header)
    found = {info["config_name"]: info["features"] for info in header["dataset_info"]}
    assert found["images"] == artifact.image_features(CLASSES)._to_yaml_list()
    assert found["soft_labels"] == artifact.label_features(draft())._to_yaml_list()
    assert header["configs"][0] == {
        "config_name": "images",
        "default": True,
        "data_files": [{"split": "train", "path": "images/train-*.parquet"}],
    }
    assert header["dataset_info"][1]["splits"] == [{"name": "train", "num_bytes": 500, "num_examples": N * EPOCHS}]
    assert header["license"] == "unknown"
    assert header["task_ids"] == ["multi-class-image-classification"]
    assert header["annotations_creators"] == ["machine-generated"]
    assert "language" not in header


@pytest.mark.parametrize(
    ("name", "origin"),
    [(None, []), ("uoft-cs/cifar10", ["extended|uoft-cs/cifar10"]), ("original", ["original"])],
)
def test_header_names_the_real_dataset(name: str | None, origin: list[str]) -> None:
    text = rendered(source_dataset=name)
    CardHeader.model_validate(header_of(text))
    assert header_of(text)["source_datasets"] == origin
    assert f"The real data ({name}: 100 images" in text if name else "The real data (100 images" in text


def test_without_views_only_images_are_named() -> None:
    text = rendered(0)
    assert [config["config_name"] for config in header_of(text)["configs"]] == ["images"]
    assert "soft_labels" not in text


@pytest.mark.parametrize(("rows", "name"), [(999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M")])
def test_size_category(rows: int, name: str) -> None:
    assert size_category(rows) == name


def test_class_names_are_shown_as_they_are() -> None:
    text = rendered().split("---\n", 2)[2]
    assert r"&lt;b&gt;cat&lt;/b&gt;" in text
    assert "<b>" not in text
    assert r"a\|b, \*star\*, class\_5" in text


def test_every_table_has_rows_of_equal_length() -> None:
    unescaped = rendered(claims=[claim("distilled", [0.5])], versions={"a|b": "1"}).replace(r"\|", "")
    for block in re.findall(r"(?:^\|.*\n)+", unescaped, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1, block


def test_accuracies_of_all_rows() -> None:
    text = rendered()
    assert "| the distilled images | resnet\\_18 | 2 | 51.00 ± 1.41 | 3 | test |" in text
    assert "| as many random real images, labelled alike | resnet\\_18 | 2 | 41.00 ± 1.41 | 3 | test |" in text
    assert "| all real images | resnet\\_18 | 1 | 80.00 | 3 | test |" in text


@pytest.mark.parametrize(
    ("distilled", "random", "says"),
    [
        (
            [0.5, 0.52],
            [0.4, 0.42],
            "beats random real images by 10.00 points, more than 2 std of the difference (4.00)",
        ),
        ([0.42, 0.44], [0.4, 0.42], "2.00 points ahead of random real images, **not** more than 2 std"),
        ([0.4, 0.42], [0.4, 0.42], "does **not** beat random real images: the difference is 0.00 points (2 std: 4.00)"),
        ([0.3, 0.3], [0.4, 0.4], "does **not** beat random real images: the difference is -10.00 points"),
        ([0.9], [0.4], "with one seed that is **not** shown to be more than chance"),
    ],
)
def test_says_whether_it_beats_random(distilled: list[float], random: list[float], says: str) -> None:
    text = rendered(claims=[claim("distilled", distilled), claim("random", random)])
    assert says in text
    accuracy = text.split("## Accuracy")[1].split("## Cost")[0]
    assert accuracy.count("random real images") == 2  # the row and one sentence


@pytest.mark.parametrize(
    ("ending", "what"), [("", ""), ("_hard", " (class labels only)"), ("_plain", " (no augmentation)")]
)
def test_says_under_which_limits_it_beats_random(ending: str, what: str) -> None:
    text = rendered(claims=[claim(f"distilled{ending}", [0.5, 0.52]), claim(f"random{ending}", [0.4, 0.42])])
    assert f"With resnet\\_18{what}, this dataset beats random real images by 10.00 points" in text


def test_says_what_was_not_measured() -> None:
    assert "Nothing has been measured." in rendered(claims=[])
    assert "Random real images were not measured" in rendered(claims=[claim("distilled", [0.5])])


def test_many_source_shards_are_cut_short() -> None:
    shards = [{"name": f"{i}.tar", "samples": 1, "bytes": 1, "sha256": DIGEST} for i in range(card.SHARDS_SHOWN + 3)]
    text = rendered(source={"digest": DIGEST, "shards": shards, "samples": 100})
    assert "The other 3 shards are in" in text
    assert "20.tar" not in text


def test_a_picture_is_shown_if_there_is_one() -> None:
    entry = {"bytes": 1, "sha256": DIGEST}
    assert "![" not in rendered()
    assert "(assets/preview.png)" in rendered(files={"assets/preview.png": entry})


def test_says_how_near_the_images_are_to_real_ones() -> None:
    limits = rendered().split("## Limits\n")[1].split("\n## ")[0]
    assert "| of these images | 0.100 | 0.550 | | 1.000 |" in limits
    assert "| of random real images, to others | 0.200 | 0.450 | 0.675 | 0.700 |" in limits
    assert "7 of the 20 images are nearer to a training image than 95% of random real images" in limits
    assert "13 began from real images (`sources`), and 7 of these are still nearest to one" in limits
    assert "altered copies of real ones, not as anonymous" in limits


def test_says_that_no_image_began_from_a_real_one() -> None:
    text = rendered(nearness=draft().nearness.model_copy(update={"began": 0, "kept": 0}))
    assert "None of them began from a real image." in text and "began from real images" not in text


def test_cites_the_dataset_and_the_papers_of_its_method() -> None:
    cited = rendered(preset="cda").split("```bibtex\n")[1].split("```")[0]
    assert re.findall(r"@misc\{(.*),", cited) == ["retort-0123456789ab", "cda", "sre2l"]
    own = rendered(preset="our:method").split("## Cite\n")[1]
    assert own.count("@misc") == 1 and "papers" not in own


def test_repository_name_is_used_in_the_examples() -> None:
    text = card.render(draft(), SIZES, repository="org/digits")
    assert 'load_dataset("org/digits", split="train")' in text
    assert "  url = {https://huggingface.co/datasets/org/digits}," in text and "not published" not in text
    assert card.for_repository(rendered(), "org/digits") == text


def example_of(folder: Path) -> dict:
    """Run the card's training example in the artifact, with a student small enough for a test."""
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[-1]
    assert code.count("\n") < 65
    code = card.for_repository(code, str(folder))
    code = re.sub(r"epochs = \d+", "epochs = 1", code)
    code = re.sub(r"resnet18\(num_classes=(\d+)\)", r"small(\1)", code)

    def small(classes: int) -> nn.Module:
        net = nn.Sequential()
        net.maxpool = nn.AvgPool2d(4)  # the example replaces it
        net.conv1 = nn.Conv2d(3, 64, 3)
        return net.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten()).append(nn.Linear(64, classes))

    names: dict = {"small": small}
    exec(code, names)
    return names


LABELS = {
    "exact": tiny_labels(),
    "compact": compact_labels(),
    "compact, some classes": compact_labels(top=3),
    "none": tiny_labels(0),
}


@pytest.mark.parametrize("kind", LABELS)
def test_the_example_trains_on_what_the_committee_saw(kind: str, tmp_path: Path) -> None:
    labels, out = LABELS[kind], tmp_path / "out"
    info = compact_info(labels) if labels.coding else exact_info(len(labels.table) // N)
    artifact.write(out, tiny_canvas(), labels, draft(labels=info), {}, nearest=tiny_nearest())
    names = example_of(out)
    assert torch.isfinite(names["loss"])
    if kind != "none":
        replayed, logits = (torch.cat(parts) for parts in zip(*map(names["replay"], names["rows"]), strict=True))
        seen = augment.show(tiny_canvas().images_NCHW.float() / 255, labels.views, slice(None))
        assert torch.allclose(replayed, seen, atol=1e-5)
        assert torch.allclose(logits, labels.views.logits_VK.float(), atol=0.01)
