"""The README's tables of generated faults, from what the benchmarks wrote."""

from collections.abc import Iterator
from typing import Any

Results = list[dict[str, Any]]


def of(results: Results, benchmark: str) -> Iterator[dict[str, Any]]:
    return (found for found in results if found["benchmark"] == benchmark)


def kills(results: Results) -> str:
    """Markdown: what runs came to that were killed, by the stage in which the kills fell."""
    parts = []
    for found in of(results, "kills"):
        killed = [start for row in found["rows"] for start in row["starts"] if start["stage"]]
        parts += [
            "",
            "| killed in the stage | kills | in a write | no artifact | the earlier one | the new one | half-written |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        parts += [_row(stage, [start for start in killed if start["stage"] == stage]) for stage in found["stages"]]
        parts += [_row("**all**", killed), "", told(found), ""]
    return "\n".join(parts)


def _row(stage: str, killed: list[dict[str, Any]]) -> str:
    artifacts = [sum(start["artifact"] == which for start in killed) for which in ("none", "earlier", "new")]
    counts = (len(killed), sum(start["writing"] for start in killed), *artifacts, sum(bool(k["wrong"]) for k in killed))
    return f"| {stage} | {' | '.join(map(str, counts))} |"


def told(found: dict[str, Any]) -> str:
    return (
        f"{found['completed_with_the_same_bytes']} of {found['runs']} runs completed with the bytes of an undisturbed "
        f"one, with a last start of {found['worst_seconds']:.1f} s at most. "
        f"Of {found['results_found']:,} results that a start found, {found['panels_found']:,} of them panels, "
        f"{found['results_made_again']} were made again. `{found['command']}` on {found['machine']}."
    )


TABLES = (kills,)
