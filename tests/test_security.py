"""Nothing that data brings is run, and nothing that it names is a path."""

from pathlib import Path

import pytest
from auditing import findings

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
