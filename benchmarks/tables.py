"""Writes the README's table of measured results from benchmarks/results/*.json: `python -m benchmarks.tables`."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
MARKS = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)
NAMES = {
    "distilled": "distilled, committee labels", "random": "random real images, same labels", "full": "all real images",
    "distilled_hard": "distilled, hard labels", "random_hard": "random real images, hard labels",
}  # fmt: skip


def table() -> str:
    """Markdown: one row a claim of every result, and one line of cost each."""
    lines = [
        "| run | student trained on | student | epochs | n | top-1, last epoch (mean ± std) |",
        "|---|---|---|---|---|---|",
    ]
    costs = []
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        result = json.loads(path.read_text())
        if "claims" not in result:
            continue
        for claim in result["claims"]:
            score = f"{100 * claim['mean']:.1f} ± {100 * claim['std']:.1f}"
            cells = [
                result["benchmark"],
                NAMES[claim["row"]],
                claim["student"],
                claim["epochs"],
                len(claim["seeds"]),
                score,
            ]
            lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
        minutes = result["total_stage_seconds"] / 60
        costs.append(f"`{result['command']}`: {minutes:.0f} minutes of stages on {result['machine']}.")
    return "\n".join([*lines, "", *costs]) + "\n"


def rewritten(readme: str) -> str:
    return MARKS.sub(lambda match: match[1] + table() + match[2], readme)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(rewritten(path.read_text()))
