"""The Hugging Face Hub: the only module that imports huggingface_hub.

Its client reads the Hub's address (HF_ENDPOINT) when it is imported, sets no time-outs, and does not repeat the calls
that create repositories, branches, tags and commits: the time-outs and the repeating are here.
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dd_tasks.errors import InputError
from dd_tasks.redaction import redacted

if TYPE_CHECKING:
    import httpx2  # the HTTP client of huggingface_hub
    from huggingface_hub import HfApi

log = logging.getLogger(__name__)
T = TypeVar("T")
WEIGHTS = "model.safetensors"
TIMEOUT = 60.0  # seconds of one step of a request: to connect, to send some bytes, to wait for some
PAUSES = (1.0, 3.0, 9.0)  # seconds before a call is made again
LONGEST_PAUSE = 60.0  # a Hub that asks for a longer one has failed
PASSING = {408, 429, 500, 502, 503, 504}  # statuses that may be others a moment later
TYPE = "dataset"


class HubError(OSError):
    """The Hub did not do what it was asked. The message is one line, and never holds a token."""


def fetch_weights(repository: str) -> Path:
    """The safetensors of a model repository `ORG/NAME[@REVISION]`, downloaded once. InputError where there are none."""
    from huggingface_hub import hf_hub_download

    limit_requests()
    name, _, revision = repository.partition("@")
    try:
        return Path(hf_hub_download(name, WEIGHTS, revision=revision or None))
    except Exception as error:  # what is no answer of a Hub makes its client raise anything
        raise InputError(f"no {WEIGHTS} from {repository!r}: {_reason(error)}") from None


def fetch_dataset(repository: str) -> Path:
    """The files of a dataset repository `ORG/NAME[@REVISION]`, all of one commit, in the Hub's cache. InputError where
    there are none."""
    from huggingface_hub import snapshot_download

    limit_requests()
    name, _, revision = repository.partition("@")
    try:
        return Path(snapshot_download(name, repo_type=TYPE, revision=revision or None))
    except Exception as error:  # as above
        raise InputError(f"no dataset {repository!r} on the Hub: {_reason(error)}") from None


# ---- calls


@cache
def limit_requests() -> None:
    """Give every request of the client a time-out, those included that ask for none."""
    from huggingface_hub import set_client_factory

    set_client_factory(_client)


def _client() -> "httpx2.Client":
    from huggingface_hub.utils._http import default_client_factory  # it refuses requests when offline

    client = default_client_factory()
    client.event_hooks["request"].append(_limit)
    return client


def _limit(request: "httpx2.Request") -> None:
    limits = request.extensions["timeout"]
    request.extensions["timeout"] = {step: TIMEOUT if limit is None else limit for step, limit in limits.items()}


def _reason(error: BaseException) -> str:
    """What an error of the client says, in one line."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    while error.__cause__ and (isinstance(error, LocalEntryNotFoundError) or not isinstance(error, HfHubHTTPError)):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = (
        lines[1] if re.match(r"\d{3} Client Error", lines[0]) and len(lines) > 1 else lines[0]
    )  # after the bare status
    said = (getattr(error, "server_message", None) or "").splitlines()[:1]
    return line if not said or said[0] in line else f"{line} ({said[0]})"


def _status(error: BaseException) -> int:
    """The HTTP status that an error stands for; 0 for none."""
    return getattr(getattr(error, "response", None), "status_code", 0)


def _pause(error: Exception, pause: float | None) -> float | None:
    """Seconds to wait before the call is worth making again, at least `pause`; None where it is not."""
    import httpx2

    if pause is None:
        return None
    passing = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError, json.JSONDecodeError)
    if isinstance(error, passing):  # an answer that is no JSON came from something before the Hub
        return pause
    if _status(error) not in PASSING:
        return None
    asked = error.response.headers.get("Retry-After", "")  # type: ignore[attr-defined]
    wanted = max(pause, float(asked)) if asked.isdecimal() else pause
    return wanted if wanted <= LONGEST_PAUSE else None


def _text(said: object) -> str:
    """What a Hub says, where it is text."""
    if not isinstance(said, str):
        raise TypeError(f"the Hub answers {said!r} where there should be a name")
    return said


def _nothing() -> None:
    """Of a call whose failure changed nothing."""


# ---- repositories


@dataclass(frozen=True)
class Blob:
    """A file by what it holds: its git object id and, of a large file on the Hub and every local one, its sha256."""

    size: int  # in bytes
    oid: str
    sha256: str | None = None

    @classmethod
    def of(cls, content: bytes | Path) -> "Blob":
        """Of a local file, or of bytes."""
        count = len(content) if isinstance(content, bytes) else content.stat().st_size
        sha1, sha256 = hashlib.sha1(b"blob %d\0" % count, usedforsecurity=False), hashlib.sha256()
        for chunk in [content] if isinstance(content, bytes) else _chunks(content):
            sha1.update(chunk)
            sha256.update(chunk)
        return cls(count, sha1.hexdigest(), sha256.hexdigest())

    def same(self, other: "Blob | None") -> bool:
        """Whether a blob of the Hub holds what this local one holds."""
        if other is None:
            return False
        return self.sha256 == other.sha256 if other.sha256 else self.oid == other.oid


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            yield chunk


@dataclass(frozen=True)
class Refs:
    """Branches and tags by name, with the revisions they stand for."""

    branches: dict[str, str]
    tags: dict[str, str]


@dataclass(frozen=True)
class Landed:
    """A commit that is on the Hub; `pull_request` is the page of the one that it is in."""

    revision: str
    pull_request: str | None = None


@dataclass(frozen=True)
class Onto:
    """What a commit is put onto: a branch while it stands at `parent`, or a pull request that begins there."""

    branch: str
    parent: str
    pull_request: bool = False


@dataclass(frozen=True)
class Repository:
    """A dataset repository `ORG/NAME`, for the holder of a token. Every method raises HubError where the Hub fails."""

    name: str
    token: str = field(repr=False)

    @property
    def api(self) -> "HfApi":
        from huggingface_hub import HfApi

        limit_requests()
        return HfApi(token=self.token)

    def told(self, words: str) -> str:
        """Words about it, led by its name, without secrets; a careless Hub may repeat the token."""
        return redacted(f"{self.name}: {words}".replace(self.token, "***") if self.token else f"{self.name}: {words}")

    def url(self, revision: str) -> str:
        """The page of a revision."""
        return redacted(f"{self.api.endpoint}/datasets/{self.name}/tree/{revision}")

    def is_private(self) -> bool | None:
        """None where there is no such repository."""
        from huggingface_hub.errors import RepositoryNotFoundError

        def ask() -> bool | None:
            try:
                return bool(self.api.dataset_info(self.name, timeout=TIMEOUT).private)
            except RepositoryNotFoundError:
                return None

        return self._call("look", ask)

    def create(self, private: bool) -> None:
        """Unless it is there."""
        make = self.api.create_repo
        self._call("create", lambda: make(self.name, private=private or None, repo_type=TYPE, exist_ok=True))

    def refs(self) -> Refs:
        def ask() -> Refs:
            found = self.api.list_repo_refs(self.name, repo_type=TYPE)
            return Refs(
                *({_text(ref.name): _text(ref.target_commit) for ref in refs} for refs in (found.branches, found.tags))
            )

        return self._call("list refs", ask)

    def pull_requests(self) -> Iterator[Landed]:
        """The open ones, the newest first, with the revision that each stands at."""
        listed = self._call("list pull requests", lambda: sorted(self._discussions(), key=lambda found: -found.num))
        for found in listed:
            yield Landed(self._head(found.git_reference), found.url)

    def _head(self, reference: str) -> str:
        about = self._call("look", lambda: self.api.dataset_info(self.name, revision=reference, timeout=TIMEOUT))
        return about.sha or ""

    def _discussions(self) -> Iterator[Any]:
        kind: dict[str, Any] = {"discussion_type": "pull_request", "discussion_status": "open"}
        return self.api.get_repo_discussions(self.name, repo_type=TYPE, **kind)

    def files(self, revision: str) -> dict[str, Blob]:
        """Every file of a revision by its path."""
        from huggingface_hub.hf_api import RepoFile

        def ask() -> dict[str, Blob]:
            found = self.api.list_repo_tree(self.name, recursive=True, revision=revision, repo_type=TYPE)
            files = [entry for entry in found if isinstance(entry, RepoFile)]
            return {_text(f.path): Blob(f.size, f.blob_id, f.lfs.sha256 if f.lfs else None) for f in files}

        return self._call("list files", ask)

    def fetch(self, path: str, revision: str, folder: Path) -> Path:
        """Download a file of a revision to its place in a folder, whatever the client's cache holds."""

        def get() -> str:
            return self.api.hf_hub_download(
                self.name, path, repo_type=TYPE, revision=revision, local_dir=folder, cache_dir=folder
            )

        return Path(self._call(f"fetch {path}", get))

    def branch(self, name: str, revision: str) -> None:
        """Create a branch at a revision, unless it is there."""

        def make() -> None:
            self.api.create_branch(self.name, branch=name, revision=revision, repo_type=TYPE, exist_ok=True)

        self._call(f"create branch {name}", make)

    def tag(self, name: str, revision: str) -> None:
        """Tag a revision. A tag whose answer was lost is there; one of the same name elsewhere is a failure."""

        def make() -> bool:
            self.api.create_tag(self.name, tag=name, revision=revision, repo_type=TYPE)
            return True

        def there() -> bool | None:
            return self.refs().tags.get(name) == revision or None

        self._call(f"tag {name}", make, there)

    def commit(
        self,
        put: Mapping[str, bytes | Path],
        delete: list[str],
        message: str,
        onto: Onto,
        landed: Callable[[], Landed | None],
    ) -> Landed:
        """Put and delete files in one commit; nobody ever sees a part of it.

        `message` is a title and, after an empty line, a description. Where the Hub's answer is lost, or is that the
        branch has moved, `landed` looks whether the commit is there before it is sent again.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        title, _, description = message.partition("\n\n")
        operations: list[Any] = [CommitOperationAdd(path, content) for path, content in put.items()]
        operations += [CommitOperationDelete(path, is_folder=False) for path in delete]

        def send() -> Landed:
            sent = self.api.create_commit(
                self.name, operations, commit_message=title, commit_description=description, repo_type=TYPE,
                revision=onto.branch, parent_commit=onto.parent, create_pr=onto.pull_request,
            )  # fmt: skip
            return Landed(sent.oid, sent.pr_url)

        return self._call("commit", send, landed)

    def _call(self, what: str, call: Callable[[], T], landed: Callable[[], T | None] = _nothing) -> T:
        """Make the call; where its failure may pass, again after a pause, unless `landed` finds that it was done.

        HubError says why it failed, without secrets and without a chain of causes.
        """
        pauses = iter(PAUSES)
        while True:
            try:
                return call()
            except Exception as error:  # what is no answer of a Hub makes its client raise anything
                failure = error
            if (found := landed()) is not None:
                return found
            wait = _pause(failure, next(pauses, None))
            said = self.told(f"{what}: {_reason(failure)}")
            if wait is None:
                raise HubError(said)
            log.warning("%s; again in %g s", said, wait)
            time.sleep(wait)
