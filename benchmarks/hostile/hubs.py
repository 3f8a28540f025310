"""A Hub that answers wrongly: other statuses, other JSON, cut bodies, sizes that lie, redirects in a circle. It is that
of the tests, on loopback, and every call of publish and fetch is made to it by the real client."""

import json
import time
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import strategies as st

from benchmarks.hostile.artifacts import prepare as artifacts
from benchmarks.hostile.family import Family, asked
from benchmarks.hostile.mutations import EDGES, NAMES, NUMBERS, SEEDS, harmed, places
from benchmarks.hostile.place import HUB

NAME, MODEL = "org/name", "org/model"
STATUSES = (
    200,
    201,
    204,
    206,
    301,
    302,
    303,
    307,
    308,
    400,
    401,
    403,
    404,
    409,
    410,
    412,
    416,
    429,
    500,
    502,
    503,
    504,
    599,
)
BODIES = (
    b"",
    b"{}",
    b"[]",
    b"null",
    b"<html>busy</html>",
    b"\xff\xfe",
    b'{"error": "a\\nb"}',
    b'{"sha": 1}',
    b'"x"',
    b"[" * 5000,
    b'[{"type": "file"}]',
)
LOCATIONS = (
    "",
    "/",
    "?",
    "/api/datasets/org/name",
    "relative",
    "http://127.0.0.1:1/",
    "http://[",
    "ftp://127.0.0.1/",
    "//",
    "\\",
    "http://127.0.0.1:99999/",
)
HEADERS = (
    "etag",
    "x-repo-commit",
    "x-linked-etag",
    "x-linked-size",
    "content-length",
    "content-type",
    "location",
    "x-error-code",
    "x-error-message",
    "retry-after",
    "content-encoding",
    "link",
)
VALUES = (
    "",
    "0",
    "-1",
    "99999999999999999999",
    "../../evil",
    '"../../../evil"',
    "a/b",
    "RepoNotFound",
    "EntryNotFound",
    "GatedRepo",
    "gzip",
    "br",
    "1e9",
    "x" * 5000,
    "nan",
)
ACTIONS = (
    "look",
    "refs",
    "files",
    "pulls",
    "fetch",
    "dataset",
    "dataset",
    "weights",
    "create",
    "branch",
    "tag",
    "commit",
    "publish",
)
PATHS = (
    "a.txt",
    "../evil.txt",
    "../../../../evil.txt",
    "/evil.txt",
    "a/../../evil.txt",
    "x" * 300,
    "a\nb",
    "é",
    "retort.json",
    ".git/config",
    "a\\..\\b",
)
KINDS = ("status", "status", "json", "json", "harm", "cut", "short", "redirect", "header", "header", "stall", "none")


def cases() -> st.SearchStrategy[Any]:
    """What is asked, which answers are wrong (from the n-th, so many of them), how, and a path that the Hub lists."""
    first, many = st.integers(0, 6), st.sampled_from((1, 1, 2, 1000))
    return st.tuples(st.sampled_from(ACTIONS), first, many, st.sampled_from(KINDS), SEEDS, st.sampled_from(PATHS))


class Wrong:
    """An ASGI application whose answers are those of another, but for some."""

    def __init__(self, hub: Any) -> None:
        from hub_server import application

        self.app, self.hub = application(hub), hub
        self.count, self.first, self.last, self.kind, self.seed = 0, 0, 0, "none", 0

    def expect(self, first: int, many: int, kind: str, seed: int) -> None:
        self.count, self.first, self.last, self.kind, self.seed = -1, first, first + many, kind, seed

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.count += 1
        if self.kind == "none" or not self.first <= self.count < self.last:
            return await self.app(scope, receive, send)
        import asyncio

        if self.kind == "stall":
            return await asyncio.sleep(0.6)
        sent: list[Any] = []

        async def keep(message: Any) -> None:
            sent.append(message)

        await self.app(scope, receive, keep)
        body = b"".join(message.get("body", b"") for message in sent[1:])
        await self.answer(sent[0]["status"], dict(sent[0]["headers"]), body, send)

    async def answer(self, status: int, headers: dict[bytes, bytes], body: bytes, send: Any) -> None:
        rng, declared = Random(self.seed + self.count), None
        match self.kind:
            case "status":
                status, body = rng.choice(STATUSES), rng.choice((body, *BODIES))
                headers[b"location"] = rng.choice(LOCATIONS).encode()
                headers[b"retry-after"] = rng.choice((b"0", b"1", b"99999", b"x", b"-1"))
            case "json":
                body = otherwise(body, rng)
            case "harm":
                body = harmed(body, self.seed)
            case "cut":
                declared, body = len(body), body[: rng.randint(0, len(body))]
            case "short":
                body = body[: len(body) // 2]
            case "redirect":
                status, headers[b"location"] = rng.choice((301, 302, 307, 308)), rng.choice(LOCATIONS).encode()
            case "header":
                for _ in range(rng.randint(1, 3)):
                    headers[rng.choice(HEADERS).encode()] = rng.choice(VALUES).encode()
        if self.kind != "header" or b"content-length" not in headers or rng.random() < 0.7:
            headers[b"content-length"] = str(len(body) if declared is None else declared).encode()
        if status in (204, 304):
            body, headers[b"content-length"] = b"", b"0"
        await send({"type": "http.response.start", "status": status, "headers": list(headers.items())})
        await send({"type": "http.response.body", "body": body})


def otherwise(body: bytes, rng: Random) -> bytes:
    """JSON with some of its parts replaced; other bytes harmed."""
    try:
        value = json.loads(body)
    except ValueError:
        return harmed(body, rng.getrandbits(32))
    odd = (None, True, [], {}, "", "x", [None], *NUMBERS, *EDGES, *NAMES[:8])
    for _ in range(rng.randint(1, 3)):
        path = rng.choice(places(value))
        if not path:
            value = rng.choice((value, rng.choice(odd)))
            continue
        inner = value
        for key in path[:-1]:
            inner = inner[key]
        if rng.random() < 0.3:
            del inner[path[-1]]
        else:
            inner[path[-1]] = rng.choice(odd)
    return json.dumps(value).encode()


@cache
def served() -> Wrong:
    """The Hub, in a thread of this process, at the address that its client took when it was imported."""
    import threading

    import datasets
    import uvicorn
    from hub_state import Hub
    from huggingface_hub import constants

    from dd_tasks import hub, publish

    for settings in (constants, datasets.config):
        settings.HF_HUB_OFFLINE = False  # type: ignore[attr-defined]
    hub.TIMEOUT, hub.PAUSES = 0.4, (0.001, 0.001)  # type: ignore[misc]
    publish.PAUSES = (0.001,)  # type: ignore[misc]
    slept = time.sleep
    time.sleep = lambda seconds: slept(min(seconds, 0.002))  # type: ignore[assignment]  # of the client's own tries
    wrong = Wrong(Hub())
    config = uvicorn.Config(wrong, http="h11", lifespan="off", log_level="critical", ws="none")
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, kwargs={"sockets": [HUB]}, daemon=True).start()
    while not server.started:
        slept(0.01)
    return wrong


def run(case: tuple[str, int, int, str, int, str], room: Path, prepared: Path) -> list[str]:
    import datasets
    from hub_state import WRITE, Commit, File
    from huggingface_hub import constants

    from dd_tasks.hub import Repository

    action, first, many, kind, seed, path = case
    wrong = served()
    wrong.kind = "none"
    wrong.hub.clear()
    constants.HF_HUB_CACHE = str(room / "cache")
    datasets.config.HF_DATASETS_CACHE = room / "datasets"
    if action != "publish":
        for of, name in (("datasets", NAME), ("models", MODEL)):
            made = wrong.hub.create(of, name)
            files = {
                "retort.json": File(b"{}", False),
                "a.parquet": File(b"large", True),
                "model.safetensors": File(b"weights", True),
            }
            if kind == "none":
                files[path] = File(b"theirs", False)
            made.add("refs/heads/main", Commit(files, "files"))
            made.pull_requests.append("one")
            made.add("refs/pr/1", Commit(files, "pull"))
    wrong.expect(first, many, kind, seed)
    return [asked(lambda: act(action, Repository(NAME, WRITE), room, prepared))]


def act(action: str, repository: Any, room: Path, prepared: Path) -> None:
    from hub_state import WRITE

    from dd_tasks import hub
    from dd_tasks.publish import publish
    from schemas.release import ReleaseSpec

    if action == "dataset":
        return expect_within(hub.fetch_dataset(NAME), room)
    if action == "weights":
        return expect_within(hub.fetch_weights(MODEL), room)
    if action == "publish":
        publish(prepared / "exact", ReleaseSpec(target=NAME, tag="v1"), WRITE)
        return
    if action == "commit":
        onto = hub.Onto("main", repository.refs().branches.get("main", ""))
        repository.commit({"x.txt": b"1", "y.parquet": b"2"}, ["retort.json"], "title\n\nmore", onto, lambda: None)
        return
    calls = {
        "look": repository.is_private, "refs": repository.refs, "files": lambda: repository.files("main"),
        "pulls": lambda: list(repository.pull_requests()), "create": lambda: repository.create(False),
        "fetch": lambda: repository.fetch("retort.json", "main", room / "into"),
        "branch": lambda: repository.branch("b", "main"), "tag": lambda: repository.tag("v1", "main"),
    }  # fmt: skip
    calls[action]()


def expect_within(found: Path, room: Path) -> None:
    assert found.resolve().is_relative_to(room.resolve()), found


FAMILY = Family("Hub answers", cases(), run, artifacts, cost=0.7)
