"""Writes the README's table of measured results from benchmarks/results/*.json: `python -m benchmarks.tables`."""

import json
import re
from pathlib import Path

from dd_tasks.card import ROWS, accuracy
from schemas.manifest import Claim

ROOT = Path(__file__).parent.parent
MARKS = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)


def table() -> str:
    """Markdown: one row a claim of every result, and one line of cost each."""
    lines = [
        "| run | student trained on | student | epochs | n | top-1, last epoch (mean ± std, %) |",
        "|---|---|---|---|---|---|",
    ]
    costs = []
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        result = json.loads(path.read_text())
        for claim in map(Claim.model_validate, result["claims"]):
            about = (result["benchmark"], ROWS[claim.row], claim.student, claim.epochs, len(claim.seeds))
            lines.append(f"| {' | '.join(map(str, about))} | {accuracy(claim)} |")
        minutes = result["total_stage_seconds"] / 60
        costs.append(f"`{result['command']}`: {minutes:.0f} minutes of stages on {result['machine']}.")
    return "\n".join([*lines, "", *costs]) + "\n"


def rewritten(readme: str) -> str:
    return MARKS.sub(lambda match: match[1] + table() + match[2], readme)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(rewritten(path.read_text()))
