"""What makes a good guide, on the quickstart's digits: `python -m benchmarks.guides --data runs/quickstart/shards
--foreign CIFAR10/cifar10-train-0000.tar`.

Runs `retort guides study` and keeps its comparison as benchmarks/results/digits-guides.json. Further options go to it.
"""

import argparse
import json
from pathlib import Path

from benchmarks.calls import call, keep

OPTIONS = (
    "--ipc 1 --committee tiny --no-flip --student convnet3_w32 --student-batch 10 --seeds 3 --student-epochs 300 "
    "--architecture convnet3_w32 --other thin_resnet6_w16 --epochs 1,2,4,8"
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--data", required=True, help="folder of the packed digits, with train/ and test/")
    options.add_argument("--foreign", required=True, help="shards of another dataset")
    options.add_argument("--out", type=Path, default=Path("runs/guides"))
    options.add_argument("--store", default="runs/quickstart/store")
    arguments, further = options.parse_known_args()
    study = ["guides", "study", "--shards", f"{arguments.data}/train/*.tar", "--test", f"{arguments.data}/test/*.tar"]
    names = {arguments.data: "DIGITS", arguments.foreign: "CIFAR10/cifar10-train-0000.tar"}
    made = call(
        [*study, "--foreign", arguments.foreign, *OPTIONS.split(), *further],
        ["--out", arguments.out, "--store", arguments.store], names,
    )  # fmt: skip
    text = (arguments.out / "comparison.json").read_text()
    for path, name in names.items():
        text = text.replace(path, name)
    keep("digits-guides", json.loads(text) | made)


if __name__ == "__main__":
    main()
