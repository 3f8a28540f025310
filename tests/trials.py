"""`python tests/trials.py SEEDS FOLDER OLD NEW`: publish an artifact while the Hub fails as a seed says, and look.

One line of JSON a seed. A process of its own, since it shortens every pause of the client by shortening `time.sleep`;
FOLDER takes its caches.
"""

import copy
import io
import json
import logging
import os
import random
import sys
import time
import traceback
from pathlib import Path

from hub_server import client_environment, listening, serving, url_of
from hub_state import WRITE, Fault, Hub

NAME = "org/name"
KINDS = ("429", "500", "503", "reset", "slow", "lost")
SPANS = (1, 1, 3, 1000)  # calls that fail one after another; the last is a Hub that is gone
CALLS = {False: 30, True: 48}  # of one publication, without and with `load_dataset`
LOADED = 10  # of so many seeds one also opens what it reads back by `load_dataset`
Content = dict[str, bytes]


def fault_of(seed: int) -> Fault:
    rng = random.Random(seed)
    kind, first, span = rng.choice(KINDS), rng.randint(1, CALLS[seed % LOADED == 0]), rng.choice(SPANS)
    return Fault(kind, first, first + span - 1, seconds=1.5 if span == 1 else 0.01)


def content_of(folder: Path) -> Content:
    """What the Hub should hold of a local artifact."""
    from dd_tasks import card

    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return files | {"README.md": card.for_repository(files["README.md"].decode(), NAME).encode()}


def history(hub: Hub, revision: str = "main") -> list[Content]:
    """What each commit up to a revision holds of ours, the newest first, without the one that made the repository."""
    repository = hub.repositories.get(("datasets", NAME))
    at, found = repository and repository.oid(revision), []
    while repository and at:
        files = repository.commits[at].files
        found.append({path: file.content for path, file in files.items() if path != ".gitattributes"})
        at = repository.commits[at].parent
    return found[:-1]


def said(error: BaseException | None) -> str:
    """All that an error, and every one that it came from, says."""
    if error is None:
        return ""
    told = [repr(error), *traceback.format_exception(error, chain=False)]
    return "\n".join([*told, said(error.__cause__), said(error.__context__)])


def trial(seed: int, hub: Hub, new: Path, old: list[Content]) -> dict[str, object]:
    """Publish with the fault, then without; what the Hub holds after each."""
    from dd_tasks import publish
    from schemas.release import ReleaseSpec

    spec, wanted, told = ReleaseSpec(target=NAME, tag="v2"), content_of(new), ""
    fault = hub.fault = fault_of(seed)
    try:
        publish.publish(new, spec, WRITE)
    except OSError as error:  # a HubError; anything else ends all trials
        told = said(error)
    hub.fault = None
    between, tagged = history(hub), history(hub, "v2")
    publish.publish(new, spec, WRITE)
    return {
        "seed": seed, "kind": fault.kind, "struck": fault.count >= fault.first, "told": told,
        "committed": between == [wanted, *old],
        "whole": between in (old, [wanted, *old]) and tagged in ([], [wanted, *old]),
        "completed": history(hub) == history(hub, "v2") == [wanted, *old],
    }  # fmt: skip


def main(seeds: int, folder: Path, old: Path, new: Path) -> None:
    hub, log, pause = Hub(), io.StringIO(), time.sleep
    with listening() as listener, serving(hub, listener):
        os.environ |= client_environment(url_of(listener), str(folder))
        from dd_tasks import hub as client
        from dd_tasks import publish
        from schemas.release import ReleaseSpec

        time.sleep = lambda seconds: pause(min(seconds, 0.001))
        client.TIMEOUT = 1.0
        for name in ("", "huggingface_hub", "datasets"):
            logging.getLogger(name).addHandler(logging.StreamHandler(log))
            logging.getLogger(name).setLevel(logging.DEBUG)
        publish.publish(old, ReleaseSpec(target=NAME), WRITE)
        published, objects, load = hub.repositories, hub.objects, publish.loads
        for seed in range(seeds):
            first = seed % 5 == 0  # nothing was there before
            hub.repositories, hub.objects = ({}, {}) if first else (copy.deepcopy(published), dict(objects))
            publish.loads = load if seed % LOADED == 0 else lambda *_, **__: []
            print(json.dumps(trial(seed, hub, new, [] if first else [content_of(old)])), flush=True)
    logged = log.getvalue()
    print(json.dumps({"logged": len(logged), "leaked": WRITE in logged}))


if __name__ == "__main__":
    main(int(sys.argv[1]), *map(Path, sys.argv[2:]))
