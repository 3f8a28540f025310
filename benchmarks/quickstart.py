"""Where the seconds of the quickstart go, and of the same again: `python -m benchmarks.quickstart`.

The command of `make quickstart`, on shards that are packed before, as a process of its own; then once more, when
nothing is left to make. Seconds are those of the process as its parent sees them: what `--profile` counted, and the
process's end. Written to benchmarks/results/quickstart.json.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.calls import call, keep

SPEC = "infra/quickstart.yaml"
PACK = ("shards", "pack", "digits", "--split", "train", "--split", "test")


def profiled(folder: Path) -> dict[str, Any]:
    """The quickstart in a folder: its profile, and the seconds of the whole process."""
    shards = [
        option for part in ("train", "test") for option in (f"--{_option(part)}", f"{folder}/shards/{part}/*.tar")
    ]
    places = ["--out", folder / "dataset", "--report", folder / "report.html", "--store", folder / "store"]
    made = call(["run", SPEC, "--profile"], [*shards, *places], {})
    found = json.loads((folder / "dataset-profile" / "profile.json").read_text())
    seconds = {each["on"]: round(each["seconds"], 2) for each in found["spent"]}
    kinds = {kind: round(_of(kind, found), 2) for kind in ("work", "files", "overhead")}
    end = round(made["wall_seconds"] - found["wall_seconds"], 2)
    kinds["overhead"] = round(kinds["overhead"] + end, 2)
    return made | {"machine": found["machine"], "seconds": {**seconds, "end of the process": end}, "kinds": kinds}


def _option(part: str) -> str:
    return "shards" if part == "train" else part


def _of(kind: str, found: dict[str, Any]) -> float:
    return float(sum(each["seconds"] for each in found["spent"] if each["kind"] == kind))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        call(PACK, ["--out", f"{name}/shards"], {})
        first, again = profiled(Path(name)), profiled(Path(name))
    machine = first.pop("machine")
    assert again.pop("machine") == machine
    keep("quickstart", {"machine": machine, "first": first, "again": again})


if __name__ == "__main__":
    main()
