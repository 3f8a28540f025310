"""What is set before the heavy libraries, and after them."""

import subprocess
import sys

import pytest

TRAINS = "import torch; o = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]); o.step(); import triton"


@pytest.mark.parametrize("work", ["pass", TRAINS])
def test_a_process_ends_without_a_word(work):
    pytest.importorskip("triton", reason="no Triton for this platform")
    code = f"from flows.environment import leave_garbage; leave_garbage(); {work}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
