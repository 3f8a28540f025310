"""Methods side by side on CIFAR-10, `small` committee: `python -m benchmarks.methods --data DIR [--presets PRESET...]`.

Runs `retort compare` as a user would and keeps its comparison.json as benchmarks/results/cifar10-methods-ipcN.json.
A run that was stopped continues. Further options go to `retort compare`, and into the command that the result records.
"""

from benchmarks.calls import compared, keep, parser

SOFT = ("sre2l", "sre2l_pp", "cda", "rded", "edc", "e2d", "cv_dd", "retort")


def main() -> None:
    options = parser(__doc__, "runs/cifar10/methods")
    options.add_argument("--presets", nargs="+", default=SOFT)
    options.add_argument("--name", help="of the result; default: cifar10-methods-ipcN")
    arguments, further = options.parse_known_args()
    found = compared(arguments.presets, arguments, further)
    keep(arguments.name or f"cifar10-methods-ipc{arguments.ipc}", found)


if __name__ == "__main__":
    main()
