"""Every preset on the quickstart's digits: `python -m benchmarks.digits --data runs/quickstart/shards`.

One `retort run` each; the seconds of the whole command and its rows go to benchmarks/results/digits-presets.json. The
recipes are the presets' own at 16 px. All but the first find the committee in the store.
"""

import argparse
import json
import shlex
import tempfile
from pathlib import Path

from benchmarks.calls import call, keep
from dd_tasks.presets import PRESETS

OPTIONS = (
    "--ipc 3 --committee tiny --no-flip --student convnet3_w32 --student-batch 10 --seeds 2 --student-epochs 80 "
    "--full-epochs 0 --codec exact --no-bytes-row --set labeller.epochs=80 --set labeller.scale=[0.5,1.0]"
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--data", type=Path, required=True, help="folder of the packed digits, with train/ and test/")
    arguments = options.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in PRESETS:
            typed = f"run {name} --shards '{arguments.data}/train/*.tar' --test '{arguments.data}/test/*.tar' {OPTIONS}"
            places = ["--out", f"{folder}/{name}", "--store", f"{folder}/store"]
            made = call(shlex.split(typed), places, {str(arguments.data): "DIGITS"})
            manifest = json.loads((Path(folder) / name / "retort.json").read_text())
            kept = {"claims": manifest["claims"], "image_updates": manifest["cost"]["image_updates"]}
            rows.append({"preset": name, **made, **kept})
    keep("digits-presets", {"machine": manifest["cost"]["machine"], "rows": rows})


if __name__ == "__main__":
    main()
