"""Nothing that data brings is run, and nothing that it names is a path."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from auditing import findings
from hub_state import Commit, File, Hub

from dd_tasks.errors import InputError
from dd_tasks.redaction import redacted, without_secrets
from dd_tasks.visible import one_line, visible
from flows import cli
from flows.environment import own_folder

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("flows", "dd_tasks", "schemas", "benchmarks", "infra")
FILES = sorted(path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

ACCEPTED = {
    "dd_tasks/presets.py": "importlib.import_module",  # what a user's own command names: `retort run MODULE:FUNCTION`
    "benchmarks/stream.py": "imports webdataset",  # as the reader that ours is held against; images are decoded by ours
}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_module_unpickles_evaluates_or_extracts(path: Path) -> None:
    found = [line.split(": ", 1)[1] for line in findings((ROOT / path).read_text(encoding="utf-8"))]
    assert [what for what in found if what != ACCEPTED.get(str(path))] == []


BAD = {
    "import pickle": "imports pickle",
    "import pickle as harmless": "imports pickle",
    "from cloudpickle import loads": "imports cloudpickle.loads",
    "def later():\n    import dill": "imports dill",
    "import joblib.numpy_pickle": "imports joblib.numpy_pickle",
    "import shelve": "imports shelve",
    "from marshal import loads": "imports marshal.loads",
    "import torch\ntorch.load(path)": "torch.load",
    "import torch as t\nread = t.load": "torch.load",
    "from torch import load": "imports torch.load",
    "import torch\ntorch.hub.load_state_dict_from_url(url)": "torch.hub",
    "from torch.hub import load": "imports torch.hub.load",
    "import torch\ntorch.jit.load(path)": "torch.jit.load",
    "import numpy as np\nnp.load(path)": "numpy.load without allow_pickle=False",
    "import numpy as np\nnp.load(path, allow_pickle=True)": "allow_pickle=True",
    "import numpy as np\nnp.load(path, allow_pickle=trusted)": "allow_pickle=trusted",
    "import yaml\nyaml.load(text)": "yaml.load without SafeLoader",
    "import yaml\nyaml.load(text, yaml.UnsafeLoader)": "yaml.load without SafeLoader",
    "import yaml\nyaml.load(text, Loader=yaml.Loader)": "yaml.load without SafeLoader",
    "from yaml import unsafe_load": "imports yaml.unsafe_load",
    "eval(text)": "eval",
    "run = exec": "exec",
    "from builtins import exec as harmless": "imports builtins.exec",
    "import importlib\nimportlib.import_module(name)": "importlib.import_module",
    "__import__(name)": "__import__",
    "import tarfile\ntarfile.open(path).extractall(out)": ".extractall",
    "tar.extract(member)": ".extract",
    "import zipfile\nwith zipfile.ZipFile(path) as z:\n    z.extract(name, out)": ".extract",
    "import shutil\nshutil.unpack_archive(path)": "shutil.unpack_archive",
    "import subprocess\nsubprocess.run(text, shell=True)": "shell=True",
    "import os\nos.system(text)": "os.system",
    "from os import popen": "imports os.popen",
    "import tempfile\ntempfile.mktemp()": "tempfile.mktemp",
    "import timm\ntimm.create_model(name, pretrained=True)": "pretrained=True",
    "import timm\ntimm.create_model(name, pretrained=wanted)": "pretrained=wanted",
    "import torchvision.models as tv\ntv.get_model(name, weights='DEFAULT')": "weights='DEFAULT'",
    "import torchvision\nfrom functools import partial\npartial(torchvision.models.resnet18, weights=w)": "weights=w",
    "import webdataset as wds": "imports webdataset",
    "from webdataset import WebDataset": "imports webdataset.WebDataset",
    "from webdataset.autodecode import Decoder": "imports webdataset.autodecode.Decoder",
    "import pandas as pd\npd.read_pickle(path)": "pandas.read_pickle",
    "from prefect import flow\n@flow(persist_result=True)\ndef f(): ...": "results of Prefect's, which are pickles",
    "from prefect import task\ntask(result_serializer='pickle')": "result_serializer='pickle'",
    "import xml.etree.ElementTree as ET\nET.fromstring(text)": "xml.etree.ElementTree.fromstring",
}
GOOD = [
    "net.eval()",
    "import re\nre.compile(text)",
    "import torch\ntorch.compile(net)",
    "import yaml\nyaml.safe_load(text)",
    "import yaml\nyaml.load(text, yaml.SafeLoader)",
    "import safetensors.torch\nsafetensors.torch.load(data)",
    "import numpy as np\nnp.load(path, allow_pickle=False)",
    "tar.extractfile(member)",
    "import torchvision.models as tv\ntv.get_model(name, weights=None)",
    "load(weights=member.weights)",
    "from webdataset.writer import TarWriter",
]


@pytest.mark.parametrize("text", BAD)
def test_the_audit_finds(text: str) -> None:
    assert BAD[text] in [line.split(": ", 1)[1] for line in findings(text)]


@pytest.mark.parametrize("text", GOOD)
def test_the_audit_lets_pass(text: str) -> None:
    assert findings(text) == []


def test_prefect_keeps_no_result_of_ours() -> None:
    """Its own format for them is pickle."""
    from prefect import Flow, Task

    from flows import committee, compare, distill, pool, release, tasks, verify

    ours = [
        one
        for module in (committee, compare, distill, pool, release, tasks, verify)
        for one in vars(module).values()
        if isinstance(one, Flow | Task)
    ]
    assert len(ours) > 20
    assert [one.name for one in ours if one.persist_result is not False] == []


def test_the_folder_of_compiled_networks_is_the_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = own_folder("compiled")
    assert folder == str(tmp_path / "retort" / "compiled") and os.stat(folder).st_mode & 0o777 == 0o700
    os.chmod(folder, 0o777)
    assert own_folder("compiled") is None
    code = "from flows.environment import *; prepare_environment(); import os; print(os.environ.get(COMPILED))"
    clean = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    for mode, found in ((0o777, "None"), (0o700, folder)):
        os.chmod(folder, mode)
        done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == found


# ---- weights

CONTENT, PINNED = b"other weights", "0" * 64


def test_weights_other_than_the_pinned_ones_are_one_line(
    hub: Hub, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    made = hub.create("models", "org/net")
    made.add("refs/heads/main", Commit({"model.safetensors": File(CONTENT, True)}, "others"))
    (tmp_path / "pinned.json").write_text(
        json.dumps({"observers": [{"architecture": "convnet3_w32", "weights": "org/net", "sha256": PINNED}]})
    )
    train = f"{digits}/train/*.tar"
    found = f"weights org/net have sha256 {hashlib.sha256(CONTENT).hexdigest()}, not {PINNED}"
    guided = f"clom(e2d, convnet3_w32@weights=org/net sha256={PINNED})"
    more = ["--shards", train, "--ipc", "1", "--seeds", "1", "--full-epochs", "0", "--no-bytes-row"]
    for command in (
        ["committee", "import", "convnet3_w32", "--weights", "org/net", "--sha256", PINNED, "--shards", train],
        ["committee", "train", "pinned.json", "--shards", train],
        ["run", "rded", "--committee", "pinned.json", *more],
        ["run", guided, "--committee", "tiny", "--set", "observers.epochs=1", *more],
    ):
        monkeypatch.setattr(sys, "argv", ["retort", *command])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("retort: ")]
        assert stopped.value.code == 2 and len(lines) == 1 and lines[0].endswith(found), lines
    assert not (tmp_path / "runs" / "dataset").exists() and not (tmp_path / "committee.json").exists()


# ---- what is told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cannot read 'https://me:pass@word@host/a.tar'", "cannot read 'https://***@host/a.tar'"),
        ("s3://key@bucket/x and //me@host", "s3://***@bucket/x and //***@host"),
        ("see https://host/a?X-Amz-Signature=abc&b=c now", "see https://host/a?*** now"),
        ("--shards 'https://host/{0..9}.tar?sig=a%2Fb' --ipc 1", "--shards 'https://host/{0..9}.tar?***' --ipc 1"),
        ("s3://bucket/train-?.tar", "s3://bucket/train-?.tar"),
        ("hf://datasets/org/name@v1/train.tar", "hf://datasets/org/name@v1/train.tar"),
        ("the token is tested-token-1", "the token is ***"),
        ("key tested-key-2, nested tested-key-3, written tested-key-4", "key ***, nested ***, written ***"),
        ("short is pw", "short is pw"),
    ],
)
def test_secrets_are_cut_out(text: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    monkeypatch.setenv("HF_TOKEN", "tested-token-1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tested-key-2")
    monkeypatch.setenv("FSSPEC_S3", json.dumps({"client_kwargs": {"aws_session_token": "tested-key-3"}}))
    monkeypatch.setitem(fsspec.config.conf, "gcs", {"token": "tested-key-4"})
    monkeypatch.setenv("SHORT_TOKEN", "pw")
    assert redacted(text) == told
    assert str(InputError(text)) == told


def test_an_error_that_is_kept_tells_no_secret_and_stays_of_its_kind() -> None:
    secret = "cannot reach https://me:password@host/x"
    for error, kind in (
        (TimeoutError(secret), TimeoutError), (ConnectionResetError(secret), ConnectionError),
        (PermissionError(13, secret), OSError), (KeyError(secret), RuntimeError),
    ):  # fmt: skip
        kept = without_secrets(error)
        assert isinstance(kept, kind) and "password" not in f"{kept} {kept.args}" and "host/x" in str(kept)
    harmless = ValueError("fine")
    assert without_secrets(harmless) is harmless
    try:
        try:
            raise OSError(secret)
        except OSError as error:
            raise InputError("no such shard") from error
    except InputError as error:
        kept = without_secrets(error)
        assert kept is error and kept.__cause__ is None and kept.__context__ is None


def test_what_cannot_be_seen_is_written_out() -> None:
    assert visible("a\u202eb\x1b[2J\0\u2066") == "a\\u202eb\\x1b[2J\\x00\\u2066"
    assert visible("Ünïcode, 日本, עברית, tab\tand\nline") == "Ünïcode, 日本, עברית, tab\tand\nline"
    assert one_line("two\nlines\u2028 and\tmore ") == "two lines and more"
