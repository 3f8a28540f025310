"""The README's tables of generated faults, from what the benchmarks wrote."""

from typing import Any

from benchmarks.speed_tables import Results, of
from dd_tasks.card import size


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


def fuzz(results: Results) -> str:
    """Markdown: cases of hostile input by family and what became of them."""
    parts = []
    for found in of(results, "fuzz"):
        parts += [
            "",
            "| hostile input | cases | taken | refused | escaped | slow, large, hung or died | most seconds "
            "| most memory |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        rows, limits = found["rows"], found["limits"]
        for row in (*rows, whole(rows)):
            beyond = sum(row[outcome] for outcome in ("slow", "large", "hung", "died"))
            cells = row["family"], row["cases"], row["accepted"], row["refused"], row["escaped"], beyond
            shown = " | ".join(f"{cell:,}" if isinstance(cell, int) else cell for cell in cells)
            parts.append(f"| {shown} | {row['worst_seconds']:.1f} | {size(row['worst_bytes'])} |")
        parts += [
            "",
            "Taken: the call succeeded. Refused: an error of our own in one line, or a list of what is wrong. Escaped: "
            f"all else. A case may take {limits['seconds']} s, and {size(limits['bytes'])} more than its process had.",
            f"`{found['command']}`: {found['seconds'] / 60:.0f} minutes on {found['machine']}.",
            "",
        ]
    return "\n".join(parts)


def whole(rows: Results) -> dict[str, float | str]:
    """The last row: the sums, and of what is worst the worst."""
    counts = {name: sum(row[name] for row in rows) for name, value in rows[0].items() if isinstance(value, int)}
    worst = {name: max(row[name] for row in rows) for name in ("worst_seconds", "worst_bytes")}
    return {**counts, **worst, "family": "in all"}


TABLES = kills, fuzz
