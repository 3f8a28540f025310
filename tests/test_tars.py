"""One shard as a stream: its members are those that tarfile finds, and a damaged header is noticed."""

import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
from tarred import write_tar

from dd_tasks.errors import InputError
from dd_tasks.tars import Shard


def described(members: list[tuple[tarfile.TarInfo, bytes]], path: Path, how: int) -> Path:
    with tarfile.open(path, "w", format=how) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def info(name: str, **fields: Any) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(made, field, value)
    return made


HOLES = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.png", "GNU.sparse.realsize": "9"}
HEADERS: dict[str, list[tuple[tarfile.TarInfo, bytes]]] = {
    "plain": [(info("a.png"), b"image"), (info("a.cls"), b"1")],
    "a whole block": [(info("a.png"), bytes(range(256)) * 2), (info("a.cls"), b"1")],
    "empty": [(info("a.png"), b""), (info("a.cls"), b"1")],
    "folders": [(info("x", type=tarfile.DIRTYPE), b""), (info("x/a.png"), b"image"), (info("x/a.cls"), b"1")],
    "long names": [(info(f"{'x' * 90}/{'y' * 90}.{end}"), end.encode()) for end in ("png", "cls")],
    "longer names": [(info(f"{'x' * 300}.{end}"), end.encode()) for end in ("png", "cls")],
    "other letters": [(info(f"né-日本.{end}"), end.encode()) for end in ("png", "cls")],
    "an old type": [(info("a.png", type=tarfile.AREGTYPE), b"image"), (info("a.cls"), b"1")],
    "links": [(info("b.png", type=tarfile.SYMTYPE, linkname="a"), b""), (info("a.png"), b"i"), (info("a.cls"), b"1")],
    "large numbers": [(info("a.png", uid=1 << 40, mtime=1e12), b"image"), (info("a.cls"), b"1")],
    "holes": [(info("a.png", pax_headers=HOLES), b"1\n2\n5\n".ljust(512, b"\0") + b"image"), (info("a.cls"), b"1")],
}  # fmt: skip


@pytest.mark.parametrize("how", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("members", HEADERS.values(), ids=HEADERS)
def test_members_are_those_that_tarfile_finds(tmp_path, members, how):
    try:
        path = described(members, tmp_path / "a.tar", how)
    except ValueError:  # the oldest format has no such names or numbers
        assert how == tarfile.USTAR_FORMAT
        return
    with tarfile.open(path) as tar:
        expected = [(m.name, tar.extractfile(m).read()) for m in tar if m.isreg()]  # type: ignore[union-attr]
    shard = Shard(str(path))
    found = [(f"{key}.{suffix}", content) for key, parts in shard.groups() for suffix, content in parts]
    assert found == expected and shard.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "records",
    [{"GNU.sparse.major": "x"}, {"GNU.sparse.map": "0,x"}, HOLES | {"GNU.sparse.realsize": "x"},
    {"GNU.sparse.size": "-"}],
)  # fmt: skip
def test_a_header_that_means_nothing_is_one_line(tmp_path, records):
    members = [(info("a.png", pax_headers=records), b"x\n".ljust(512, b"\0")), (info("a.cls"), b"1")]
    path = described(members, tmp_path / "a.tar", tarfile.PAX_FORMAT)
    try:
        list(Shard(str(path)).groups())
    except InputError as error:
        assert str(error).startswith(f"shard {str(path)!r} is cut short or not a plain tar: ")
        return
    assert list(records) == ["GNU.sparse.major"]  # which asks for nothing by itself


def test_of_several_images_of_one_key_the_first_alone_is_held(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("a.png", b"1"), ("a.jpg", b"2"), ("a.cls", b"3"), ("a.png", b"4")])
    assert list(Shard(str(path)).groups()) == [("a", [("png", b"1"), ("jpg", b""), ("cls", b"3"), ("png", b"")])]


def test_a_header_unlike_its_checksum_ends_the_shard(tmp_path):
    path = write_tar(tmp_path / "a.tar", [(f"s{i}.{end}", b"1") for i in range(4) for end in ("png", "cls")])
    whole = path.read_bytes()
    for place in (0, 100, 124, 148, 156, 345):
        damaged = bytearray(whole)
        damaged[4096 + place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"cut short or damaged at byte 4096"):
            list(Shard(str(path)).groups())
