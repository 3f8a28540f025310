"""What is set before the heavy libraries, and after them."""

import importlib.metadata
import os
import subprocess
import sys

import pytest

from flows import environment

STEP = "import torch; o = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]); o.step()"
TELL = "import torch.utils.cpp_extension, torch.utils.flop_counter"
WITHOUT = f"leave_out_triton(); {STEP}; {TELL}; import sys; assert not sys.modules['triton']"


@pytest.mark.parametrize("work", ["pass", f"{STEP}; import triton", WITHOUT])
def test_a_process_ends_without_a_word(work):
    try:
        importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("no Triton for this platform")
    code = f"from flows.environment import leave_garbage, leave_out_triton; leave_garbage(); {work}"
    env = {**os.environ, "CUDA_HOME": "/usr/local/cuda", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@pytest.mark.parametrize("there", [True, False])
def test_triton_is_left_out_where_there_is_no_gpu(monkeypatch, tmp_path, there):
    monkeypatch.setattr(environment, "GPUS", ("/dev/nothing", str(tmp_path) if there else "/dev/none"))
    monkeypatch.setitem(sys.modules, "triton", None)  # puts back what was there
    monkeypatch.delitem(sys.modules, "triton")
    environment.prepare_environment()
    assert ("triton" in sys.modules) != there
