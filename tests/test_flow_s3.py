"""The main job with its store on S3, on a line that is cut while it runs."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from s3_server import S3

from dd_tasks import garbage
from dd_tasks.folder import Unreachable
from dd_tasks.store import Ref, Store
from schemas.manifest import Manifest
from schemas.spec import RunSpec

pytestmark = pytest.mark.usefixtures("prefect_server")


def distil(quick: dict[str, object], out: Path, store: str) -> Manifest:
    from flows.distill import distill_dataset
    from flows.settings import Settings

    spec = RunSpec(**{**quick, "seeds": 1, "full_epochs": 0})  # type: ignore[arg-type]
    return distill_dataset(spec, out, Settings(store=store, device="cpu"))


def tables(manifest: Manifest) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in manifest.files.items() if name.endswith(".parquet")}


class Heard(logging.Handler):
    """What the tasks and the store said; each call is made at the first line that has its words."""

    def __init__(self, calls: dict[str, Callable[[], None]]) -> None:
        super().__init__()
        self.calls, self.lines = dict(calls), list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        for words in [words for words in self.calls if words in line]:
            self.calls.pop(words)()
        self.lines.append(line)

    @property
    def made(self) -> dict[str, str]:
        """What was made by its reference."""
        told = (re.fullmatch(r"(.*): made in .* \((\S+/\w+)\)", line) for line in self.lines)
        return {found[2]: found[1] for found in told if found}


@contextmanager
def hearing(calls: dict[str, Callable[[], None]]) -> Iterator[Heard]:
    heard, loggers = Heard(calls), [logging.getLogger(name) for name in ("flows.tasks", "dd_tasks.folder")]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.addHandler(heard)
    yield heard
    for logger in loggers:
        logger.setLevel(logging.NOTSET)
        logger.removeHandler(heard)


def test_a_run_whose_store_is_cut_off_resumes_and_ends_with_the_same_bytes(
    s3: S3, quick: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import stored

    url = f"{s3.bucket('a-run')}/store"

    # A cut that outlasts the tries stops the run with a line; what it made is kept.
    with monkeypatch.context() as impatient, hearing({"panel 0 (slots 0..9): made": s3.line.cut}) as first:
        impatient.setattr(stored, "Store", partial(Store, pauses=(0.1,)))
        with pytest.raises(Unreachable, match="the same command continues where this one stopped"):
            distil(quick, tmp_path / "far", url)
    stored.store_of.cache_clear()
    s3.line.restore()
    assert "panel 0 (slots 0..9)" in first.made.values() and not (tmp_path / "far").exists()

    # The same command; a cut that ends while the store waits for its next try is waited out.
    meanwhile = {"panel 1 (slots 10..19): made": s3.line.cut, "; again in ": s3.line.restore}
    with hearing(meanwhile) as second:
        far = distil(quick, tmp_path / "far", url)
    assert [line for line in second.lines if "; again in " in line]
    assert second.made and not second.made.keys() & first.made.keys()

    near = distil(quick, tmp_path / "near", str(tmp_path / "store"))
    assert tables(far) == tables(near) and tables(near)
    for store, name in ((Store(url), "far"), (Store(str(tmp_path / "store")), "near")):
        expect_all_held(store, name)


def expect_all_held(store: Store, name: str) -> None:
    """By the root of the run; and one student's score tells all that led to it."""
    found = garbage.contents(store)
    (root,) = found.roots.values()
    assert root.name == name and root.preset == "e2d"
    assert garbage.reachable(found.entries, root.refs) == found.entries.keys()
    scores = [ref for ref in root.refs if ref.kind == "score"]
    led = [{r.kind for r in garbage.reachable(found.entries, [ref])} for ref in scores]
    ours = {"score", "labels", "views", "canvas", "panel", "candidates", "observer", "statistics"}
    kept = {"pixels"} if store.local else set()  # a store elsewhere keeps no decoded images
    assert len(scores) == 2 and ours | kept in led
    (near,) = [ref for ref in found.entries if ref.kind == "nearness"]
    assert found.entries[near].inputs and all(isinstance(ref, Ref) for ref in found.entries[near].inputs)
