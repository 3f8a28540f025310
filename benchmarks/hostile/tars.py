"""Shards: tar files whose headers, names, sizes and types are whatever a stranger writes."""

import tarfile
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from benchmarks.hostile.family import Family, asked, told
from benchmarks.hostile.mutations import NAMES, SEEDS, harmed
from benchmarks.hostile.pictures import kinds

BLOCK = tarfile.BLOCKSIZE
TYPES = (b"0", b"\0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"L", b"K", b"x", b"g", b"S", b"V", b"D", b"M", b"z")
LABELS = (
    b"0",
    b"1",
    b"2",
    b" 1\n",
    b"-1",
    b"65535",
    b"65536",
    b"9" * 30,
    b"1.0",
    b"",
    b"one",
    "٣".encode(),
    b"\xff",
    b"1\0",
)
SIZES = (0, 1, 511, 512, 513, 2**20, 2**31, 2**33 - 1)
RECORDS = (
    "path=../../evil.png", "path=a.png", "size=99999999999", "size=-1", "size=abc", "GNU.sparse.major=1",
    "GNU.sparse.minor=0", "GNU.sparse.realsize=268435456", "GNU.sparse.realsize=x", "GNU.sparse.map=0,1,2",
    "GNU.sparse.map=0,x", "GNU.sparse.size=9999999999", "GNU.sparse.offset=5", "GNU.sparse.numbytes=z",
    "GNU.sparse.name=/a.png", "hdrcharset=BINARY", "hdrcharset=junk", "mtime=nan", "linkpath=/etc/passwd", "uid=1e999",
)  # fmt: skip


def header(name: bytes, size: bytes, kind: bytes, checksum: str, more: bytes = b"") -> bytes:
    """512 bytes; `checksum` is right, wrong or none, `more` overwrites from the link's name on."""
    head = bytearray(BLOCK)
    head[:100] = name[:100].ljust(100, b"\0")
    head[100:124] = b"0000644\0" * 3
    head[124:136], head[136:148] = size[:12].ljust(12, b"\0"), b"00000000000\0"
    head[148:156], head[156:157], head[257:265] = b" " * 8, kind, b"ustar\x0000"
    head[157 : 157 + len(more)] = more
    del head[BLOCK:]
    total = sum(head) + (checksum == "wrong")
    head[148:156] = b"\0" * 8 if checksum == "none" else b"%06o\0 " % total
    return bytes(head)


def octal(size: int) -> bytes:
    return b"%011o\0" % size if size < 8**11 else (1 << 95 | size).to_bytes(12)


def record(text: str) -> bytes:
    """Of a pax header, its length first."""
    body = f" {text}\n".encode("utf-8", "surrogateescape")
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


ODD = ("name", "content", "suffix", "type", "size", "checksum", "pax", "long", "cut", "sparse", "raw", "negative")


@st.composite
def samples(draw: Any) -> list[bytes]:
    """The members of one sample: sound ones, of which one in four is odd in one way."""
    key = f"s{draw(st.integers(0, 9))}"
    made = [
        draw(member(key, suffix))
        for suffix in draw(st.sampled_from((("png", "cls"), ("cls", "png"), ("png", "cls", "json"))))
    ]
    return made[:1] if draw(st.integers(0, 19)) == 0 else made


@st.composite
def member(draw: Any, key: str, suffix: str) -> bytes:
    odd = draw(st.sampled_from(ODD)) if draw(st.integers(0, 7)) == 7 else ""
    content = draw(st.sampled_from((b"0", b"1", b"2"))) if suffix == "cls" else kinds()[draw(st.integers(0, 12))]
    if odd == "name":
        key = draw(st.sampled_from(NAMES) | st.text(max_size=12))
    elif odd == "suffix":
        suffix = draw(st.sampled_from(("PNG", "png.png", "pickle", "pth", "pyd", "", "cls")))
    elif odd == "content":
        content = draw(st.sampled_from((*LABELS, b"", b"x" * 3000)))
    name = f"{key}.{suffix}".encode("utf-8", "surrogatepass")
    kind, size, checksum, before, more = b"0", octal(len(content)), "right", b"", b""
    if odd == "type":
        kind, more = draw(st.sampled_from(TYPES)), b"../../target"
    elif odd == "size":
        size = draw(st.sampled_from([octal(n) for n in SIZES]) | st.binary(min_size=12, max_size=12))
    elif odd == "negative":
        size = b"\xff" * draw(st.integers(1, 12)) + b"\x80"
    elif odd == "checksum":
        checksum = draw(st.sampled_from(("wrong", "none")))
    elif odd == "pax":
        chosen = draw(st.lists(st.sampled_from(RECORDS), min_size=1, max_size=5))
        records = b"".join(map(record, chosen)) if draw(st.booleans()) else draw(st.binary(max_size=60))
        before = header(b"x", octal(len(records)), draw(st.sampled_from((b"x", b"g"))), "right") + padded(records)
    elif odd == "long":
        text = name * draw(st.sampled_from((1, 30, 300)))
        before = header(b"././@LongLink", octal(len(text)), draw(st.sampled_from((b"L", b"K"))), "right") + padded(text)
    elif odd == "cut":
        content = content[: draw(st.integers(0, len(content)))]
    elif odd == "sparse":
        pieces = b"".join(
            octal(n) for n in draw(st.lists(st.sampled_from((0, 1, 512, 2**28, 2**33)), min_size=2, max_size=8))
        )
        kind, more = (
            b"S",
            bytes(229)
            + pieces[:96].ljust(96, b"\0")
            + bytes((draw(st.booleans()),))
            + octal(draw(st.sampled_from((9, 2**28, 2**28 + 1, 2**40)))),
        )
    elif odd == "raw":
        more = draw(st.binary(max_size=355))
    return before + header(name, size, kind, checksum, more) + padded(content)


@st.composite
def shards(draw: Any) -> bytes:
    """Members, perhaps many of one name, and an end; one in four is harmed after that."""
    parts = [part for sample in draw(st.lists(samples(), max_size=6)) for part in sample]
    if parts and draw(st.integers(0, 9)) == 0:
        parts += [parts[-1]] * draw(st.sampled_from((1, 7, 300)))
    end = draw(st.sampled_from((1024, 1024, 1024, 1024, 10_240, 512, 0, 1, 1 << 20)))
    data = b"".join(parts) + bytes(end)
    return harmed(data, draw(SEEDS), 2) if draw(st.integers(0, 3)) == 0 else data


@st.composite
def cases(draw: Any) -> tuple[bytes, str, int, str]:
    """A shard, its file's name, how many faults are tolerated, and who reads it."""
    name = draw(st.sampled_from(("a.tar", "a.tar", "é.tar", "a b.tar", "[a].tar", "{a,b}.tar", "{0..9}.tar", "*.tar")))
    return (
        draw(shards()),
        name,
        draw(st.sampled_from((0, 5, 1000))),
        draw(st.sampled_from(("check", "feed", "stream", "choose"))),
    )


def run(case: tuple[bytes, str, int, str], room: Path, _: Path) -> list[str]:
    data, name, tolerate, way = case
    (path := room / name).write_bytes(data)
    if way == "check":
        return [told("shards", "check", path, "--tolerate", str(tolerate))]
    return [asked(lambda: read(str(path), tolerate, way))]


def read(path: str, tolerate: int, way: str) -> None:
    """As a run reads its shards."""
    from dd_tasks import shards as reading

    quarantine = reading.Quarantine(tolerate)
    source = reading.open_source([path], quarantine=quarantine)
    if way == "choose":
        reading.sample_per_class(source, per_class=1, seed=0, quarantine=quarantine)
        return
    memory = 0 if way == "stream" else 1 << 30
    fed = reading.feed(source, side=16, quarantine=quarantine, memory_bytes=memory)
    images = sum(len(batch.labels_N) for batch in fed.batches(7, seed=0))
    assert images <= fed.samples and (memory == 0 or images == fed.samples), (images, fed.samples)


FAMILY = Family("shards", cases(), run, cost=3.0)
