"""The same seed on the same machine gives the same bits: in whatever process, order of panels, hash seed, locale and
time zone; and where it is said so, with any number of threads."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from dd_tasks.clusters import nearest_to_centres

pytestmark = pytest.mark.long

HERE = Path(__file__).parent
RETORT = (sys.executable, "-c", "from flows.cli import main; main()")
USUAL = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "TZ": "UTC", "OMP_NUM_THREADS": "1"}
ELSEWHERE = USUAL | {
    "PYTHONHASHSEED": "4711",
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "TZ": "Asia/Kathmandu",
}


def stages(threads: int, order: str, environment: dict[str, str]) -> dict[str, str]:
    """stage -> sha256, made by a process of its own, which trains networks with one thread and does all else with so
    many."""
    command = [sys.executable, HERE / "stages.py", str(threads), *order.split()]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def differing(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def test_another_process_hash_seed_locale_time_zone_order_of_panels_and_threads_change_no_bit_of_any_stage() -> None:
    """Networks are trained with the same number of threads: a gradient is a sum over the batch, which these share."""
    here, there = stages(1, "0 1 2", USUAL), stages(2, "2 0 1", ELSEWHERE | {"OMP_NUM_THREADS": "2"})
    assert len(here) >= 14 and not differing(here, there)


def run(folder: Path, spec: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """What an undisturbed run of the command made: sha256 by file, and scores."""
    folder.mkdir()
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    command = [*RETORT, "run", folder / "spec.yaml", "--out", folder / "d", "--store", folder / "store"]
    done = subprocess.run(
        [*command, "--device", "cpu", "--threads", "1"], capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads((folder / "d" / "retort.json").read_text(encoding="utf-8"))
    kept = {name: entry["sha256"] for name, entry in manifest["files"].items() if name.endswith((".parquet", ".png"))}
    assert len(kept) == 3, manifest["files"].keys()
    return kept | {
        "identity": manifest["identity"], "digest": manifest["observers"],
        "claims": [(claim["row"], claim["accuracies"]) for claim in manifest["claims"]],
        "store": sorted(path.name for path in (folder / "store").glob("*/*.json") if path.parent.name != "runs"),
    }  # fmt: skip


def test_a_run_elsewhere_ends_with_the_same_images_labels_and_scores(quick: dict[str, Any], tmp_path: Path) -> None:
    spec = {**quick, "name": "digits", "seeds": 1, "full_epochs": 0}
    here, there = (run(tmp_path / name, spec, environ) for name, environ in (("a", USUAL), ("b", ELSEWHERE)))
    for found in (here, there):
        for observer in found["digest"]:
            observer.pop("seconds")
    assert not differing(here, there)


def test_images_that_stand_for_many_are_the_same_by_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """k-means, whose own threads would add up what they found in any order."""
    rows_NE, plain = np.random.default_rng(0).normal(size=(3000, 32)).astype("float32"), KMeans.fit
    centres: list[bytes] = []

    def fit(self: KMeans, rows_NE: np.ndarray) -> KMeans:
        centres.append(plain(self, rows_NE).cluster_centers_.tobytes())
        return self

    monkeypatch.setattr(KMeans, "fit", fit)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")  # as many as are asked for, though there be fewer cores
    chosen = []
    for threads in (1, 2, 4):
        with threadpool_limits(threads):
            chosen.append(nearest_to_centres(rows_NE, 40, 1, tries=2))
            assert torch.get_num_threads() == threads  # of others nothing is changed
    assert len(set(centres)) == 1 and chosen[0] == chosen[1] == chosen[2]
