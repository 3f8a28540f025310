"""A store whose entries and blobs somebody else wrote: harmed files, and harmed ones under their own checksum."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from benchmarks.hostile.family import Family, asked, told
from benchmarks.hostile.mutations import NAMES, SEEDS, documents, edited, harmed

DIGEST = "0123456789abcdef" * 4
ENTRY: dict[str, Any] = {
    "facts": {"accuracy": 0.5, "seconds": 1.0},
    "blobs": {"weights": "BLOB"},
    "inputs": [f"score/{DIGEST}"],
}
ROOT: dict[str, Any] = {
    "name": "n",
    "identity": DIGEST,
    "preset": "e2d",
    "when": "2026-01-01T00:00:00+00:00",
    "refs": [f"observer/{DIGEST}"],
}
HEAD: dict[str, Any] = {
    "x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "y": {"dtype": "U8", "shape": [8], "data_offsets": [24, 32]},
}
DTYPES = ("F16", "BF16", "I64", "BOOL", "F8_E4M3", "F4", "C64", "X", "", "F64", "U64")


@st.composite
def blobs(draw: Any) -> bytes:
    """A safetensors file with a header that is odd, or harmed as bytes."""
    head = draw(edited(HEAD)) if draw(st.booleans()) else json.loads(json.dumps(HEAD))
    if draw(st.integers(0, 2)) == 0 and isinstance(head, dict) and isinstance(head.get("x"), dict):
        head["x"]["dtype"] = draw(st.sampled_from(DTYPES))
    text = json.dumps(head).encode()
    length = draw(st.sampled_from((len(text), len(text), len(text), 0, 2**31, 2**63, 100_000_001)))
    data = struct.pack("<Q", length) + text + bytes(draw(st.sampled_from((32, 32, 31, 0, 4096))))
    return harmed(data, draw(SEEDS)) if draw(st.integers(0, 3)) == 0 else data


@st.composite
def cases(draw: Any) -> tuple[bytes, bytes, bytes, bool, str, str]:
    """Entry, root, blob, whether the entry names the blob by its checksum, a file's name, and who looks."""
    entry = draw(documents(ENTRY)) if draw(st.booleans()) else json.dumps(ENTRY).encode()
    root = draw(documents(ROOT)) if draw(st.integers(0, 3)) == 0 else json.dumps(ROOT).encode()
    way = draw(st.sampled_from(("get", "get", "get", "file", "ls", "gc", "pixels")))
    return entry, root, draw(blobs()), draw(st.integers(0, 4)) > 0, draw(st.sampled_from(NAMES)), way


def run(case: tuple[bytes, bytes, bytes, bool, str, str], room: Path, _: Path) -> list[str]:
    from dd_tasks.store import Ref, Store

    entry, root, blob, sealed, name, way = case
    sha256 = hashlib.sha256(blob).hexdigest() if sealed else DIGEST
    folder = room / "store"
    for kind in ("observer", "blobs", "runs"):
        (folder / kind).mkdir(parents=True)
    (folder / "observer" / f"{DIGEST}.json").write_bytes(entry.replace(b"BLOB", sha256.encode()))
    (folder / "blobs" / sha256).write_bytes(blob)
    (folder / "runs" / "n.json").write_bytes(root)
    if not {"/", "\0"} & set(name) and name not in ("", ".", "..") and len(name) < 200:
        (folder / "observer" / name.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")).write_bytes(
            entry
        )
    if way == "ls":
        return [told("store", "ls", "--store", folder), told("store", "ls", "--runs", "--store", folder)]
    if way == "gc":
        return [told("store", "gc", "--store", folder, "--older", "0")]
    ref, store = Ref("observer", DIGEST), Store(str(folder))
    if way == "file":
        return [asked(lambda: store.file(ref, "weights"))]
    if way == "pixels":
        return [asked(lambda: pixels(store, entry, blob, room))]

    def get() -> None:
        store.find(ref)
        store.size([ref])
        store.get(ref, "weights")

    return [asked(get)]


def pixels(store: Any, entry: bytes, blob: bytes, room: Path) -> None:
    """Decoded images that somebody else put there."""
    from tarred import write_tar

    from benchmarks.hostile.pictures import kinds
    from dd_tasks import pixels, shards

    path = write_tar(room / "a.tar", [("a.png", kinds()[4]), ("a.cls", b"0"), ("b.png", kinds()[4]), ("b.cls", b"1")])
    source = shards.open_source([str(path)], quarantine=shards.Quarantine())
    ref = pixels.ref_of(source, 16)
    sha256 = hashlib.sha256(blob).hexdigest()
    told = {"facts": {"side": 16, "images": 2, "flaws": []}, "blobs": {"images": sha256, "about": sha256}, "inputs": []}
    Path(store.path(ref.kind)).mkdir(exist_ok=True)
    Path(store.path(f"{ref.name}.json")).write_text(json.dumps(told))
    Path(store.path("blobs", sha256)).write_bytes(blob)
    list(pixels.feed(source, 16, store, quarantine=shards.Quarantine()).batches(2, seed=0))


FAMILY = Family("store", cases(), run, cost=1.2)
