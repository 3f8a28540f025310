"""The report page and the pictures: structure, escaping, determinism, and one look through a real browser."""

import base64
import io
import os
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from dd_tasks import pictures, report
from dd_tasks.axes import rounds
from dd_tasks.claims import pairings
from dd_tasks.report import Story
from dd_tasks.types import Canvas
from schemas.manifest import (
    Claim,
    Cost,
    LabelInfo,
    Manifest,
    Metrics,
    Nearness,
    ObserverEntry,
    QuarantinedSample,
    SourceData,
    SourceShard,
)

DIGEST = "0123456789abcdef" * 4
SCRIPT = "<script>alert(1)</script>"
HANDLER = "<img src=x onerror=\"document.title='ran'\">"
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """The elements of a page, its text by section, and whether every element was closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.sections: dict[str, str] = {}
        self.section = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self.section = dict(attrs)["id"] or ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.sections[self.section] = self.sections.get(self.section, "") + " " + " ".join(data.split())

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.elements if name == tag and attributes.items() <= found.items()]


def claim(row: str, *accuracies: float) -> Claim:
    values = torch.tensor(accuracies, dtype=torch.float64)
    spread = values.std().item() if len(accuracies) > 1 else 0.0
    fields = {"row": row, "student": "convnet3", "epochs": 300, "split": "test", "seconds": 1.5}
    fields |= {"seeds": list(range(len(accuracies))), "accuracies": list(accuracies)}
    return Claim.model_validate(fields | {"mean": values.mean().item(), "std": spread})


CLAIMS = [claim("distilled", 0.45, 0.46, 0.47), claim("random", 0.33, 0.34, 0.35), claim("full", 0.91)]


NEAR = Nearness(
    least=0.1, median=0.5, most=0.9, above=1, began=2, kept=2,
    random_least=0.1, random_median=0.4, random_95=0.8, random_most=0.9,
)  # fmt: skip


def manifest(**changes: object) -> Manifest:
    shards = [SourceShard(name=f"train-{i}.tar", samples=500, bytes=10_000, sha256=DIGEST) for i in range(2)]
    bad = QuarantinedSample(shard="train-1.tar", key="000042", reason="truncated <PNG>")
    made = Manifest(
        name="little",
        preset="e2d",
        recipe={"type": "Recipe", "ballots": [{"type": "Ballot", "terms": []}], "schedule": {"betas": [0.5, 0.9]}},
        identity=DIGEST,
        seed=7,
        ipc=3,
        classes=["plane", SCRIPT, HANDLER],
        side=16,
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        source=SourceData(digest=DIGEST, shards=shards, samples=1000, quarantined=[bad]),
        held_out=0.05,
        observers=[
            ObserverEntry(name="o", architecture="resnet18", epochs=9, accuracy=0.8765, digest=DIGEST, seconds=5)
        ],
        labels=LabelInfo(codec="exact", epochs=2, drawn=2, views=18, rows=18, bytes=2048),
        claims=CLAIMS,
        cost=Cost(image_updates=1234, seconds={"recover": 61.5, "relabel": 2}, peak_memory_bytes=2**20, machine="box"),
        metrics=Metrics(
            panels=3,
            panels_per_second=0.125,
            image_updates_per_second=2345.6,
            image_updates_per_second_overall=19.4,
            store_bytes={"recover": 9},
        ),
        command="retort distill --ipc 3",
        nearness=NEAR,
        versions={"torch": "2.0"},
        files={},
    )
    return made.model_copy(update=changes)


def canvas(classes: int = 3, ipc: int = 3, side: int = 16) -> Canvas:
    rng = torch.Generator().manual_seed(0)
    images_NCHW = torch.randint(0, 256, (classes * ipc, 3, side, side), generator=rng).to(torch.uint8)
    keys = tuple((f"train-0.tar/{i}",) for i in range(classes * ipc))
    return Canvas(images_NCHW, torch.arange(classes).repeat_interleave(ipc), keys)


def story(after: Canvas, steps: tuple[int, ...] = (20, 14), explored: int = 12) -> Story:
    gaze_NSS = torch.zeros(len(after), *after.images_NCHW.shape[2:])
    gaze_NSS[1, 2:9, 3:12], gaze_NSS[4, 4:10, 4:10] = 5, 9
    loss = tuple(3 / (1 + torch.arange(count, dtype=torch.float32)) for count in steps)
    remembered = tuple(torch.arange(count, 0, -1, dtype=torch.float32) for count in steps)
    return Story(255 - after.images_NCHW, loss, remembered, gaze_NSS, explored)


def page(made: Manifest | None = None) -> Page:
    return Page(report.render(made or manifest(), canvas(), story(canvas())))


def pixels(uri: str | None) -> Image.Image:
    assert uri is not None
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))


def test_story_is_the_same_bytes_again() -> None:
    told = story(canvas())
    read = Story.from_bytes(told.to_bytes())
    assert read.to_bytes() == told.to_bytes() == story(canvas()).to_bytes()
    assert read.explored == 12 and read.gaze_NSS.dtype == torch.uint16
    assert torch.equal(read.before_NCHW, told.before_NCHW) and torch.equal(read.gaze_NSS.float(), told.gaze_NSS)
    for name in ("loss", "remembered"):
        assert all(torch.equal(a, b) for a, b in zip(getattr(read, name), getattr(told, name), strict=True))


@pytest.mark.parametrize("data", [b"", b"not a story", b"\x02" + b"\x00" * 7 + b"{}"])
def test_other_bytes_are_no_story(data: bytes) -> None:
    with pytest.raises(ValueError, match="no story"):
        Story.from_bytes(data)


def test_every_image_is_on_the_page_before_and_after() -> None:
    html, after = page(), canvas()
    real, distilled = ([i for i in html.all("img") if (i["alt"] or "").endswith(k)] for k in (", real", ", distilled"))
    assert len(real) == len(distilled) == 9
    for shown, image_CHW in zip(distilled, after.images_NCHW, strict=True):
        assert pixels(shown["src"]).tobytes() == image_CHW.permute(1, 2, 0).numpy().tobytes()
    assert [i["title"] for i in real] == [", ".join(keys) for keys in after.sources]


def test_noise_is_not_called_real() -> None:
    after = replace(canvas(), sources=((),) * 9)
    html, real = (report.render(manifest(), c, story(c)) for c in (after, canvas()))
    assert "Above, the noise the run began with" in html and html.count('<span class="kind">noise</span>') == 3
    assert "Above, the real images the run began with" in real and ">noise<" not in real
    sheets = [
        pictures.preview(after.images_NCHW, after.images_NCHW, after.targets_N, ["a"] * 3, began_as=word)
        for word in ("real", "noise")
    ]
    assert sheets[0] != sheets[1]


def test_only_what_exploitation_saw_has_a_heat_map() -> None:
    heat = [i for i in page().all("img") if (i["alt"] or "").startswith("where exploitation")]
    assert [i["alt"] for i in heat] == [f"where exploitation looked at {name}" for name in (SCRIPT, "plane")]
    assert "up to 9 looks at a pixel" in page().sections["gaze"]


def test_every_row_has_a_table_row_and_a_bar() -> None:
    html = page()
    for row, value in (("distilled", "46.00 ± 1.00"), ("random", "34.00 ± 1.00"), ("full", "91.00")):
        assert len(html.all("tr", **{"class": row})) == len(html.all("rect", **{"class": f"bar {row}"})) == 1
        assert html.sections["accuracy"].count(value) == 2
    assert len(html.all("path", **{"class": "error"})) == 2  # one seed has no spread
    assert len(html.all("circle", **{"class": "seed"})) == 7


def test_what_the_manifest_says_is_on_the_page() -> None:
    text = page().sections
    assert "1,234" in text["cost"] and "63.5" in text["cost"] and "box" in text["cost"]
    assert "0.12 panels and 2,346 image-updates a second" in text["cost"]
    for said in (
        "train-0.tar",
        DIGEST[:12],
        "truncated <PNG>",
        "87.65",
        "retort distill --ipc 3",
        "torch 2.0",
        "Ballot",
        "similarity to the nearest real image 0.100 to 0.900, median 0.500",
        "of random real images to another, median 0.400, 95 % below 0.800",
    ):
        assert said in text["provenance"]


def test_data_is_text_and_never_markup() -> None:
    html = page()
    assert html.open == [] and not html.all("script") and not [a for _, a in html.elements if "onerror" in a]
    assert SCRIPT in html.sections["images"] and HANDLER in html.sections["images"]


def test_page_asks_for_nothing() -> None:
    text = report.render(manifest(), canvas(), story(canvas()))
    assert "http:" not in text and "https:" not in text and "url(" not in text
    assert all((i["src"] or "").startswith("data:") for i in Page(text).all("img"))
    assert text == report.render(manifest(), canvas(), story(canvas()))


@pytest.mark.parametrize(
    ("distilled", "random", "verdict", "said"),
    [
        ((0.45, 0.46, 0.47), (0.33, 0.34, 0.35), "ahead", "12.00 points more, which is more than 2 std"),
        ((0.33, 0.34, 0.35), (0.45, 0.46, 0.47), "behind", "12.00 points less, which is more than 2 std"),
        ((0.40, 0.44, 0.48), (0.39, 0.43, 0.47), "unclear", "1.00 points more, no clear difference"),
        ((0.45,), (0.33,), "unclear", "not shown to be more than chance"),
    ],
)
def test_headline_is_honest(distilled: tuple, random: tuple, verdict: str, said: str) -> None:
    html = page(manifest(claims=[claim("distilled", *distilled), claim("random", *random)]))
    assert said in html.sections[""] and len(html.all("div", **{"class": f"tile {verdict}"})) == 1


def test_rows_are_compared_with_their_own_labels() -> None:
    claims = [claim("distilled_hard", 0.2), claim("distilled", 0.4), claim("random_hard", 0.1), claim("random", 0.3)]
    assert [(c.distilled.row, c.random.row) for c in pairings(claims)] == [
        ("distilled", "random"),
        ("distilled_hard", "random_hard"),
    ]
    assert pairings([claims[0], claims[3]]) == []


def test_rows_without_augmentation_are_compared_with_each_other() -> None:
    plain = [claim("random_plain", 0.2), claim("distilled_plain", 0.3)]
    first, second = pairings([*plain, claim("distilled", 0.4), claim("random", 0.3)])
    assert (first.distilled.row, first.random.row) == ("distilled", "random")
    assert (second.distilled.row, second.random.row) == ("distilled_plain", "random_plain")
    assert "random real ones, with no augmentation, 20.00 %" in second.sentence
    assert pairings([plain[1], claim("random", 0.3)]) == []


@pytest.mark.parametrize(("explored", "marked"), [(0, 0), (1, 2), (19, 2), (20, 0)])
def test_boundary_is_drawn_inside_the_run_alone(explored: int, marked: int) -> None:
    html = Page(report.render(manifest(), canvas(), story(canvas(), explored=explored)))
    assert len(html.all("line", **{"class": "boundary"})) == marked
    assert len(html.all("polyline", **{"class": "curve"})) == 2


def test_a_panel_that_finished_early_is_said() -> None:
    drawn = report.chart("loss", story(canvas()).loss, 12)
    assert drawn is not None and any("1 of 2 panels finished early" in note for note in drawn.notes)


def test_values_that_are_not_finite_are_left_out_and_said() -> None:
    drawn = report.chart("loss", (torch.tensor([3.0, torch.nan, 1.0, torch.inf]),), 0)
    assert drawn is not None and len(drawn.line.split()) == 2 and "2 values are not finite" in drawn.notes[-1]


def test_a_long_curve_is_averaged() -> None:
    drawn = report.chart("loss", (torch.ones(4000),), 100)
    assert drawn is not None and len(drawn.line.split()) <= report.POINTS and "groups of 14 steps" in drawn.notes[0]


@pytest.mark.parametrize(("low", "high", "expected"), [(0, 4, [0, 1, 2, 3, 4]), (0, 0.9, [0, 0.2, 0.4, 0.6, 0.8])])
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert rounds(low, high) == expected


def test_page_without_most_things() -> None:
    after = canvas(1, 1)
    bare = manifest(classes=["one"], ipc=1, claims=[], observers=[], recipe={})
    bare = bare.model_copy(update={"labels": LabelInfo(codec="exact", epochs=0, drawn=0, views=0, rows=0, bytes=0)})
    bare = bare.model_copy(update={"cost": Cost(image_updates=0, seconds={}, peak_memory_bytes=0, machine="box")})
    none = Story(after.images_NCHW, (torch.zeros(0),), (torch.zeros(0),), torch.zeros(0, 0, 0), 0)
    html = Page(report.render(bare, after, Story.from_bytes(none.to_bytes())))
    assert html.open == [] and not html.all("svg") and len(html.all("img")) == 2
    assert "has not been measured" in html.sections[""] and "no steps" in html.sections["optimisation"]


def test_limits_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "PER_CLASS", 2)
    monkeypatch.setattr(report, "CLASSES_SHOWN", 2)
    text = page().sections["images"]
    assert "Shown are 4 of 9 images, in 2 of 3 classes" in text and "and 1 more" in text


def test_parts_of_different_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="began with images of shape"):
        report.render(manifest(), canvas(), story(canvas(ipc=4)))
    with pytest.raises(ValueError, match="gaze for 2 images"):
        report.render(manifest(), canvas(), replace(story(canvas()), gaze_NSS=torch.ones(2, 16, 16)))
    with pytest.raises(ValueError, match="class 2 is on the canvas"):
        report.render(manifest(classes=["a", "b"]), canvas(), story(canvas()))


@pytest.mark.parametrize(
    ("side", "classes", "size"),
    [
        (16, 10, (2 * 24 + 76 + 10 * 64 + 9 * 12, 2 * 24 + 2 * 26 + 20 + 2 * (3 * 68 - 4))),  # a class is one column
        (32, 1, (2 * 24 + 76 + 3 * 68 - 4, 2 * 24 + 2 * 26 + 20 + 2 * 64)),  # alone, its images lie side by side
        (224, 1, (2 * 24 + 76 + 3 * 116 - 4, 2 * 24 + 2 * 26 + 20 + 2 * 112)),
    ],
)
def test_preview_has_room_for_all_and_is_the_same_again(side: int, classes: int, size: tuple[int, int]) -> None:
    after = canvas(classes, 3, side)
    names = ["a name that is much too long for its column\nand has two lines"] * classes
    made = [pictures.preview(255 - after.images_NCHW, after.images_NCHW, after.targets_N, names) for _ in range(2)]
    assert made[0] == made[1] and Image.open(io.BytesIO(made[0])).size == size


def test_preview_shows_real_above_distilled() -> None:
    real_NCHW, distilled_NCHW = torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.full((2, 3, 16, 16), 200)
    sheet = pictures.preview(real_NCHW, distilled_NCHW.to(torch.uint8), torch.tensor([0, 0]), ["a"])
    picture, grid = Image.open(io.BytesIO(sheet)), pictures.Grid(1, 2, 1, 64, 64)
    for block, value in enumerate((0, 200)):
        left, top = grid.place(0, block, 1)
        assert picture.getpixel((left, top)) == picture.getpixel((left + 63, top + 63)) == (value,) * 3


def test_a_picture_is_halved_until_it_fits() -> None:
    noise = pictures.png(torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=torch.manual_seed(0)))
    assert pictures.reduced(noise, len(noise)) == noise
    for most, size in ((len(noise) - 1, (48, 32)), (len(noise) // 8, (24, 16)), (0, (1, 1))):
        assert Image.open(io.BytesIO(pictures.reduced(noise, most))).size[1] == size[1], most


def test_preview_of_nothing_is_refused() -> None:
    after = canvas(1, 1)
    with pytest.raises(ValueError, match="no images"):
        pictures.preview(after.images_NCHW[:0], after.images_NCHW[:0], after.targets_N[:0], ["a"])
    with pytest.raises(ValueError, match="do not match"):
        pictures.preview(after.images_NCHW, after.images_NCHW[:0], after.targets_N, ["a"])


def test_heat_grows_lighter_with_gaze() -> None:
    grey_CHW, gaze_HW = torch.full((3, 16, 16), 90, dtype=torch.uint8), torch.zeros(16, 16)
    gaze_HW[:, 5:10], gaze_HW[:, 10:] = 1, 2
    heat = Image.open(io.BytesIO(pictures.heat(grey_CHW, gaze_HW))).convert("L")
    never, once, twice = (heat.crop((8 * x, 8, 8 * x + 1, 9)).tobytes()[0] for x in (2, 7, 12))
    assert heat.size == (128, 128) and never < once < twice
    assert pictures.heat(grey_CHW, gaze_HW.to(torch.uint16)) == pictures.heat(grey_CHW, gaze_HW)


def browse(folder: Path, *flags: str) -> str:
    """Opens folder/page.html in a headless Chromium; its standard output."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        assert not os.environ.get("CI"), "Chromium is missing, and CI needs it"
        pytest.skip("Chromium is not installed")
    quiet = ("background-networking", "component-update", "sync", "gpu", "quic")
    start = [chromium, "--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{what}" for what in quiet)]
    where = [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=1000", "--window-size=1000,1400"]
    command = [*start, *where, *flags, (folder / "page.html").as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=folder).stdout


def test_page_renders_in_a_browser_and_no_script_runs(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(report.render(manifest(), canvas(), story(canvas())), encoding="utf-8")
    html = Page(browse(tmp_path, "--dump-dom"))
    assert html.sections[""].strip().startswith("little: distillation report")  # HANDLER would have changed it
    assert not html.all("script") and len(html.all("img")) == 22 and len(html.all("svg")) == 3
    browse(tmp_path, f"--screenshot={tmp_path / 'page.png'}")
    with Image.open(tmp_path / "page.png") as shot:
        assert shot.size == (1000, 1400) and len(shot.convert("RGB").getcolors(2**24) or []) > 500
