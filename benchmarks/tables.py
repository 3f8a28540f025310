"""Writes the README's table of measured results from benchmarks/results/*.json: `python -m benchmarks.tables`."""

import json
import re
from pathlib import Path
from typing import Any

from benchmarks import fault_tables, speed_tables
from dd_tasks import comparison
from dd_tasks.card import escape, size
from dd_tasks.claims import ROWS, accuracy, pairings, percent
from dd_tasks.extents import known
from dd_tasks.plan import compact_label_bytes, exact_label_bytes
from flows import planning
from schemas.comparison import Comparison
from schemas.manifest import Claim
from schemas.spec import RunSpec

ROOT = Path(__file__).parent.parent
MARKS = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)
FAULT_MARKS = re.compile(r"(<!-- faults -->\n).*?(<!-- /faults -->)", re.DOTALL)


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
            parts += [
                comparison.markdown(found),
                *(["Scored on training images that were held out.\n"] if found.test is None else []),
                f"`{found.command}`: {minutes:.0f} minutes for what the store did not hold, {found.machine}.\n",
            ]
    return "".join(f"\n{part}" for part in parts)


def curves() -> str:
    """Markdown: matching with class labels over its iterations."""
    parts = []
    for result in results():
        if "reached" not in result:
            continue
        rows, reached = result["rows"], result["reached"]
        presets = list(dict.fromkeys(row["preset"] for row in rows))
        parts += ["", f"| iterations | {' | '.join(map(escape, presets))} |", "|---:|" + "---:|" * len(presets)]
        for iterations in dict.fromkeys(row["iterations"] for row in rows):
            at = {row["preset"]: row for row in rows if row["iterations"] == iterations}
            cells = [accuracy(_claim(at[preset], "distilled_hard")) if preset in at else "" for preset in presets]
            parts.append(f"| {iterations} | {' | '.join(cells)} |")
        when = "at no iteration here" if reached["iterations"] is None else f"at iteration {reached['iterations']}"
        real, minutes = accuracy(_claim(rows[0], "random_hard")), result["wall_seconds"] / 60
        parts += [
            f"\nClass labels, IPC {rows[0]['ipc']}; random real images: {real}. What random sampling has "
            f"at its last iteration, {percent(reached['level'])}, DREAM+ has {when}.",
            f"`{result['commands'][-1]}` and so on: {minutes:.0f} minutes on {result['machine']}.\n",
        ]
    return "\n".join(parts)


def noise() -> str:
    """Markdown: whose noise a matching step has."""
    parts = []
    for result in results():
        if "noise" not in result:
            continue
        sizes = [batch["batch"] for batch in result["noise"][0]["batches"]]
        heads = [f"{size} random, representative" for size in sizes]
        parts += [
            "",
            f"| cosine to the step of all {result['at_hand']:,} | {' | '.join(heads)} | between augmentation draws |",
            "|---|" + "---:|" * (len(sizes) + 1),
        ]
        for row in result["noise"]:
            cells = [f"{batch['random']:.2f}, {batch['representative']:.2f}" for batch in row["batches"]]
            parts.append(
                f"| {row['term']} after {row['trained_on']:,} images | {' | '.join(cells)} | {row['other_draws']:.2f} |"
            )
        parts += ["", f"`{result['command']}`: {result['wall_seconds'] / 60:.0f} minutes on {result['machine']}.", ""]
    return "\n".join(parts)


def _claim(row: dict[str, Any], of: str) -> Claim:
    return Claim.model_validate(next(claim for claim in row["claims"] if claim["row"] == of))


def digits() -> str:
    """Markdown: every preset on the quickstart's digits."""
    parts = []
    for result in results():
        if result["benchmark"] != "digits-presets":
            continue
        parts += [
            "",
            "| digits, 3 per class | distilled | random | image-updates | seconds in all |",
            "|---|---:|---:|---:|---:|",
        ]
        for row in result["rows"]:
            pair = pairings([Claim.model_validate(claim) for claim in row["claims"]])[0]
            cells = (
                accuracy(pair.distilled),
                accuracy(pair.random),
                f"{row['image_updates']:,}",
                f"{row['wall_seconds']:.0f}",
            )
            parts.append(f"| {row['preset']} | {' | '.join(cells)} |")
        parts += ["", f"`{result['rows'][0]['command']}` and so on, on {result['machine']}.", ""]
    return "\n".join(parts)


def labels() -> str:
    """Markdown: accuracy against the bytes of labels, and students in batches of other sizes."""
    parts = []
    for result in results():
        if "label_rows" not in result:
            continue
        parts += [
            "",
            "| labels | bytes of labels | of images | epochs kept | step | batch | n | distilled | random | lead "
            "| real JPEG images of as many bytes |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for row in result["label_rows"]:
            parts.append(f"| {' | '.join(_label_cells(row))} |")
        minutes = sum(row["wall_seconds"] for row in result["label_rows"]) / 60
        first = result["label_rows"][0]["command"]
        parts += [
            "",
            f"`{first}` and so on: {minutes:.0f} minutes for what the store did not hold, {result['machine']}.",
            "",
        ]
    return "\n".join(parts)


def _label_cells(row: dict[str, Any]) -> list[str]:
    kept, claims = row["labels"], [Claim.model_validate(claim) for claim in row["claims"]]
    pair = pairings(claims)[0]
    jpegs = [f"{accuracy(claim)} ({claim.images:,} images)" for claim in claims if claim.row == "jpeg"]
    return [
        "exact" if kept["codec"] == "exact" else f"1/{row['ratio']}",
        f"{kept['bytes']:,}",
        f"{row['image_bytes']:,}",
        f"{kept['epochs']} of {kept['drawn']}",
        f"{kept['step']:.3g}" if kept["step"] else "",
        str(row["student"]["batch"]),
        str(len(pair.distilled.seeds)),
        accuracy(pair.distilled),
        accuracy(pair.random),
        f"{100 * pair.lead:+.2f} {pair.verdict}",
        "; ".join(jpegs),
    ]


IMPLIED = (
    ("ImageNet-1K, 50 per class", 50_000, 1000, "28 GB"),
    ("ImageNet-21K, 10 per class", 104_500, 10_450, "643 GB"),
)


def implied() -> str:
    """Markdown: what labels of 300 epochs take by the arithmetic of `dd_tasks.plan`."""
    lines = [
        "",
        "| 300 labelled views an image | published | exact | compact, 10 classes a view | ratio |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, images, classes, published in IMPLIED:
        exact, compact = exact_label_bytes(images, classes, 300), compact_label_bytes(images, classes, 300)
        lines.append(f"| {name} | {published} | {size(exact)} | {size(compact)} | {exact / compact:.0f} |")
    return "\n".join([*lines, "", ""])


LARGE = (  # preset, dataset, images per class, committee; published bytes of labels and hours of recovery on one GPU
    ("e2d", "imagenet-1k", 10, "edc_imagenet", "5.7 GB", 2.5),
    ("e2d", "imagenet-1k", 50, "edc_imagenet", "28 GB", 11.0),
    ("edc", "imagenet-1k", 10, "edc_imagenet", "", 5.0 * 10_000 / 3600),  # 5 s an image
    ("sre2l_pp", "imagenet-1k", 10, "resnet18_imagenet", "", 2.5 * 10_000 / 3600),
    ("cv_dd", "imagenet-1k", 10, "cv_dd_imagenet", "", 8.2 * 10_000 / 3600),
    ("e2d_21k", "imagenet-21k", 10, "resnet18_imagenet", "643 GB", None),
)


def large() -> str:
    """Markdown: plans of runs on ImageNet beside what is published of these."""
    lines = [
        "",
        "| plan | image-updates | of them recovery | GPU-hours of recovery, published | implied image-updates a second "
        "| labelled views | exact labels | published | artifact, compact labels | store |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for preset, dataset, ipc, committee, published, hours in LARGE:
        spec = RunSpec(preset=preset, shards=(dataset,), ipc=ipc, committee=committee, students=("resnet18",))
        found = planning.planned(spec, known(dataset))
        totals = found.totals
        recovered = sum(line.amount for line in found.work if (line.stage, line.unit) == ("recover", "image-updates"))
        options = f"--dataset {dataset} --ipc {ipc} --committee {committee} --student resnet18"
        cells = (
            f"`retort plan {preset} {options}`", f"{totals.image_updates:,}", f"{recovered:,}",
            f"{hours:.1f}" if hours else "", f"{recovered / hours / 3600:,.0f}" if hours else "",
            f"{totals.labelled_views:,}", size(totals.exact_label_bytes), published, size(totals.upload_bytes),
            size(totals.store_bytes),
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", ""])


def plans() -> str:
    """Markdown: seconds that were foreseen beside those of a run."""
    parts = []
    for result in results():
        for plan in result.get("plans", ()):
            shares = f"{plan['calibration']['cpu_share']:.0%} and {plan['run']['cpu_share']:.0%}"
            parts += ["", f"| {plan['name']} | foreseen | found | ratio |", "|---|---:|---:|---:|"]
            rows = [(f"seconds, {stage['stage']}", stage) for stage in plan["stages"]]
            rows += [("seconds, all stages", plan["seconds"]), ("labelled views", plan["labelled_views"])]
            rows += [("students", plan["students"])]
            rows += [(f"bytes, {kind['kind']}", kind) for kind in plan["kinds"]]
            rows += [("bytes, artifact", plan["artifact_bytes"]), ("bytes, store", plan["store_bytes"])]
            rows += [("peak memory, bytes", plan["peak_memory_bytes"])]
            updates = plan["image_updates"]
            parts.append(f"| image-updates | {updates['least']:,} to {updates['most']:,} | {updates['measured']:,} | |")
            parts += [
                f"| {what} | {r['foreseen']:,.0f} | {r['measured']:,.0f} | {r['ratio']:.2f} |" for what, r in rows
            ]
            drift = f"a calibration after the run foresees {plan['again']:.2f} of these seconds"
            parts += [
                "",
                f"`{plan['command']}` on {plan['machine']}; of it calibration and run had {shares}; {drift}.",
                "",
            ]
    return "\n".join(parts)


def speed() -> str:
    """Markdown: the tables of what takes how long."""
    return "\n".join(table(results()) for table in speed_tables.TABLES)


TABLES = runs, comparisons, labels, implied, large, plans, speed, curves, noise, digits


def rewritten(readme: str) -> str:
    faults = "".join(table(results()) for table in fault_tables.TABLES)
    readme = FAULT_MARKS.sub(lambda match: match[1] + faults + match[2], readme)
    return MARKS.sub(lambda match: match[1] + "".join(table() for table in TABLES) + match[2], readme)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(rewritten(path.read_text()))
