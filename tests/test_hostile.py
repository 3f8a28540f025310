"""Runs as processes over a dataset that means harm, with secrets wherever they can be: what comes of it holds none of
these, no name became a path, and nothing was unpickled."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import hostile
import pytest
import s3_server
from browser import browsing
from hostile import CLASSES, MARK, PASSWORD, SECRETS, SIGNATURE, USER, watched
from hub_server import client_environment, url_of
from hub_state import Hub
from markdown_it import MarkdownIt
from s3_server import S3
from servers import prefect_server
from stack import free_port

from dd_tasks.visible import visible

pytestmark = pytest.mark.long

HIDDEN = (*SECRETS.values(), PASSWORD, USER, SIGNATURE)
QUICK = (
    "--ipc", 1, "--committee", "tiny", "--student", "convnet3_w32", "--seeds", 1, "--student-epochs", 1, "--no-flip",
    "--student-batch", 10, "--full-epochs", 0, "--no-bytes-row", "--set", "observers.epochs=1", "--device", "cpu",
    "--set", "schedule.phases.0.steps=3", "--set", "schedule.phases.1.steps=2", "--set", "labeller.epochs=3",
)  # fmt: skip


@dataclass(frozen=True)
class Done:
    """What was run, where, what it said, and what the store holds."""

    root: Path
    said: dict[str, str]
    codes: dict[str, int]
    stored: dict[str, bytes]

    @property
    def out(self) -> Path:
        return self.root / "out"

    def watched(self, name: str) -> list[list[str]]:
        """What was unpickled, and paths that had MARK."""
        return list(json.loads((self.root / f"{name}.json").read_text()))


@pytest.fixture(scope="module")
def done(digits: Path, tmp_path_factory: pytest.TempPathFactory, s3_served: S3, served: Hub) -> Iterator[Done]:
    from conftest import HUB

    root = tmp_path_factory.mktemp("hostile")
    (root / "work" / "deep").mkdir(parents=True)
    (root / "tmp").mkdir()
    folder = hostile.shards(next(digits.glob("train/*.tar")), root / "shards", root)
    bucket, said, codes = s3_served.bucket("hostile"), {}, {}
    environment = s3_server.environment(s3_served.line.port) | client_environment(url_of(HUB), str(root / "hf"))
    environment |= SECRETS | {"TMPDIR": str(root / "tmp")}
    with hostile.served(folder) as url, prefect_server(root / "prefect", free_port()) as there:
        shards = f"{url}/train-0000.tar?X-Amz-Signature={SIGNATURE}"
        run = ["run", "e2d", *QUICK, "--store", f"{bucket}/store", "--out", root / "out", "--shards"]
        for name, command in {
            "run": [*run, shards, "--profile", "--report", root / "report.html", "--verbose"],
            "gone": [*run[:-2], root / "gone", "--shards", f"{url}/gone.tar?X-Amz-Signature={SIGNATURE}"],
            "publish": ["publish", root / "out", "org/hostile", "--tag", "v1"],
            "validate": ["validate", root / "out"],
            "canary": ["canary"],
        }.items():
            known = there if name in ("run", "gone") else {}
            codes[name], said[name] = watched(root, name, command, environment | known)
    there = fsspec.filesystem("s3", key="any", secret="any", endpoint_url=f"http://127.0.0.1:{s3_served.direct}")
    yield Done(root, said, codes, {path: there.cat_file(path) for path in there.find(bucket)})
    s3_served.reset()
    served.clear()


def test_it_runs_and_is_published_and_what_is_not_there_is_one_line(done: Done) -> None:
    assert done.codes == {"run": 0, "gone": 2, "publish": 0, "validate": 0, "canary": 0}, done.said
    assert json.loads((done.out / "retort.json").read_text())["classes"] == list(CLASSES)
    assert "Traceback" not in "".join(done.said.values())


def test_nothing_is_unpickled(done: Done) -> None:
    assert done.watched("canary") == [["collections.OrderedDict"], [str(done.root / f"canary.json{MARK}")]]
    for name in ("run", "gone", "publish", "validate"):
        assert done.watched(name)[0] == [], name


def test_no_name_of_a_dataset_is_a_path(done: Done) -> None:
    for name in ("run", "gone", "publish", "validate"):
        assert done.watched(name)[1] == [], name
    around = [path for path in (*done.root.parent.rglob("*"), *Path("/tmp").glob("*")) if MARK in path.name]
    assert around == [done.root / f"canary.json{MARK}"]
    assert not list((done.root / "work").rglob("*.png"))


def test_no_secret_is_said_or_written(done: Done, served: Hub) -> None:
    written = {str(path): path.read_bytes() for path in done.root.rglob("*") if path.is_file()}
    published = {
        f"{path} of {oid}": file.content
        for repository in served.repositories.values()
        for oid, commit in repository.commits.items()
        for path, file in commit.files.items()
    }
    said = {name: text.encode() for name, text in done.said.items()}
    places = written | published | said | done.stored
    assert len(published) > 5 and len(done.stored) > 10 and any("prefect.db" in path for path in places)
    found = [(place, secret) for place, content in places.items() for secret in HIDDEN if secret.encode() in content]
    assert found == []
    assert b"***" in written[str(done.out / "retort.json")] and "/gone.tar?***" in done.said["gone"]


def test_the_environment_of_these_tests_holds_what_is_looked_for() -> None:
    assert len(set(HIDDEN)) == len(HIDDEN) == 9 and not [one for one in HIDDEN if one in str(dict(os.environ))]


SHOWN = [" ".join(visible(name).split()) for name in CLASSES]
RUN = "document.title === 'ran' || document.querySelector('script, [onerror], a[href^=\"javascript\"], base, form')"


def test_the_report_shows_names_as_text_in_a_browser(done: Done, tmp_path: Path) -> None:
    with browsing(tmp_path) as tab:
        tab.open((done.out / "assets" / "report.html").as_uri())
        tab.wait(*SHOWN)
        assert not tab.value(f"Boolean({RUN})") and tab.value("document.title") == "out: distillation report"
        policy = tab.value("document.querySelector('meta[http-equiv]').content")
        assert policy.startswith("default-src 'none'; ") and "script" not in policy
        assert "\u202e" not in tab.value("document.documentElement.outerHTML")


def test_the_card_shows_names_as_text_in_a_browser(done: Done, tmp_path: Path) -> None:
    """Rendered with every liberty that Markdown gives."""
    text = (done.out / "README.md").read_text(encoding="utf-8")
    body = MarkdownIt("commonmark", {"html": True}).enable(["table"]).render(text.split("---\n", 2)[2])
    (tmp_path / "card.html").write_text(f"<!doctype html><meta charset=utf-8><title>card</title>{body}", "utf-8")
    with browsing(tmp_path) as tab:
        tab.open((tmp_path / "card.html").as_uri())
        tab.wait(", ".join(SHOWN))
        assert not tab.value(f"Boolean({RUN})") and tab.value("document.title") == "card"
        assert tab.value("document.querySelectorAll('img').length") == 1  # the preview
