"""Shards of whatever members a test wants in them."""

import io
import tarfile
from pathlib import Path

Member = tuple[str, bytes]


def write_tar(path: Path, members: list[Member]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path
