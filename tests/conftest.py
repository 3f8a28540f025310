"""Fixtures that several files share. Everything a test writes, Prefect's database and caches included, is temporary."""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import s3_server
from hub_server import listening, serving, url_of
from hub_state import Hub
from s3_server import S3

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what is in the background ignore it
HOME = tempfile.TemporaryDirectory(prefix="retort-tests-")
HUB = listening()  # the only Hub that any test knows
os.environ |= {
    "PREFECT_HOME": f"{HOME.name}/prefect",
    "HF_HOME": f"{HOME.name}/hf",
    "HF_HUB_OFFLINE": "1",
    "HF_ENDPOINT": url_of(HUB),
    "HF_HUB_DISABLE_XET": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "NO_PROXY": "*",
    "COLUMNS": "200",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "1200",
}
for name in ("PREFECT_API_URL", "HF_TOKEN"):
    os.environ.pop(name, None)

from flows.environment import prepare_environment  # noqa: E402

prepare_environment()


SLOW = (
    "flow", "incremental", "faults", "interrupts", "kills", "resources", "stack", "pool", "engines", "publish",
    "release", "verify_flow", "flow_s3", "cli", "deploy", "store_s3", "ui", "presets", "committee",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no process has one of them left when the others are done."""
    order = {f"test_{name}": place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: order.get(item.path.stem, len(SLOW)))


@pytest.fixture(autouse=True)
def drawn_alike() -> None:
    """What a test draws without a generator of its own does not depend on those before it."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """One Prefect server on loopback for all flow runs of the session."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=1200):
        yield


@pytest.fixture(scope="session")
def served() -> Iterator[Hub]:
    hub = Hub()
    with serving(hub, HUB):
        yield hub


@pytest.fixture
def hub(served: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """An empty Hub on loopback, and the clients of this process talk to it."""
    import datasets
    from huggingface_hub import constants

    for settings in (constants, datasets.config):
        monkeypatch.setattr(settings, "HF_HUB_OFFLINE", False)
    served.clear()
    return served


@pytest.fixture(scope="session")
def s3_served() -> Iterator[S3]:
    with s3_server.serving() as found:
        yield found


@pytest.fixture
def s3(s3_served: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """An S3 server on loopback without buckets; the clients of this process and its children talk to it by its line."""
    import fsspec

    for name, value in s3_served.environment.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield s3_served
    s3_served.reset()


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs of a second, forked from a process that has the libraries imported."""
    from benchmarks.kills import Bench

    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `train` and `test` shards of scikit-learn's digits at 16 px."""
    from dd_tasks.packing import digits_samples, pack

    root = tmp_path_factory.mktemp("digits")
    for split in ("train", "test"):
        classes, samples = digits_samples(split, side=16)
        pack(samples, classes, root / split, prefix=split)
    return root


@pytest.fixture(scope="session")
def quick(digits: Path) -> dict[str, object]:
    """A run specification of seconds: every stage runs, nothing is learnt."""
    return {
        "preset": "e2d",
        "shards": [f"{digits}/train/*.tar"],
        "test": [f"{digits}/test/*.tar"],
        "ipc": 2,
        "committee": "tiny",
        "students": ["convnet3_w32"],
        "seeds": 2,
        "student_epochs": 3,
        "student_batch": 10,
        "full_epochs": 1,
        "bytes_row": False,
        "panel": 10,
        "flip": False,
        "set": {
            "observers.epochs": "1",
            "schedule.phases.0.steps": "6",
            "schedule.phases.1.steps": "4",
            "labeller.epochs": "3",
        },
    }
