"""The same seed on the same machine gives the same bits: in whatever process, order of panels, hash seed, locale and
time zone; and where it is said so, with any number of threads."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
RETORT = (sys.executable, "-c", "from flows.cli import main; main()")
BY_THREADS = {"train observers", "train students", "match networks in training"}  # sums over a batch, split by them
USUAL = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "TZ": "UTC", "OMP_NUM_THREADS": "1"}
ELSEWHERE = USUAL | {
    "PYTHONHASHSEED": "4711",
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "TZ": "Asia/Kathmandu",
}


@functools.cache
def stages(threads: int, order: str = "0 1 2", elsewhere: bool = False) -> dict[str, str]:
    """stage -> sha256, made by a process of its own."""
    environment = os.environ | (ELSEWHERE if elsewhere else USUAL) | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, HERE / "stages.py", str(threads), *order.split()]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    assert len(found) >= 14 and found.keys() > BY_THREADS
    return found


def differing(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def test_another_process_hash_seed_locale_time_zone_and_order_of_panels_change_no_bit_of_any_stage() -> None:
    assert not differing(stages(1), stages(1, "2 0 1", elsewhere=True))


def test_two_threads_change_no_bit_of_a_stage_in_which_no_network_is_trained() -> None:
    assert differing(stages(1), stages(2)) <= BY_THREADS


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


def test_images_that_stand_for_many_are_the_same_by_any_number_of_threads() -> None:
    """k-means, whose own threads would add up what they found in any order."""
    code = (
        "import numpy as np, torch; from dd_tasks.clusters import nearest_to_centres as chosen;"
        "rows = np.random.default_rng(0).normal(size=(3000, 32)).astype('float32');"
        "from sklearn.cluster import KMeans; plain, kept = KMeans.fit, [];"
        "KMeans.fit = lambda self, rows: kept.append(plain(self, rows)) or kept[0];"
        "before = torch.get_num_threads(); taken = chosen(rows, 40, 1, tries=2);"
        "assert torch.get_num_threads() == before;"
        "print(taken, kept[0].cluster_centers_.tobytes().hex())"
    )
    found = set()
    for threads in (1, 2, 4):
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1
