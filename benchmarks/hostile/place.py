"""Where cases run: a folder of their own, and one Hub on loopback that their clients take for the only one. Imported
before the clients, which read such settings once."""

import os
import tempfile

from hub_server import client_environment, listening, url_of

from flows.environment import prepare_environment

prepare_environment()
SCRATCH = tempfile.TemporaryDirectory(prefix="retort-fuzz-")
HUB = listening()
os.environ |= client_environment(url_of(HUB), f"{SCRATCH.name}/hf") | {
    "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PREFECT_HOME": f"{SCRATCH.name}/prefect",
    "HYPOTHESIS_STORAGE_DIRECTORY": f"{SCRATCH.name}/hypothesis", "COLUMNS": "200", "OMP_NUM_THREADS": "1",
}  # fmt: skip
