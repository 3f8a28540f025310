"""Results by what they are: whole or not there."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from torch import Tensor

from dd_tasks.errors import InputError
from dd_tasks.store import Ref, Store

REF = Ref("panel", "0123456789abcdef" * 4)
TENSORS = {
    "images": torch.arange(6, dtype=torch.uint8).view(1, 2, 3),
    "half": torch.full((2,), 0.5, dtype=torch.float16),
}


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store") if request.param == "folder" else f"memory://{tmp_path.name}/store")


def files(store: Store) -> list[str]:
    return sorted(path.removeprefix(store.root) for path in store.fs.find(store.root))


def blobs(store: Store) -> list[str]:
    return [path for path in files(store) if path.startswith("/blobs/")]


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[k], expected[k]) and found[k].dtype == expected[k].dtype for k in found
    )


def test_a_ref_shows_its_kind_and_the_start_of_its_digest():
    assert str(REF) == "panel/0123456789ab"


def test_what_is_put_is_got(store):
    facts = {"seconds": 1.5, "name": "é", "list": [1, None], "nested": {"a": True}}
    assert store.put(REF, facts, canvas=TENSORS, curves={"loss": torch.ones(3)}) == REF
    result = Store(store.url).get(REF, "canvas", "curves")
    assert result.facts == facts == store.find(REF)
    assert set(result.tensors) == {"canvas", "curves"} and same(result.tensors["canvas"], TENSORS)


def test_facts_alone_are_a_result(store):
    store.put(REF, {"accuracy": 0.5})
    assert store.get(REF).facts == {"accuracy": 0.5} and store.get(REF).tensors == {} and not blobs(store)


def test_a_new_store_is_empty_and_holds_no_probe(store):
    assert store.find(REF) is None and files(store) == []
    with pytest.raises(KeyError, match="panel/0123456789ab is not in the store"):
        store.get(REF)


def test_kind_and_digest_both_name_a_result(store):
    store.put(REF, {"x": 1})
    assert store.find(Ref("labels", REF.digest)) is None and store.find(Ref("panel", "f" * 64)) is None


def test_the_same_content_is_kept_once(store):
    other = Ref("panel", "f" * 64)
    store.put(REF, {"x": 1}, canvas=TENSORS)
    store.put(other, {"x": 2}, canvas=TENSORS, again=TENSORS)
    assert len(blobs(store)) == 1
    assert store.get(other).facts == {"x": 2} and same(store.get(other, "again").tensors["again"], TENSORS)


def test_putting_again_replaces_the_facts(store):
    store.put(REF, {"x": 1}, canvas=TENSORS)
    store.put(REF, {"x": 2})
    assert store.get(REF).facts == {"x": 2} and store.get(REF).tensors == {}


# Broken results


def test_results_take_the_bytes_of_their_entries_and_of_each_blob_once(store):
    other = Ref("panel", "f" * 64)
    for ref in (REF, other):
        store.put(ref, {"x": 1}, canvas=TENSORS)
    assert store.size([REF, other, REF]) == sum(store.fs.size(store.root + path) for path in files(store))
    assert 0 < store.size([REF]) < store.size([REF, other]) and store.size([]) == 0
    with pytest.raises(KeyError, match="is not in the store"):
        store.size([Ref("panel", "e" * 64)])


def _remove(store: Store, path: str) -> None:
    store.fs.rm_file(path)


def _truncate(store: Store, path: str) -> None:
    store.fs.pipe_file(path, store.fs.cat_file(path)[:-1])


def _alter(store: Store, path: str) -> None:
    data = store.fs.cat_file(path)
    store.fs.pipe_file(path, data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize("harm", [_remove, _truncate, _alter])
def test_a_harmed_blob_makes_the_result_missing_until_it_is_put_again(store, harm, caplog):
    store.put(REF, {"x": 1}, canvas=TENSORS)
    harm(store, store.root + blobs(store)[0])
    assert store.find(REF) is None
    assert caplog.messages == ["panel/0123456789ab: its canvas is missing or altered in the store; made again"]
    with pytest.raises(KeyError, match="its canvas is missing or altered"):
        store.get(REF, "canvas")
    store.put(REF, {"x": 1}, canvas=TENSORS)
    assert store.find(REF) == {"x": 1} and same(store.get(REF, "canvas").tensors["canvas"], TENSORS)


@pytest.mark.parametrize(
    "junk", [b"", b"junk", (8).to_bytes(8, "little") + b'{"a": 1}', (1 << 40).to_bytes(8, "little")]
)
def test_a_blob_that_is_no_tensors_is_missing_though_its_checksum_is_right(store, junk):
    sha256 = hashlib.sha256(junk).hexdigest()
    store.write(store.path("blobs", sha256), junk)
    store.put(REF, {"x": 1}, canvas=sha256)
    with pytest.raises(KeyError, match=r"its canvas in the store .* is no safetensors file"):
        store.get(REF, "canvas")


def test_the_bytes_of_a_result_whose_blob_is_gone_are_not_told(store):
    store.put(REF, {"x": 1}, canvas=TENSORS)
    store.fs.rm_file(store.root + blobs(store)[0])
    with pytest.raises(KeyError, match="a blob is missing in the store"):
        store.size([REF])


@pytest.mark.parametrize(
    "entry",
    [
        b"", b"{", b"\xff\xfe", b"[]", b"null", b"{}", b'{"facts": {}}', b'{"facts": 1, "blobs": {}}',
        b'{"facts": {}, "blobs": []}', b"[" * 100_000, b'{"facts": {}, "blobs": {"a": [1]}}',
    ],
)  # fmt: skip
def test_an_entry_that_is_none_makes_the_result_missing(store, entry):
    store.put(REF, {"x": 1})
    store.fs.pipe_file(f"{store.root}/panel/{REF.digest}.json", entry)
    assert store.find(REF) is None
    with pytest.raises(KeyError):
        store.get(REF)
    store.put(REF, {"x": 2})
    assert store.find(REF) == {"x": 2}


class _Failing:
    """A file system whose n-th write stops half way, or whose n-th rename fails."""

    def __init__(self, fs: Any, call: str, n: int) -> None:
        self._fs, self._call, self._left = fs, call, n

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fs, name)

    def _fails(self, call: str) -> bool:
        self._left -= call == self._call
        return call == self._call and self._left == 0

    def pipe_file(self, path: str, data: bytes) -> None:
        fails = self._fails("pipe_file")
        self._fs.pipe_file(path, data[: len(data) // 2] if fails else data)
        if fails:
            raise OSError(28, "No space left on device")

    def mv(self, source: str, target: str) -> None:
        if self._fails("mv"):
            raise OSError(5, "Input/output error")
        self._fs.mv(source, target)


@pytest.mark.parametrize("call", ["pipe_file", "mv"])
@pytest.mark.parametrize(("n", "kept"), [(1, 0), (2, 1)])  # the blob's write, the entry's
def test_a_failing_write_leaves_no_entry_and_no_half_file(store, call, n, kept):
    fs, store.fs = store.fs, _Failing(store.fs, call, n)
    with pytest.raises(OSError):
        store.put(REF, {"x": 1}, canvas=TENSORS)
    store.fs = fs
    assert store.find(REF) is None and files(store) == blobs(store) and len(blobs(store)) == kept
    store.put(REF, {"x": 1}, canvas=TENSORS)
    assert same(store.get(REF, "canvas").tensors["canvas"], TENSORS)


def test_a_failing_write_leaves_the_result_that_was_there(store):
    store.put(REF, {"x": 1}, canvas=TENSORS)
    fs, store.fs = store.fs, _Failing(store.fs, "pipe_file", 1)  # the blob is there: the first write is the entry's
    with pytest.raises(OSError):
        store.put(REF, {"x": 2}, canvas=TENSORS)
    store.fs = fs
    assert store.find(REF) == {"x": 1}


def test_facts_that_are_not_json_leave_no_entry(store):
    with pytest.raises(TypeError):
        store.put(REF, {"x": torch.zeros(1)}, canvas=TENSORS)
    assert store.find(REF) is None


# Many writers


def test_writers_of_one_result_do_not_disturb_each_other(tmp_path):
    url = str(tmp_path / "store")
    large = {"x": torch.arange(100_000)}

    def write(_: int) -> bool:
        own = Store(url)
        own.put(REF, {"x": 1}, canvas=large)
        return own.find(REF) == {"x": 1}

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(write, range(24)))
    assert files(Store(url)) == [blobs(Store(url))[0], f"/panel/{REF.digest}.json"]


def test_writers_of_many_results_share_a_store(store):
    refs = [Ref("panel", f"{i:064x}") for i in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: store.put(refs[i], {"i": i}, canvas={"x": torch.full((50,), i)}), range(16)))
    assert [store.find(ref) for ref in refs] == [{"i": i} for i in range(16)]


# Places


def test_a_store_s_folder_is_made(tmp_path):
    Store(str(tmp_path / "a" / "b [c]*")).put(REF, {"x": 1}, canvas=TENSORS)
    assert json.loads((tmp_path / "a" / "b [c]*" / "panel" / f"{REF.digest}.json").read_text())["facts"] == {"x": 1}


@pytest.mark.parametrize("place", ["file", "under a file", "proc"])
def test_a_store_that_cannot_be_written_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    url = {"file": f"{tmp_path}/file", "under a file": f"{tmp_path}/file/store", "proc": "/proc/retort/store"}[place]
    with pytest.raises(InputError) as refused:
        Store(url)
    assert str(refused.value).startswith(f"store {url} cannot be written: ") and "\n" not in str(refused.value)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(("url", "reason"), [("nonsense://x/y", "Protocol not known: nonsense"), ("s3://b/x", "s3fs")])
def test_a_protocol_that_is_not_there_is_refused(url, reason, monkeypatch):
    def missing(protocol: str) -> None:
        raise ImportError("Install s3fs to access S3")

    if url.startswith("s3"):
        monkeypatch.setattr(fsspec.core, "get_filesystem_class", missing)
    with pytest.raises(InputError, match=f"^store {url}: .*{reason}"):
        Store(url)
