"""The README's tables of what was done to Retort on purpose, from what the benchmarks wrote."""

from benchmarks.speed_tables import Results, of
from dd_tasks.card import size


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


TABLES = (fuzz,)
