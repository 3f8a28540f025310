"""Files and folders of this machine that are there whole or not at all, whatever ends the process that writes them."""

import ctypes
import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path

PARTIAL, OLD = "partial", "old"
HERE, EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
PIPES = 3  # of two file handles each, which are kept back
TAKEN = (errno.ENOTEMPTY, errno.EEXIST)


def refusing(place: Path) -> Path | None:
    """What lets nothing be made there: the nearest folder above, or a link to itself; None where it can be filled."""
    try:
        parent = next(folder for folder in place.resolve().parents if folder.exists())
    except RuntimeError:  # by which pathlib tells of links that lead round
        return place.absolute()
    return None if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK) else parent


def lies_in(place: Path, folder: Path) -> bool:
    """Whether by its whole path; a folder lies in itself."""
    return Path(os.path.realpath(place)).is_relative_to(os.path.realpath(folder))


def write(path: Path, content: bytes) -> None:
    """Put a file in its place, with its folder; what was there before stays until then. A device gets it as it is."""
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.{PARTIAL}")
    with told(path):
        try:
            partial.write_bytes(content)
            sync(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def all_or_nothing(out: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """A new folder beside `out`, which takes its place when the block ends well and vanishes when it does not.

    Where the file system can exchange two names, there is no moment without the one or the other. FileExistsError
    where others filled `out` meanwhile and it is not to be overwritten.
    """
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    sweep(out)
    with told(out), _reserve() as reserve, _held(out) as partial:
        try:
            yield partial
            for path in (*partial.rglob("*"), partial):
                sync(path)
            _put(partial, out, overwrite)
            sync(out.parent)
        finally:
            reserve.close()
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def told(path: Path | str, inside: str = "") -> Iterator[None]:
    """An OSError of the block that names no file, as on a full disk, or one that begins so and that nobody knows,
    names this path."""
    inside = inside or os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.")
    try:
        yield
    except OSError as error:
        if error.errno is not None and (error.filename is None or os.fspath(error.filename).startswith(inside)):
            error.filename, error.filename2, error.strerror = os.fspath(path), None, os.strerror(error.errno)
        raise


def sweep(out: Path) -> None:
    """Remove what killed processes left beside `out`; what stood there comes back where one was killed between two
    renames. What living processes make is left alone."""
    out = out.resolve()
    if not out.parent.is_dir():
        return
    beside = [path for path in out.parent.iterdir() if path.name.startswith((_of(out, PARTIAL), _of(out, OLD)))]
    for path in sorted(beside):
        with _unheld(out.with_name(_of(out, PARTIAL) + path.name.rpartition("-")[2])) as dead:
            if dead and path.name.startswith(_of(out, OLD)) and not out.exists():
                path.rename(out)
            elif dead:
                shutil.rmtree(path, ignore_errors=True)


def _of(out: Path, what: str) -> str:
    return f".{out.name}.{what}-"


@contextmanager
def _reserve() -> Iterator[ExitStack]:
    """File handles to go back to: a folder cannot be removed without any."""
    with ExitStack() as handles:
        for handle in chain.from_iterable(os.pipe() for _ in range(PIPES)):
            handles.callback(os.close, handle)
        yield handles


@contextmanager
def _held(out: Path) -> Iterator[Path]:
    """A new folder that is locked while it is being filled; the system unlocks what a killed process held."""
    while True:
        partial = out.with_name(_of(out, PARTIAL) + uuid.uuid4().hex[:12])
        partial.mkdir()
        try:
            handle = os.open(partial, os.O_RDONLY)
        except FileNotFoundError:  # swept before it was locked
            continue
        except OSError:
            partial.rmdir()
            raise
        with suppress(OSError):  # where a file system has no locks, nobody sweeps
            fcntl.flock(handle, fcntl.LOCK_EX)
        if partial.exists():
            break
        os.close(handle)
    try:
        yield partial
    finally:
        os.close(handle)


@contextmanager
def _unheld(partial: Path) -> Iterator[bool]:
    """Whether no living process fills the folder, as far as can be told; nobody does while the block lasts."""
    try:
        handle = os.open(partial, os.O_RDONLY)
    except OSError as error:
        yield isinstance(error, FileNotFoundError)
        return
    try:
        yield _locked(handle)
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _put(partial: Path, out: Path, overwrite: bool) -> None:
    while True:
        try:
            partial.rename(out)
            return
        except OSError as error:
            if error.errno not in TAKEN or not overwrite:
                raise
        with suppress(FileNotFoundError):  # others took it away: there is room
            if not _exchanged(partial, out):
                _in_turn(partial, out)
            return


def _exchanged(one: Path, other: Path) -> bool:
    """Whether the file system let two folders change their names, in one step."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if rename(HERE, os.fsencode(one), HERE, os.fsencode(other), EXCHANGE) == 0:
        return True
    if (number := ctypes.get_errno()) in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _in_turn(partial: Path, out: Path) -> None:
    """Two renames; what stood there comes back where the second fails, or by `sweep` where the process ends between."""
    old = out.with_name(_of(out, OLD) + partial.name.rpartition("-")[2])
    out.rename(old)
    try:
        partial.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path | str) -> None:
    """What was written to a file or folder is on its disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
