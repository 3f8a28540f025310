"""A small Hub on loopback that speaks the protocol of huggingface_hub's client, and fails when told to.

`python tests/hub_server.py --port 8800 --token NAME` starts one by itself; everything is kept in memory.
"""

import argparse
import asyncio
import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any
from urllib.parse import unquote

import uvicorn
import yaml
from hub_state import DATE, LARGE, WRITE, Commit, File, Files, Hub, Repository, sha256
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        self.answer = JSONResponse({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})


class Calls:
    """The endpoints, each for one call."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    def may_write(self, request: Request) -> bool:
        sent = request.headers.get("authorization", "")
        if sent and sent.removeprefix("Bearer ") not in self.hub.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return bool(sent)

    def repository(self, request: Request, write: bool = False) -> Repository:
        known = self.may_write(request)
        at = request.path_params
        kind = at.get("kind", "models")
        found = self.hub.repositories.get((kind, f"{unquote(at['org'])}/{unquote(at['name'])}"))
        if found is None or (found.private and not known):
            raise Refusal(404 if known else 401, "Repository not found", "RepoNotFound")
        if write and not known:
            raise Refusal(401, "Invalid username or password.")
        return found

    def revision(self, request: Request, repository: Repository) -> str:
        if (oid := repository.oid(unquote(request.path_params.get("revision", "main")))) is None:
            raise Refusal(404, "Invalid rev id", "RevisionNotFound")
        return oid

    async def create(self, request: Request) -> Response:
        if not self.may_write(request):
            raise Refusal(401, "Invalid username or password.")
        asked = await request.json()
        kind, name = f"{asked['type']}s", f"{asked['organization']}/{asked['name']}"
        url = f"{request.base_url}{kind}/{name}"
        if (kind, name) in self.hub.repositories:
            return JSONResponse({"error": "You already created this dataset repo", "url": url}, 409)
        self.hub.create(kind, name, asked.get("visibility") == "private")
        return JSONResponse({"url": url})

    async def info(self, request: Request) -> Response:
        repository = self.repository(request)
        oid = self.revision(request, repository)
        about = {"id": repository.name, "sha": oid, "private": repository.private, "lastModified": DATE}
        siblings = [{"rfilename": path} for path in repository.commits[oid].files]
        return JSONResponse(about | {"siblings": siblings, "tags": [], "gated": False, "disabled": False})

    async def refs(self, request: Request) -> Response:
        repository = self.repository(request)
        kinds = {
            "branches": "refs/heads/",
            "tags": "refs/tags/",
            "converts": "refs/convert/",
            "pullRequests": "refs/pr/",
        }
        return JSONResponse({kind: repository.named(prefix) for kind, prefix in kinds.items()})

    async def point(self, request: Request) -> Response:
        """Create a branch or a tag."""
        repository, asked = self.repository(request, write=True), await request.json()
        if "branch" in request.path_params:
            ref, at = f"refs/heads/{unquote(request.path_params['branch'])}", asked.get("startingPoint", "main")
        else:
            ref, at = f"refs/tags/{asked['tag']}", unquote(request.path_params["revision"])
        if ref in repository.refs:
            raise Refusal(409, f"Reference already exists: {ref}")
        if (oid := repository.oid(at)) is None:
            raise Refusal(404, "Invalid rev id", "RevisionNotFound")
        repository.refs[ref] = oid
        return JSONResponse({})

    async def discussions(self, request: Request) -> Response:
        repository = self.repository(request)
        about = {"author": {"name": "someone"}, "createdAt": DATE, "status": "open", "isPullRequest": True}
        about |= {"repo": {"name": repository.name, "type": repository.kind.removesuffix("s")}}
        found = [about | {"num": i, "title": title} for i, title in enumerate(repository.pull_requests, 1)]
        return JSONResponse({"discussions": found, "count": len(found), "start": 0})

    async def validate(self, request: Request) -> Response:
        try:
            yaml.safe_load((await request.json())["content"].split("---\n")[1])
        except (yaml.YAMLError, IndexError) as error:
            return JSONResponse({"errors": [{"message": str(error)}], "warnings": []}, 400)
        return JSONResponse({"errors": [], "warnings": []})

    async def preupload(self, request: Request) -> Response:
        repository = self.repository(request, write=True)
        there = repository.commits[self.revision(request, repository)].files
        found = []
        for asked in (await request.json())["files"]:
            old = there.get(asked["path"])
            mode = "lfs" if asked["path"].endswith(LARGE) else "regular"
            found.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": old and old.etag})
        return JSONResponse({"files": found})

    async def batch(self, request: Request) -> Response:
        self.repository(request, write=True)
        answers = []
        for asked in (await request.json())["objects"]:
            upload = {"href": f"{request.base_url}upload/{asked['oid']}"}
            actions = {"upload": upload, "verify": {"href": f"{request.base_url}verify"}}
            answers.append(asked | ({} if asked["oid"] in self.hub.objects else {"actions": actions}))
        return JSONResponse({"transfer": "basic", "objects": answers})

    async def upload(self, request: Request) -> Response:
        content = await request.body()
        if sha256(content) != request.path_params["oid"]:
            raise Refusal(400, "the checksum is another")
        self.hub.objects[sha256(content)] = content
        return Response()

    async def verify(self, request: Request) -> Response:
        asked = await request.json()
        if len(self.hub.objects.get(asked["oid"], b"")) != asked["size"] or asked["oid"] not in self.hub.objects:
            raise Refusal(404, "no such object of this size")
        return JSONResponse({})

    async def commit(self, request: Request) -> Response:
        """All of it or, where a line cannot be done, nothing."""
        repository = self.repository(request, write=True)
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        head = self.revision(request, repository)
        about = lines[0]["value"]
        if about.get("parentCommit", head) != head:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.commits[head].files)
        for line in lines[1:]:
            self.change(files, line["key"], line["value"])
        made = Commit(files, about["summary"], about["description"], head)
        page = f"{request.base_url}{repository.kind}/{repository.name}"
        ref = f"refs/heads/{unquote(request.path_params['revision'])}"
        answer = {"commitUrl": f"{page}/commit/{made.oid}", "commitOid": made.oid}
        if request.query_params.get("create_pr"):
            repository.pull_requests.append(about["summary"])
            ref = f"refs/pr/{len(repository.pull_requests)}"
            answer["pullRequestUrl"] = f"{page}/discussions/{len(repository.pull_requests)}"
        repository.add(ref, made)
        return JSONResponse(answer)

    def change(self, files: Files, key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if key == "file":
            files[path] = File(base64.b64decode(value["content"]), False)
        elif key == "lfsFile":
            if len(self.hub.objects.get(value["oid"], b"")) != value["size"]:
                raise Refusal(400, f"{path}: its object was not uploaded")
            files[path] = File(self.hub.objects[value["oid"]], True)
        elif key == "deletedFile":
            if files.pop(path, None) is None:
                raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        else:
            raise Refusal(400, f"unknown operation {key}")

    async def commits(self, request: Request) -> Response:
        repository = self.repository(request)
        at: str | None = self.revision(request, repository)
        found = []
        while at:
            commit = repository.commits[at]
            found.append({"id": at, "title": commit.title, "message": commit.description, "authors": [], "date": DATE})
            at = commit.parent
        return JSONResponse(found)

    def listed(self, request: Request) -> tuple[Files, dict[str, dict[str, Any]]]:
        """The files of the revision, and its entries by path, folders among them."""
        repository = self.repository(request)
        files = repository.commits[self.revision(request, repository)].files
        folders = {path[:i] for path in files for i, letter in enumerate(path) if letter == "/"}
        entries = {path: {"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders}
        return files, entries | {path: file.entry(path) for path, file in files.items()}

    async def tree(self, request: Request) -> Response:
        inside = unquote(request.path_params.get("path", ""))
        _, entries = self.listed(request)
        if inside and entries.get(inside, {}).get("type") != "directory":
            raise Refusal(404, f"{inside} does not exist", "EntryNotFound")
        start = f"{inside}/" if inside else ""
        deep = request.query_params.get("recursive", "").lower() in ("true", "1")
        found = [path for path in sorted(entries) if path.startswith(start) and (deep or "/" not in path[len(start) :])]
        return JSONResponse([entries[path] for path in found])

    async def paths(self, request: Request) -> Response:
        asked = (await request.form()).getlist("paths")
        _, entries = self.listed(request)
        return JSONResponse([entries[str(path)] for path in asked if path in entries])

    async def resolve(self, request: Request) -> Response:
        repository = self.repository(request)
        oid = self.revision(request, repository)
        file = repository.commits[oid].files.get(unquote(request.path_params["path"]))
        if file is None:
            missing = Refusal(404, "Entry not found", "EntryNotFound").answer
            missing.headers["X-Repo-Commit"] = oid
            return missing
        headers = {"X-Repo-Commit": oid, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        if file.large:
            headers |= {"X-Linked-ETag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
        asked, content, status = request.headers.get("range", ""), file.content, 200
        if asked.startswith("bytes="):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start = int(first) if first else len(content) - int(last)
            stop = int(last) + 1 if first and last else len(content)
            headers["Content-Range"] = f"bytes {start}-{min(stop, len(content)) - 1}/{len(content)}"
            content, status = content[start:stop], 206
        return Response(content, status, headers, "application/octet-stream")

    def routes(self) -> list[Route]:
        api, page = "/api/{kind}/{org}/{name}", "/{org}/{name}"
        table = [
            ("POST", "/api/repos/create", self.create), ("POST", "/api/validate-yaml", self.validate),
            ("GET", api, self.info), ("GET", f"{api}/revision/{{revision}}", self.info),
            ("GET", f"{api}/refs", self.refs), ("GET", f"{api}/discussions", self.discussions),
            ("POST", f"{api}/branch/{{branch}}", self.point), ("POST", f"{api}/tag/{{revision}}", self.point),
            ("POST", f"{api}/preupload/{{revision}}", self.preupload),
            ("POST", f"{api}/commit/{{revision}}", self.commit), ("GET", f"{api}/commits/{{revision}}", self.commits),
            ("GET", f"{api}/tree/{{revision}}", self.tree),
            ("GET", f"{api}/tree/{{revision}}/{{path:path}}", self.tree),
            ("POST", f"{api}/paths-info/{{revision}}", self.paths),
            ("PUT", "/upload/{oid}", self.upload), ("POST", "/verify", self.verify),
            ("POST", "/{kind}" + page + ".git/info/lfs/objects/batch", self.batch),
            ("POST", page + ".git/info/lfs/objects/batch", self.batch),
            ("GET", "/{kind}" + page + "/resolve/{revision}/{path:path}", self.resolve),
            ("GET", page + "/resolve/{revision}/{path:path}", self.resolve),
        ]  # fmt: skip
        return [Route(path, call, methods=[method]) for method, path, call in table]


def application(hub: Hub) -> Any:
    """The Hub as an ASGI application."""

    async def refused(_: Request, refusal: Any) -> Response:
        return refusal.answer

    app = Starlette(routes=Calls(hub).routes(), exception_handlers={Refusal: refused})

    async def faulty(scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"] = scope["raw_path"].decode()  # a slash within a revision stays %2F
        hub.calls.append(f"{scope['method']} {path}")
        fault = hub.fault
        if fault is None or not fault.strikes(hub.calls[-1]):
            return await app(scope, receive, send)
        if fault.kind == "reset":
            await receive()
            send.__self__.transport.abort()
        elif fault.kind == "lost":
            await app(scope, receive, _unheard)
            send.__self__.transport.abort()
        elif fault.kind == "slow":
            asked = [await receive()]
            while asked[-1].get("more_body"):
                asked.append(await receive())
            with suppress(TimeoutError):
                await asyncio.wait_for(receive(), fault.seconds)  # until the client hangs up
            await app(scope, partial(_repeated, asked, receive), send)
        else:
            headers = {"Retry-After": "1"} if fault.kind == "429" else {}
            await JSONResponse({"error": "told to fail"}, int(fault.kind), headers)(scope, receive, send)

    return faulty


async def _unheard(_: Any) -> None:
    pass


async def _repeated(asked: list[Any], receive: Any) -> Any:
    """What was asked before, and then what follows it."""
    return asked.pop(0) if asked else await receive()


def listening() -> socket.socket:
    """A port of loopback for a Hub to come; until it is served, it refuses."""
    listener = socket.socket(proto=socket.IPPROTO_TCP)  # named, so that small answers are sent at once
    listener.bind(("127.0.0.1", 0))
    return listener


def url_of(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def serving(hub: Hub, listener: socket.socket) -> Iterator[None]:
    """Serve the Hub from a thread of this process."""
    config = uvicorn.Config(application(hub), http="h11", lifespan="off", log_level="critical", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield
    server.should_exit = server.force_exit = True
    thread.join(60)


def client_environment(url: str, home: str) -> dict[str, str]:
    """What a process needs in its environment to take the Hub at `url` for the only one; caches lie in `home`."""
    return {
        "HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": home, "HF_TOKEN": "",
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0", "NO_PROXY": "*",
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8800)
    parser.add_argument("--token", default=WRITE, help="who sends it may read and write everything")
    given = parser.parse_args()
    uvicorn.run(application(Hub(tokens={given.token})), host="127.0.0.1", port=given.port, http="h11", ws="none")
