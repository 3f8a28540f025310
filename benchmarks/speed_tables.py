"""The README's tables of what takes how long, from what the benchmarks wrote."""

from collections.abc import Iterator
from typing import Any

from dd_tasks.card import size

Results = list[dict[str, Any]]


def of(results: Results, benchmark: str) -> Iterator[dict[str, Any]]:
    return (found for found in results if found["benchmark"] == benchmark)


def recovery(results: Results) -> str:
    """Markdown: image-updates a second of ours and of the plain loop, by size, committee and images in a batch."""
    parts = []
    for found in (one for name in ("recover", "recover-sizes") for one in of(results, name)):
        parts += [
            "",
            "| image-updates a second | images in a batch | plainly | ours | times as many | each run | not compiled "
            "| seconds of compiling | of a matrix product's FLOPs | peak memory, plainly, ours |",
            "|---|---:|---:|---:|---:|---|---:|---:|---:|---|",
        ]
        for row in found["rows"]:
            rates, memory = row["image_updates_a_second"], row["peak_memory_bytes"]
            parts.append(
                f"| {row['side']} px, `{row['committee']}` | {row['batch']} | {rates['plain']:,.4g} "
                f"| {rates['ours']:,.4g} | {row['ratio']:.2f} | {', '.join(map(str, row['ratio_each']))} "
                f"| {row['ratio_not_compiled']:.2f} | {row['warm_up_seconds']:.0f} | {row['peak_share']:.0%} "
                f"| {size(memory['plain'])}, {size(memory['ours'])} |"
            )
        apart = max(step["beyond_tolerance"] for row in found["rows"] for step in row["agreement"])
        told = (
            f"After {len(found['rows'][0]['agreement'])} steps on the same crops {1 - apart:.4%} of the pixels agree "
            "to 1e-5; what was compiled is kept on disk for later runs."
        )
        parts += ["", told, f"`{found['command']}` on {found['machine']}.", ""]
    return "\n".join(parts)


def engines(results: Results) -> str:
    """Markdown: panels a second by engine."""
    parts = []
    for found in of(results, "engines"):
        parts += ["", "| engine | panels | seconds | panels a second |", "|---|---:|---:|---:|"]
        parts += [
            f"| {row['engine']} | {row['panels']} | {row['seconds']} | {row['panels_a_second']:.3f} |"
            for row in found["rows"]
        ]
        told = f"Two workers make {found['speed_up']:.2f} times the panels of one, and all rows the same images."
        parts += ["", told, f"`python -m benchmarks.engines`, each stage on {found['machine']}.", ""]
    return "\n".join(parts)


def growth(results: Results) -> str:
    """Markdown: seconds a class and memory of a recovery by the number of classes."""
    parts = []
    for found in of(results, "growth"):
        parts += [
            "",
            "| classes | panels timed | seconds a class | of it within panels | of that the head | peak memory |",
            "|---:|---:|---:|---:|---:|---:|",
        ]
        parts += [
            f"| {row['classes']:,} | {row['panels']:,} | {row['seconds_a_class']:.4f} "
            f"| {row['seconds_a_class_in_panels']:.4f} | {row['head_share']:.1%} | {size(row['peak_bytes'])} |"
            for row in found["rows"]
        ]
        most = found["spread"]
        told = (
            "The head is the observer's last layer and its softmax. The most seconds a class are "
            f"{most['seconds_a_class']:.2f} times the least, the most memory {most['peak_bytes']:.2f} times."
        )
        parts += ["", told, "", "![seconds a class, and memory](benchmarks/results/growth.png)", ""]
        parts += [f"`{found['command']}` on {found['machine']}.", ""]
    return "\n".join(parts)


def stream(results: Results) -> str:
    """Markdown: images a second on one core."""
    parts = []
    for found in of(results, "stream"):
        by_side: dict[int, dict[str, Any]] = {}
        for row in found["rows"]:
            by_side.setdefault(row["side"], {})[row["way"]] = row
        heads = " | ".join(f"{side} px | of tarfile's" for side in by_side)
        parts += ["", f"| images a second, one core | {heads} |", "|---|" + "---:|---:|" * len(by_side)]
        for way in next(iter(by_side.values())):
            rows = (rows[way] for rows in by_side.values())
            cells = (f"{row['images_a_second']:,} | {row['of_tarfile']:.2f}" for row in rows)
            parts.append(f"| {way} | {' | '.join(cells)} |")
        told = {row["side"]: f"{row['images']:,} images of {row['of']}" for row in found["rows"]}
        about = "; ".join(f"{side} px: {what}" for side, what in told.items())
        parts += ["", f"`{found['command']}` on {found['machine']}. {about}.", ""]
    return "\n".join(parts)


def quickstart(results: Results) -> str:
    """Markdown: where the seconds of the quickstart go."""
    parts = []
    for found in of(results, "quickstart"):
        first, again = found["first"], found["again"]
        parts += ["", "| seconds of | the quickstart | the same again |", "|---|---:|---:|"]
        parts += [
            f"| {on} | {spent:.1f} | {again['seconds'][on]:.1f} |"
            for on, spent in first["seconds"].items()
            if max(spent, again["seconds"][on]) >= 0.05
        ]
        parts.append(f"| **in all** | **{first['wall_seconds']:.1f}** | **{again['wall_seconds']:.1f}** |")
        end, profile = first["seconds"]["end of the process"], first["seconds"]["profile"]
        other = first["kinds"]["files"] + first["kinds"]["overhead"] - end - profile
        parts += [
            "",
            f"`{first['command']}` as a process on {found['machine']}: orchestration, imports and writing of files are "
            f"{other:.1f} s of it, the end of the process {end:.1f} s, profiling itself {profile:.1f} s.",
            "",
        ]
    return "\n".join(parts)


def taught(results: Results) -> str:
    """Markdown: relabelling and a student, ours and written plainly."""
    parts = []
    for found in of(results, "students"):
        if "ratio" not in found:  # one way alone
            continue
        parts += [
            "",
            "| IPC 10 | seconds of labels | of a student and its score, by seed | of compiling | top-1 (%) |",
            "|---|---:|---:|---:|---|",
        ]
        for way in ("plain", "ours"):
            rows, labels = found[way]["seeds"].values(), found[way]["relabel"]
            seconds = ", ".join(f"{row['seconds']:.0f}" for row in rows)
            compiling = sum(part["compile_seconds"] for part in (labels, *rows))
            scores = ", ".join(f"{100 * row['accuracy']:.1f}" for row in rows)
            parts.append(f"| {way} | {labels['seconds']:.0f} | {seconds} | {compiling:.0f} | {scores} |")
        parts += [
            "",
            f"Labels and a student, by the mean of its seeds, take the plain way {found['ratio']:.2f} times as long. "
            f"Before that, once a machine, {found['ours']['building']['seconds']:.0f} s went into building our "
            "programs and what torch asks the compiler.",
            f"`{found['command']}` on {found['machine']}.",
            "",
        ]
    return "\n".join(parts)


def together(results: Results) -> str:
    """Markdown: seconds of a step of several students, one after another and together."""
    parts = []
    for found in of(results, "together"):
        ways = list(found["rows"][0]["seconds_a_step"])
        parts += ["", f"| seconds of a step of {found['students']} students | batch | {' | '.join(ways)} |"]
        parts.append("|---|---:|" + "---:|" * len(ways))
        for row in found["rows"]:
            cells = " | ".join(f"{row['seconds_a_step'][way]:.3f}" for way in ways)
            parts.append(f"| {row['architecture']} | {row['batch']} | {cells} |")
        told = (
            f"At {found['side']} px on one thread; stacked students are one network of grouped convolutions. The "
            f"{found['processes']} processes have a core each, and students all the time."
        )
        parts += ["", told, f"`{found['command']}` on {found['machine']}.", ""]
    return "\n".join(parts)


TABLES = recovery, taught, together, quickstart, engines, stream, growth
