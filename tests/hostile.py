"""A dataset whose every name means harm, a web server that wants a password, and a process that is watched."""

import base64
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

MEMBERS = 600  # of the sound shard, two a sample
MARK = "zzz-hostile"  # in the name of all that must not become a file
CLASSES = (
    "<script>document.title='ran'</script>",
    '"><img src=x onerror="document.title=\'ran\'">',
    f"[x](javascript:{MARK})",
    f"a|b`{MARK}`*c*",
    f"../../{MARK}",
    f"/tmp/{MARK}",
    f"\u202egnp.{MARK}\u2066",
    f"{{{{7*7}}}}${{7*7}} {MARK}",
    f"..\\..\\{MARK}",
    f"\x1b[2J{MARK}\0",
)
PAYLOAD = b"cposix\nsystem\n(S'touch %s'\ntR."  # a pickle that makes a file
SIGNATURE = "c2lnbmF0dXJlLW9mLXRoZS10ZXN0cw"
SECRETS = {
    "HF_TOKEN": "hf_write_token_of_the_tests", "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests-of-s3",
    "AWS_ACCESS_KEY_ID": "AKIAOFTHESETESTSALONE", "AWS_SESSION_TOKEN": "session-of-the-tests-of-s3",
    "PREFECT_API_KEY": "pnu_key_of_the_tests_of_prefect", "FSSPEC_GCS_TOKEN": "token-of-the-tests-of-gcs",
}  # fmt: skip
USER, PASSWORD = "user-of-the-shards", "password-of-the-shards"
WATCHED = """
import atexit, json, os, sys
file, mark, unpickled, paths = os.environ["WATCHED"], sys.argv.pop(1), [], []
def watch(event, given):
    if event == "pickle.find_class":
        unpickled.append(".".join(given))
    elif event in ("open", "os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.truncate"):
        paths.extend(str(each) for each in given[:2] if isinstance(each, str) and mark in each)
atexit.register(lambda: open(file, "w").write(json.dumps([unpickled, paths])))
sys.addaudithook(watch)
if sys.argv[1:] == ["canary"]:
    import collections, pickle
    pickle.loads(pickle.dumps(collections.OrderedDict()))
    open(file + mark, "w").close()
else:
    from flows.cli import main
    main()
"""


def shards(sound: Path, out: Path, root: Path) -> Path:
    """The shard at `sound` with what a hostile one may hold beside its samples, and classes to match."""
    out.mkdir()
    with tarfile.open(sound) as whole, tarfile.open(out / "train-0000.tar", "w") as tar:
        for member in list(whole)[:MEMBERS]:
            image, label = member.name.endswith(".png"), member.name.endswith(".cls")
            assert image or label
            tar.addfile(member, whole.extractfile(member))
            if image:
                content = whole.extractfile(member).read()  # type: ignore[union-attr]
        for key in (f"../../{MARK}", f"{root}/{MARK}", f"a/../../{MARK}", f"{MARK}\x1b[2J"):
            _add(tar, f"{key}.png", content)
            _add(tar, f"{key}.cls", b"0")
        for suffix in ("pyd", "pickle", "pkl", "pth", "npy"):
            _add(tar, f"{MARK}-{suffix}.{suffix}", PAYLOAD % f"{root}/{MARK}-ran".encode())
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo(f"{MARK}-{kind.decode()}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    (out / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES), encoding="utf-8")
    return out


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


class Guarded(SimpleHTTPRequestHandler):
    """Files for whoever knows the password."""

    def do_GET(self) -> None:
        wanted = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if self.headers.get("Authorization") != f"Basic {wanted}":
            self.send_error(401)
        else:
            with suppress(ConnectionError):  # who looks at the head of a file alone
                super().do_GET()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The URL of a folder, with the password in it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Guarded, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://{USER}:{PASSWORD}@127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def watched(root: Path, name: str, arguments: list[object], environment: dict[str, str]) -> tuple[int, str]:
    """The exit code of a command and all it says; `root/NAME.json` tells what it unpickled, and what paths had MARK."""
    here = os.environ | environment | {"WATCHED": str(root / f"{name}.json")}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, MARK, *map(str, arguments)], cwd=root / "work" / "deep", env=here,
        capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr
