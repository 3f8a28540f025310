"""Publishing to a Hub on loopback, by the real clients, and to a folder: whole or not at all, and once."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import client_environment
from hub_state import WRITE, Commit, Fault, File, Hub, Repository
from sample import IPC, K, draft, tiny_canvas, tiny_labels, tiny_nearest

from dd_tasks import artifact, card
from dd_tasks import publish as publishing
from dd_tasks.errors import InputError
from dd_tasks.hub import HubError
from dd_tasks.publish import check, checked_token, publish
from schemas.release import Released, ReleaseSpec

NAME = "org/name"
LICENSE = {"LICENSE": File(b"theirs", False), "notes/a.parquet": File(b"theirs", True)}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("old") / "out"
    artifact.write(
        out,
        tiny_canvas(),
        tiny_labels(),
        draft(),
        {"preview.png": b"picture", "gone.html": b"x"},
        nearest=tiny_nearest(),
    )
    return out


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other labels, in other files."""
    out = tmp_path_factory.mktemp("new") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifact, "SHARD_BYTES", 8000)
        artifact.write(
            out,
            tiny_canvas(),
            tiny_labels(4),
            draft(4, preset="e2d"),
            {"preview.png": b"another"},
            nearest=tiny_nearest(),
        )
    return out


@pytest.fixture
def there(hub: Hub, old: Path) -> Repository:
    """The old artifact, published as v1 beside files of others."""
    made = hub.create("datasets", NAME)
    made.add("refs/heads/main", Commit(made.commits[made.refs["refs/heads/main"]].files | LICENSE, "theirs"))
    released(old, tag="v1")
    hub.calls.clear()
    return made


def released(folder: Path, step: Any = lambda _, make: make(), **options: Any) -> Released:
    return publish(folder, ReleaseSpec(target=NAME, **options), WRITE, step)


def meanwhile(before: str, happens: Callable[[], object]) -> Any:
    """Something that happens just before a step of the release."""

    def step(name: str, make: Callable[[], Any]) -> Any:
        if name == before:
            happens()
        return make()

    return step


def content(repository: Repository, revision: str = "main") -> dict[str, bytes]:
    files = repository.commits[repository.oid(revision) or ""].files
    return {path: file.content for path, file in files.items() if path != ".gitattributes"}


def local(folder: Path, name: str = NAME) -> dict[str, bytes]:
    files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    return files | {"README.md": card.for_repository(files["README.md"].decode(), name).encode()}


def changing(hub: Hub) -> list[str]:
    return [call for call in hub.calls if not call.startswith(("GET", "HEAD"))]


def test_a_first_release_is_one_commit_with_its_name_in_the_card(hub: Hub, old: Path) -> None:
    found = released(old, tag="v1")
    made = hub.repositories["datasets", NAME]
    assert content(made) == local(old) and b'load_dataset("org/name"' in local(old)["README.md"]
    assert len(made.commits) == 2 and not made.private
    assert made.oid("main") == made.oid("v1") == found.revision and found.changed
    assert made.commits[found.revision].title == f"digits, {IPC} per class"
    assert made.commits[found.revision].description.startswith("- first release\n- resnet_18 on the distilled images")
    assert found.url == f"{os.environ['HF_ENDPOINT']}/datasets/org/name/tree/{found.revision}"


def test_the_same_again_changes_nothing(hub: Hub, there: Repository, old: Path) -> None:
    head = there.oid("main")
    for tag in (None, "v1"):
        again = released(old, tag=tag)
        assert (again.changed, again.revision, again.changelog) == (False, head, [])
    assert not changing(hub)
    released(old, tag="also")
    assert len(changing(hub)) == 1 and there.oid("also") == head


def test_a_change_is_one_commit_with_a_changelog_and_without_the_files_that_are_gone(
    there: Repository, old: Path, new: Path
) -> None:
    commits = len(there.commits)
    found = released(new, tag="v2")
    theirs = {path: file.content for path, file in LICENSE.items()}
    assert content(there) == local(new) | theirs and "assets/gone.html" not in content(there)
    assert content(there, "v1") == local(old) | theirs
    assert len(there.commits) == commits + 1 and there.oid("v2") == there.oid("main")
    lines = ["preset: sre2l -> e2d", "labels.epochs: 3 -> 4", "files of assets: 1 changed, 1 removed"]
    assert set(lines) <= set(found.changelog)
    assert there.commits[found.revision].description == "\n".join(f"- {line}" for line in found.changelog)


def test_a_tag_elsewhere_is_refused_before_anything_is_sent(hub: Hub, there: Repository, new: Path) -> None:
    with pytest.raises(InputError, match=f"^--tag v1: org/name has it at {there.oid('v1')}, another revision; choose"):
        released(new, tag="v1")
    assert not changing(hub)


def test_a_new_repository_is_private_if_told(hub: Hub, old: Path) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    released(old, private=True)
    assert hub.repositories["datasets", NAME].private
    with pytest.raises(RepositoryNotFoundError):
        HfApi(token=False).dataset_info(NAME)
    assert not released(old, private=True).changed


def test_a_public_repository_is_not_taken_for_a_private_one(hub: Hub, there: Repository, new: Path) -> None:
    with pytest.raises(InputError, match=r"^--private: org/name is there and is public"):
        released(new, private=True)
    assert not changing(hub)


def test_a_branch_is_made_from_main_and_main_stays(there: Repository, new: Path) -> None:
    head = there.oid("main")
    found = released(new, branch="try/1", tag="try-1")
    assert there.oid("main") == head and there.oid("try/1") == there.oid("try-1") == found.revision
    assert there.commits[found.revision].parent == head and local(new).items() <= content(there, "try/1").items()
    assert not released(new, branch="try/1", tag="try-1").changed


def test_a_branch_of_the_same_is_made_without_a_commit(there: Repository, old: Path) -> None:
    commits = len(there.commits)
    assert released(old, branch="same", tag="v1").revision == there.oid("same") == there.oid("main")
    assert len(there.commits) == commits


@pytest.mark.parametrize("on", ["name.py", ".huggingface.yaml"])  # which `load_dataset` asks for once
def test_opening_it_is_tried_again(
    hub: Hub, there: Repository, new: Path, on: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "PAUSES", (0.01,))
    hub.fault = Fault("reset", on=on)
    assert released(new, tag="v2").revision == there.oid("v2") and hub.fault.count
    assert "images: load_dataset fails: Server disconnected" in caplog.text and "; again in 0.01 s" in caplog.text


def test_a_pull_request_is_opened_once_and_nothing_is_tagged(there: Repository, new: Path) -> None:
    head = there.oid("main")
    found = released(new, pull_request=True)
    assert there.oid("main") == head and there.oid("refs/pr/1") == found.revision
    assert str(found.pull_request).endswith("/datasets/org/name/discussions/1")
    again = released(new, pull_request=True)
    assert (again.changed, again.revision, again.pull_request) == (False, found.revision, found.pull_request)
    assert list(there.refs) == ["refs/heads/main", "refs/tags/v1", "refs/pr/1"]


@pytest.mark.parametrize("options", [{"tag": "v2"}, {"branch": "try"}, {"pull_request": True}])
def test_a_commit_whose_answer_was_lost_is_found_and_not_sent_again(
    hub: Hub, there: Repository, new: Path, options: dict
) -> None:
    hub.fault = Fault("lost", on="/commit/")
    found = released(new, **options)
    assert hub.fault.count == 1 and found.changed
    heads = {ref for ref, oid in there.refs.items() if oid == found.revision}
    assert heads == {
        "tag": {"refs/heads/main", "refs/tags/v2"}, "branch": {"refs/heads/try"}, "pull_request": {"refs/pr/1"},
    }[next(iter(options))]  # fmt: skip


def test_no_pull_request_without_a_repository(hub: Hub, new: Path) -> None:
    with pytest.raises(InputError, match=r"^--pr: there is no dataset org/name to open a pull request in"):
        released(new, pull_request=True)
    assert not hub.repositories


def test_what_is_not_valid_asks_no_hub(hub: Hub, old: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(old, tmp_path / "broken"))
    (broken / "assets" / "preview.png").write_bytes(b"picturE")
    with pytest.raises(
        InputError, match=r"is not valid and was not published to org/name: assets/preview\.png: its ch"
    ):
        released(broken)
    assert not hub.calls


def test_a_commit_of_others_meanwhile_is_not_overwritten(there: Repository, new: Path) -> None:
    def theirs() -> None:
        files = there.commits[there.refs["refs/heads/main"]].files
        there.add("refs/heads/main", Commit(files | {"more": File(b"", False)}, "meanwhile", "", there.oid("main")))

    with pytest.raises(HubError, match=r"^org/name: commit: .*412.*A commit has happened since"):
        released(new, meanwhile("commit", theirs), tag="v2")
    assert there.commits[there.oid("main") or ""].title == "meanwhile" and there.oid("v2") is None
    assert released(new, tag="v2").changed and "more" in content(there)


@pytest.mark.parametrize("start", ["assets/", "README.md", "retort.json", "images/"])
def test_what_does_not_read_back_is_not_tagged(there: Repository, new: Path, start: str) -> None:
    name = min(path for path in local(new) if path.startswith(start))

    def spoil() -> None:
        commit = there.commits[there.refs["refs/heads/main"]]
        commit.files[name] = File(commit.files[name].content[:-1] + b"?", commit.files[name].large)

    with pytest.raises(HubError, match=f"does not read back and was not tagged: {name}: its checksum is not that"):
        released(new, meanwhile("read back", spoil), tag="v2")
    assert there.oid("v2") is None


def test_a_previous_manifest_that_cannot_be_read_is_said(there: Repository, new: Path) -> None:
    files = there.commits[there.refs["refs/heads/main"]].files
    there.add("refs/heads/main", Commit(files | {"retort.json": File(b"{}", False)}, "broken", "", there.oid("main")))
    assert released(new).changelog[0] == "the retort.json before this one cannot be read"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"target": "name"}, "target 'name': expected ORG/NAME of letters"),
        ({"target": "a/b/c"}, "target 'a/b/c': expected ORG/NAME"),
        ({"target": "org/a--b"}, "target 'org/a--b': expected ORG/NAME"),
        ({"target": "org/name.git"}, "target 'org/name.git': expected ORG/NAME"),
        ({"target": "-org/name"}, "target '-org/name': expected ORG/NAME"),
        ({"target": "file://host/folder"}, "target 'file://host/folder': expected file:///FOLDER"),
        ({"target": "file:///"}, "target 'file:///': expected file:///FOLDER"),
        ({"target": "file:x"}, "target 'file:x': expected file:///FOLDER"),
        ({"target": "file:///x", "tag": "v1"}, "target file:///x: a folder has no branches"),
        ({"target": NAME, "tag": "v 1"}, "--tag 'v 1': expected a name of letters"),
        ({"target": NAME, "branch": "a..b"}, "--branch 'a..b': expected a name"),
        ({"target": NAME, "branch": "refs/pr/1"}, "--branch 'refs/pr/1': expected a name"),
        ({"target": NAME, "pull_request": True, "tag": "v1"}, "--pr and --tag: a pull request is to main"),
        ({"target": NAME, "pull_request": True, "branch": "b"}, "--pr and --branch: a pull request is to main"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict, line: str) -> None:
    with pytest.raises(InputError) as refused:
        check(ReleaseSpec(**options))
    assert str(refused.value).startswith(line)


def test_a_token_that_cannot_be_sent_is_not_shown() -> None:
    assert checked_token(" hf_secret\n", "HF_TOKEN") == "hf_secret"
    for token in ("", "  ", "hf_secret two", "hf_sécret"):
        with pytest.raises(InputError, match=r"^HF_TOKEN: ") as refused:
            checked_token(token, "HF_TOKEN")
        assert "cret" not in str(refused.value)


# ---- folders


def test_a_folder_gets_the_same_as_a_hub_would(old: Path, new: Path, tmp_path: Path) -> None:
    out = tmp_path / "a b#c" / "out"
    first = publish(old, ReleaseSpec(target=out.as_uri()))
    assert local(out, "x") == local(old, "x") and first.changed and first.changelog[0] == "first release"
    inode = out.stat().st_ino
    again = publish(old, ReleaseSpec(target=out.as_uri()))
    assert (again.changed, again.revision, again.changelog) == (False, first.revision, [])
    assert out.stat().st_ino == inode
    changed = publish(new, ReleaseSpec(target=out.as_uri()))
    assert local(out, "x") == local(new, "x") and "labels.epochs: 3 -> 4" in changed.changelog
    assert os.listdir(out.parent) == ["out"]


def test_a_folder_stays_as_it_was_where_a_release_fails(old: Path, new: Path, tmp_path: Path) -> None:
    out, source = tmp_path / "out", Path(shutil.copytree(new, tmp_path / "source"))
    publish(old, ReleaseSpec(target=out.as_uri()))
    spoilt = source / "assets" / "preview.png"
    for spoil, says in (
        (lambda: spoilt.write_bytes(b"anotheR"), r"does not read back: assets/preview\.png: its checksum"),
        (spoilt.unlink, "No such file"),
    ):
        spoilt.write_bytes(b"another")
        with pytest.raises(OSError, match=says):
            publish(source, ReleaseSpec(target=out.as_uri()), "", meanwhile("put in place", spoil))
        assert local(out, "x") == local(old, "x") and sorted(os.listdir(tmp_path)) == ["out", "source"]


def test_a_folder_of_something_else_is_refused(old: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").touch()
    with pytest.raises(InputError, match=r"^target .* exists and is not an artifact"):
        publish(old, ReleaseSpec(target=tmp_path.as_uri()))


# ---- from outside

READER = f"""
from datasets import load_dataset
print(load_dataset("{NAME}")["train"].num_rows)
print(sum(1 for _ in load_dataset("{NAME}", "soft_labels", split="train", streaming=True)))
print(load_dataset("{NAME}", "soft_labels", split="train", revision="v1").num_rows)
import sys
print(sorted({{"dd_tasks", "flows", "schemas"}} & set(sys.modules)))
"""


def outside(code: list[str], home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | client_environment(os.environ["HF_ENDPOINT"], str(home)) | variables
    return subprocess.run([sys.executable, *code], env=environment, cwd=home, capture_output=True, text=True)


@pytest.mark.usefixtures("there")
def test_a_fresh_process_loads_it_by_name_by_stream_and_by_tag(new: Path, tmp_path: Path) -> None:
    released(new, tag="v2")
    done = outside(["-I", "-c", READER], tmp_path)
    assert done.stdout.splitlines() == [str(IPC * K), str(4 * IPC * K), str(3 * IPC * K), "[]"], done.stderr


def test_whatever_fails_the_hub_serves_the_old_or_the_new_and_a_second_run_completes_it(
    old: Path, new: Path, tmp_path: Path
) -> None:
    """Read-back by checksums in all trials, by `load_dataset` too in one of ten."""
    trials = Path(__file__).with_name("trials.py")
    done = outside([str(trials), "200", str(tmp_path), str(old), str(new)], Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    *found, log = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 200
    assert [trial["seed"] for trial in found if not (trial["whole"] and trial["completed"])] == []
    assert sum(trial["struck"] for trial in found) > 180 and {trial["kind"] for trial in found if trial["struck"]} >= {
        "429", "500", "503", "reset", "slow", "lost",
    }  # fmt: skip
    ends = {(bool(trial["told"]), trial["committed"]) for trial in found}
    assert ends == {(False, True), (True, True), (True, False)}  # failures before the commit, and after it
    assert log["logged"] > 10**6 and not log["leaked"]
    assert WRITE not in done.stdout + done.stderr
