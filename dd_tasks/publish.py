"""Publishes an artifact: to a dataset repository of the Hub in one commit, or to a folder in one rename.

What the target held before stays as it was on any failure; publishing what it holds already changes nothing.
"""

import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import unquote

from dd_tasks.artifact import CARD, MANIFEST, PARTS, check_out, read_manifest
from dd_tasks.card import for_repository
from dd_tasks.changelog import changelog
from dd_tasks.errors import InputError
from dd_tasks.hub import PAUSES, Blob, HubError, Landed, Onto, Refs, Repository
from dd_tasks.redaction import hide
from dd_tasks.validate import loads, validate
from dd_tasks.whole import all_or_nothing, lies_in
from schemas.manifest import Manifest
from schemas.release import Released, ReleaseSpec

log = logging.getLogger(__name__)
T = TypeVar("T")
MAIN = "main"
REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
REFERENCE = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)
TOKEN = re.compile(r"[!-~]+")  # anything else cannot be sent, and the client would quote it in its error


class Step(Protocol):
    """Runs a named step of a release; a flow makes a task of it."""

    def __call__(self, name: str, make: Callable[[], T], /) -> T: ...


def at_once(_: str, make: Callable[[], T], /) -> T:
    return make()


@dataclass(frozen=True)
class Release:
    """An artifact as its target will hold it: of every path the content, and what that is."""

    manifest: Manifest
    files: Mapping[str, bytes | Path]
    blobs: Mapping[str, Blob]


def folder_of(target: str) -> Path | None:
    """The folder that a `file:///...` names; None for a repository's name. InputError for what is neither."""
    if not target.startswith("file:"):
        return None
    path = unquote(target.removeprefix("file://"))
    if not path.startswith("/") or not path.strip("/"):
        raise InputError(f"target {target!r}: expected file:///FOLDER with the folder's whole path")
    return Path(path)


def check(spec: ReleaseSpec) -> None:
    """InputError where target, branch and tag have no possible name, or do not go together. Asks no Hub."""
    if folder_of(spec.target):
        if spec.private or spec.branch or spec.pull_request or spec.tag or spec.token_block:
            raise InputError(f"target {spec.target}: a folder has no branches, pull requests, tags, tokens or privacy")
        return
    if not REPOSITORY.fullmatch(spec.target) or re.search(r"--|\.\.|(^|/)[.-]|[.-](/|$)|\.git$", spec.target):
        raise InputError(
            f"target {spec.target!r}: expected ORG/NAME of letters, digits, '-', '_', '.', or file:///FOLDER"
        )
    for option, name in (("--branch", spec.branch), ("--tag", spec.tag)):
        if name is not None and (not REFERENCE.fullmatch(name) or ".." in name or name.startswith("refs/")):
            raise InputError(f"{option} {name!r}: expected a name of letters, digits, '-', '_', '.', '/'")
    if spec.pull_request and (spec.tag or spec.branch):
        raise InputError(f"--pr and --{'tag' if spec.tag else 'branch'}: a pull request is to main, and is not tagged")


def checked_token(token: str, place: str) -> str:
    """The token without blanks around it. InputError, which does not show it, where it is none."""
    if not TOKEN.fullmatch(token := token.strip()):
        raise InputError(f"{place}: {'holds no token that can be sent' if token else 'is empty'}")
    hide(token)
    return token


def publish(folder: Path, spec: ReleaseSpec, token: str = "", step: Step = at_once) -> Released:
    """Publish the artifact `folder`, unless the target holds it already.

    Raises InputError where that is refused before anything is changed, and HubError where the Hub fails.
    """
    check(spec)
    if out := folder_of(spec.target):
        if lies_in(out, folder) and not lies_in(folder, out):
            raise InputError(f"target {spec.target}: lies in the artifact {folder}; choose another place")
        release = step("validate", lambda: _release(folder, spec.target, None))
        return step("put in place", lambda: _put(release, spec, out))
    release = step("validate", lambda: _release(folder, spec.target, spec.target))
    repository = Repository(spec.target, token)
    base = step("compare", lambda: _base(release, spec, repository))
    landed = step("commit", lambda: _commit(release, spec, base, repository))
    step("read back", lambda: _read_back(release, landed.revision, repository))
    if spec.tag and spec.tag not in base.refs.tags:
        step("tag", lambda: repository.tag(spec.tag or "", landed.revision))
    return Released(
        target=spec.target, revision=landed.revision, url=repository.url(landed.revision), tag=spec.tag,
        pull_request=landed.pull_request, changed=not base.landed, changelog=base.changes,
    )  # fmt: skip


def _release(folder: Path, target: str, repository: str | None) -> Release:
    """The artifact with its card made for the repository. InputError unless it is valid."""
    if problems := validate(folder):
        more = f" (and {len(problems) - 1} more, see retort validate)" if len(problems) > 1 else ""
        raise InputError(f"{folder} is not valid and was not published to {target}: {problems[0]}{more}")
    manifest, card = read_manifest(folder), (folder / CARD).read_bytes()
    if repository:
        card = for_repository(card.decode(), repository).encode()
    files: dict[str, bytes | Path] = {name: folder / name for name in [*sorted(manifest.files), MANIFEST]}
    files[CARD] = card
    return Release(manifest, files, {name: Blob.of(content) for name, content in files.items()})


def _stale(release: Release, found: Mapping[str, Blob]) -> list[str]:
    """Files of an artifact, by their place, that this one has not; what others put elsewhere is theirs."""
    return sorted(name for name in found if name.split("/")[0] in PARTS and name not in release.blobs)


def _new(release: Release, found: Mapping[str, Blob]) -> list[str]:
    return [name for name, blob in release.blobs.items() if not blob.same(found.get(name))]


def _holds(release: Release, found: Mapping[str, Blob]) -> bool:
    return not _stale(release, found) and not _new(release, found)


def _changes_from(previous: Path, release: Release) -> list[str]:
    """The changelog since the artifact whose manifest is in the folder `previous`."""
    try:
        return changelog(read_manifest(previous), release.manifest)
    except InputError:  # of another version of this format
        return [f"the {MANIFEST} before this one cannot be read", *changelog(None, release.manifest)[1:]]


# ---- the Hub


@dataclass(frozen=True)
class Base:
    """What the Hub holds before a release; `landed` where that is the release itself."""

    refs: Refs
    head: str | None
    private: bool | None
    found: Mapping[str, Blob]
    changes: list[str]
    landed: Landed | None


def _base(release: Release, spec: ReleaseSpec, repository: Repository) -> Base:
    """Look at everything that a release builds on. InputError where that refuses it."""
    private = repository.is_private()
    if private is None and spec.pull_request:
        raise InputError(f"--pr: there is no dataset {spec.target} to open a pull request in (or not for this token)")
    if private is False and spec.private:
        raise InputError(f"--private: {spec.target} is there and is public; make it private in its settings first")
    refs = Refs({}, {}) if private is None else repository.refs()
    head = refs.branches.get(spec.branch or MAIN, refs.branches.get(MAIN))
    found = repository.files(head) if head else {}
    landed = _landed(release, spec, repository, head, found)
    if spec.tag in refs.tags and refs.tags[spec.tag] != (landed.revision if landed else None):
        raise InputError(
            f"--tag {spec.tag}: {spec.target} has it at {refs.tags[spec.tag]}, another revision; choose another"
        )
    changes = [] if landed else _changes(release, repository, head, found)
    return Base(refs, head, private, found, changes, landed)


def _landed(
    release: Release, spec: ReleaseSpec, repository: Repository, head: str | None, found: Mapping[str, Blob]
) -> Landed | None:
    """The head of the branch, or else for a pull request an open one, that holds the release."""
    if head and _holds(release, found):
        return Landed(head)
    if not spec.pull_request:
        return None
    return next((pull for pull in repository.pull_requests() if _holds(release, repository.files(pull.revision))), None)


def _changes(release: Release, repository: Repository, head: str | None, found: Mapping[str, Blob]) -> list[str]:
    if head is None or MANIFEST not in found:
        return changelog(None, release.manifest)
    with tempfile.TemporaryDirectory() as folder:
        repository.fetch(MANIFEST, head, Path(folder))
        return _changes_from(Path(folder), release)


def _commit(release: Release, spec: ReleaseSpec, base: Base, repository: Repository) -> Landed:
    """All that changed, at once, with the changelog as its description; nothing where it is there."""
    branch, found, head = spec.branch or MAIN, base.found, base.head
    if base.landed:
        if branch not in (MAIN, *base.refs.branches):
            repository.branch(branch, base.landed.revision)
        return base.landed
    if base.private is None:
        repository.create(spec.private)
    if head is None:  # a repository has a first revision when it is created
        head = repository.refs().branches.get(MAIN)
        if head is None:
            raise HubError(f"{repository.name}: commit: it has no branch {MAIN}")
        found = repository.files(head)
    if branch not in (MAIN, *base.refs.branches):
        repository.branch(branch, head)

    def landed() -> Landed | None:
        now = repository.refs().branches.get(branch)
        return _landed(release, spec, repository, now, repository.files(now) if now else {})

    put = {name: release.files[name] for name in _new(release, found)}
    manifest = release.manifest
    message = "\n".join([f"{manifest.name}, {manifest.ipc} per class", "", *(f"- {line}" for line in base.changes)])
    onto = Onto(branch, head, spec.pull_request)
    return repository.commit(put, _stale(release, found), message, onto, landed)


def _read_back(release: Release, revision: str, repository: Repository) -> None:
    """Download every file of the revision and check all of it, then open it as a user would. HubError says what is
    wrong."""
    with tempfile.TemporaryDirectory() as folder:
        wrong = list(_fetched(release, revision, repository, Path(folder))) or validate(Path(folder))
    if wrong := wrong or _opened(release, revision, repository):
        raise HubError(repository.told(f"revision {revision} does not read back and was not tagged: {wrong[0]}"))


def _fetched(release: Release, revision: str, repository: Repository, folder: Path) -> Iterator[str]:
    """Each file that is not what was sent, once it is in the folder."""
    for name, blob in release.blobs.items():
        if not blob.same(Blob.of(repository.fetch(name, revision, folder))):
            yield f"{name}: its checksum is not that of the file that was sent"


def _opened(release: Release, revision: str, repository: Repository) -> list[str]:
    """What keeps `load_dataset` from opening it, more than once: it does not repeat all of its requests either."""
    for pause in PAUSES:
        wrong = loads(repository.name, release.manifest, revision=revision, token=repository.token)
        if not wrong:
            return []
        log.warning("%s", repository.told(f"{wrong[0]}; again in {pause:g} s"))
        time.sleep(pause)
    return loads(repository.name, release.manifest, revision=revision, token=repository.token)


# ---- a folder


def _put(release: Release, spec: ReleaseSpec, out: Path) -> Released:
    """The artifact in place of what the folder held, once it has passed every check beside it."""
    check_out(out, option="target")
    there = [file for file in out.rglob("*") if file.is_file()]
    changes: list[str] = []
    if changed := not _holds(release, {file.relative_to(out).as_posix(): Blob.of(file) for file in there}):
        changes = _changes_from(out, release) if there else changelog(None, release.manifest)
        with all_or_nothing(out) as folder:
            _copy(release, folder)
            if wrong := validate(folder) or loads(str(folder), release.manifest):
                raise OSError(f"{out}: what was written there does not read back: {wrong[0]}")
    revision = release.blobs[MANIFEST].sha256 or ""
    return Released(target=spec.target, revision=revision, url=out.as_uri(), changed=changed, changelog=changes)


def _copy(release: Release, folder: Path) -> None:
    for name, content in release.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
