"""A dataset repository fetched by the Hub's own client from a Hub on loopback, and read as any artifact."""

from pathlib import Path

import pytest
import sample
from hub_state import LARGE, Commit, File, Hub, Repository

from dd_tasks import artifact, verify
from dd_tasks.errors import InputError
from dd_tasks.hub import fetch_dataset
from dd_tasks.validate import validate

NAMES = ["main", "v1"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, File]]:
    """Of each revision the files: an artifact of the revision's name."""
    found = {}
    for name in NAMES:
        out = tmp_path_factory.mktemp("artifact") / "out"
        canvas, labels = sample.tiny_canvas(), sample.tiny_labels()
        artifact.write(out, canvas, labels, sample.draft(name=name), {}, nearest=sample.tiny_nearest())
        paths = [path for path in out.rglob("*") if path.is_file()]
        found[name] = {
            path.relative_to(out).as_posix(): File(path.read_bytes(), path.suffix in LARGE) for path in paths
        }
    return found


@pytest.fixture
def there(hub: Hub, files: dict[str, dict[str, File]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """`org/digits` with both revisions, and a client that has not seen it yet."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    made = hub.create("datasets", "org/digits")
    rules = made.commits[made.refs["refs/heads/main"]].files
    made.add("refs/heads/main", Commit(rules | files["main"], "an artifact"))
    made.add("refs/tags/v1", Commit(rules | files["v1"], "another"))
    return made


@pytest.mark.parametrize(("repository", "name"), [("org/digits", "main"), ("org/digits@v1", "v1")])
def test_a_dataset_is_fetched_by_name_and_revision_and_is_whole(there: Repository, repository: str, name: str) -> None:
    folder = fetch_dataset(repository)
    manifest = artifact.read_manifest(folder)
    assert (folder.name, manifest.name) == (there.oid(name), name)
    assert validate(folder) == []
    assert [check.outcome for check in verify.opened(folder, manifest)] == ["passed", "passed"]


def test_files_are_downloaded_once(hub: Hub, there: Repository) -> None:
    for repository in ("org/digits", "org/digits@v1", "org/digits"):
        fetch_dataset(repository)
    sent = [call for call in hub.calls if call.startswith("GET") and "/resolve/" in call]
    contents = {
        file.etag for commit in ("main", "v1") for file in there.commits[there.oid(commit) or ""].files.values()
    }
    assert len(sent) == len(set(sent)) == len(contents)  # what both have is downloaded for the first alone


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize(
    ("repository", "line"),
    [
        ("org/nothing", "no dataset 'org/nothing' on the Hub: Repository Not Found for url: http://127.0.0.1:"),
        ("org/digits@no", "no dataset 'org/digits@no' on the Hub: Revision Not Found for url: http://127.0.0.1:"),
        ("a/b/c", "no dataset 'a/b/c' on the Hub: Repo id must be in the form"),
    ],
)
def test_what_is_not_there_is_one_line(repository: str, line: str) -> None:
    with pytest.raises(InputError) as refused:
        fetch_dataset(repository)
    assert str(refused.value).startswith(line) and "\n" not in str(refused.value)
