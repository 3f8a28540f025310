"""An S3 server of its own process on 127.0.0.1, and a line to it that can be cut, held up or answered badly."""

import os
import socket
import struct
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

KEYS = {"AWS_ACCESS_KEY_ID": "AKIATESTSOFRETORT", "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests"}
SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""  # it ends with the process that started it, however that ends
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST


class Line:
    """A TCP line from a port of its own to another. Cut, connections are reset and new ones refused; held, they are
    taken but nothing passes; answered, every request gets this status and S3 error code."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.sockets: set[socket.socket] = set()
        self.lock = threading.Lock()
        self.open = threading.Event()
        self.open.set()
        self.answer: tuple[int, str] | None = None
        self.passed = 0  # connections that were taken
        self.listener = _bound(0)
        self.port = self.listener.getsockname()[1]
        self._listen()

    def cut(self) -> None:
        """The port stays ours: bound, but nobody listens."""
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)  # ends the accepting thread
        self.listener.close()
        self.listener = _bound(self.port)
        self._reset()

    def restore(self) -> None:
        self.answer = None
        self.open.set()
        if not self.listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            self._listen()

    def hold(self) -> None:
        self.open.clear()

    def refuse(self, status: int, code: str) -> None:
        """Those at hand are reset, so that clients come back and hear it."""
        self.answer = status, code
        self._reset()

    def close(self) -> None:
        self.cut()
        self.open.set()
        self.listener.close()

    def _listen(self) -> None:
        self.listener.listen(64)
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def _reset(self) -> None:
        with self.lock:
            for one in self.sockets:
                with suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    one.shutdown(socket.SHUT_RDWR)
                one.close()
            self.sockets.clear()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                self.passed += 1
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        if self.answer:
            _say(near, *self.answer)
            return
        far = socket.create_connection(("127.0.0.1", self.target))
        with self.lock:
            self.sockets |= {near, far}
        threading.Thread(target=self._pump, args=(far, near), daemon=True).start()
        self._pump(near, far)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self.open.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


def _bound(port: int) -> socket.socket:
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind(("127.0.0.1", port))
    return found


def _say(near: socket.socket, status: int, code: str) -> None:
    """One answer to whatever is asked."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>said {code}</Message></Error>".encode()
    head = f"HTTP/1.1 {status} {code}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
    with suppress(OSError), near:
        near.settimeout(5)
        near.recv(1 << 16)
        near.sendall(head + body)
        near.shutdown(socket.SHUT_WR)
        while near.recv(1 << 16):
            pass


@dataclass
class S3:
    """The server, the line to it, and the environment with which a process reaches the one through the other."""

    process: subprocess.Popen[str]
    direct: int
    line: Line
    environment: dict[str, str] = field(default_factory=dict)

    def ask(self, path: str, data: bytes | None = None, method: str = "POST") -> bytes:
        """Past the line and without credentials: what a test sets up or looks up behind a store's back."""
        plain = {"Content-Type": "application/octet-stream"}  # a form would be taken apart
        request = urllib.request.Request(f"http://127.0.0.1:{self.direct}{path}", data, plain, method=method)
        with urllib.request.urlopen(request, timeout=600) as answer:
            return bytes(answer.read())

    def bucket(self, name: str) -> str:
        """A new bucket's URL."""
        self.ask(f"/{name}", method="PUT")
        return f"s3://{name}"

    def check_keys(self, checked: bool) -> None:
        """Whether requests from now on need keys that the server knows: it knows none."""
        self.ask("/moto-api/reset-auth", b"0" if checked else b"inf")

    def reset(self) -> None:
        self.line.restore()
        self.check_keys(False)
        self.ask("/moto-api/reset", b"")


@contextmanager
def serving() -> Iterator[S3]:
    """A server for the time of the block. Its data are in memory."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, env=clean,
    )  # fmt: skip
    assert process.stdout and process.stdin
    line = None
    try:
        port = int(process.stdout.readline())
        line = Line(port)
        yield S3(process, port, line, environment(line.port))
    finally:
        if line:
            line.close()
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def environment(port: int) -> dict[str, str]:
    """What tells S3 clients of a process to come to this port; nothing asks a cloud for credentials."""
    return {
        **KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }  # fmt: skip
