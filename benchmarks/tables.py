"""Writes the README's table of measured results from benchmarks/results/*.json: `python -m benchmarks.tables`."""

import json
import re
from pathlib import Path
from typing import Any

from dd_tasks import comparison
from dd_tasks.claims import ROWS, accuracy
from schemas.comparison import Comparison
from schemas.manifest import Claim

ROOT = Path(__file__).parent.parent
MARKS = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)


def results() -> list[dict[str, Any]]:
    """What the benchmarks wrote, by file name."""
    return [json.loads(path.read_text()) for path in sorted((ROOT / "benchmarks" / "results").glob("*.json"))]


def runs() -> str:
    """Markdown: one row a claim of every run, and one line of cost each."""
    lines = [
        "| run | student trained on | student | epochs | n | top-1, last epoch (mean ± std, %) |",
        "|---|---|---|---|---|---|",
    ]
    costs = []
    for result in results():
        if "claims" not in result:
            continue
        for claim in map(Claim.model_validate, result["claims"]):
            about = (result["benchmark"], ROWS[claim.row], claim.student, claim.epochs, len(claim.seeds))
            lines.append(f"| {' | '.join(map(str, about))} | {accuracy(claim)} |")
        minutes = result["total_stage_seconds"] / 60
        costs.append(f"`{result['command']}`: {minutes:.0f} minutes of stages on {result['machine']}.")
    return "\n".join([*lines, "", *costs]) + "\n"


def comparisons() -> str:
    """Markdown: the table of every comparison of methods, with its command."""
    parts = []
    for result in results():
        if result.get("format") == Comparison.model_fields["format"].default:
            found = Comparison.model_validate({name: result[name] for name in Comparison.model_fields})
            minutes = result["wall_seconds"] / 60
            parts += [comparison.markdown(found), f"`{found.command}`: {minutes:.0f} minutes on {found.machine}.\n"]
    return "".join(f"\n{part}" for part in parts)


def rewritten(readme: str) -> str:
    return MARKS.sub(lambda match: match[1] + runs() + comparisons() + match[2], readme)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(rewritten(path.read_text()))
