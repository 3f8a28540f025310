"""Artifacts as strangers hand them over: manifests, cards, croissant.json and tables, harmed, or made to agree with
what is harmed."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from hypothesis import strategies as st

from benchmarks.hostile.family import Family, asked, findings, told
from benchmarks.hostile.mutations import SEEDS, documents, edited, harmed, spoiled
from benchmarks.hostile.place import SCRATCH

TABLES = {"images": "images/train-00000-of-00001.parquet", "soft_labels": "soft_labels/train-00000-of-00001.parquet"}
KINDS = ("exact", "compact", "few")


@cache
def sound(folder: Path) -> dict[str, dict[str, bytes]]:
    """The files of three sound artifacts: exact labels, compact ones, and compact ones of some classes alone."""
    return {
        kind: {p.relative_to(at).as_posix(): p.read_bytes() for p in at.rglob("*") if p.is_file()}
        for kind in KINDS
        if (at := folder / kind)
    }


def prepare(folder: Path) -> None:
    """Three sound artifacts, made once and copied for each family."""
    shutil.copytree(_made(), folder, dirs_exist_ok=True)


@cache
def base() -> dict[str, dict[str, bytes]]:
    """The same, when cases are drawn."""
    return sound(_made())


def _made() -> Path:
    """Where they were made by the first that asked."""
    folder = Path(SCRATCH.name) / "artifacts"
    if not folder.exists():
        _make(folder)
    return folder


def _make(folder: Path) -> None:
    import torch
    from sample import compact_info, compact_labels, draft, tiny_canvas, tiny_labels, tiny_nearest

    from dd_tasks import artifact, report

    canvas, near = tiny_canvas(), tiny_nearest()
    loss, remembered = (tuple(torch.rand(7) for _ in range(2)) for _ in range(2))
    story = report.Story(canvas.images_NCHW, loss, remembered, torch.zeros(len(canvas), 16, 16, dtype=torch.uint16), 4)
    for kind in KINDS:
        labels = tiny_labels() if kind == "exact" else compact_labels(4 if kind == "few" else 10)
        about = draft() if kind == "exact" else draft(labels=compact_info(labels))
        assets = {"preview.png": b"picture", "story.safetensors": story.to_bytes()}
        artifact.write(folder / kind, canvas, labels, about, assets, nearest=near)


def laid(files: dict[str, bytes], room: Path) -> Path:
    out = room / "dataset"
    for name, content in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    return out


def seal(out: Path, name: str) -> None:
    """Manifest, card and croissant.json agree again with a changed file, so that what it holds is looked at."""
    from dd_tasks import artifact, croissant
    from dd_tasks.errors import InputError

    manifest = json.loads((out / "retort.json").read_bytes())
    manifest["files"][name] = artifact.file_entry(out / name).model_dump()
    manifest["labels"]["bytes"] = manifest["files"][TABLES["soft_labels"]]["bytes"]
    (out / "retort.json").write_text(json.dumps(manifest))
    try:
        (out / "croissant.json").write_text(croissant.text(artifact.read_manifest(out)))
    except InputError:
        return
    manifest["files"]["croissant.json"] = artifact.file_entry(out / "croissant.json").model_dump()
    (out / "retort.json").write_text(json.dumps(manifest))


def calls(out: Path, room: Path, way: str) -> list[str]:
    """Everything that is done to an artifact before anything trains."""
    from dd_tasks import artifact, changelog
    from dd_tasks.validate import loads, validate

    if way == "validate":
        return [told("validate", out)]
    outcomes = [asked(lambda: artifact.read(out))]
    if way == "report":
        return [*outcomes, told("report", out, "--out", room / "report.html")]
    if way == "replay":
        return [*outcomes, asked(lambda: replayed(out))]
    if way == "publish":
        return [*outcomes, asked(lambda: published(out, room))]

    def compared() -> None:
        manifest = artifact.read_manifest(out)
        changelog.changelog(
            manifest, manifest.model_copy(update={"seed": manifest.seed + 1, "name": "x", "claims": []})
        )
        artifact.standing(out, manifest, validate)
        findings(loads(str(out), manifest, cache_dir=str(room / "cache")) if way == "load" else [])

    return [*outcomes, asked(compared)]


def published(out: Path, room: Path) -> None:
    from dd_tasks.publish import publish
    from schemas.release import ReleaseSpec

    publish(out, ReleaseSpec(target=f"file://{room}/there"))


def replayed(out: Path) -> None:
    """What a student sees first and last, by the tables as `datasets` has them."""
    import datasets

    from dd_tasks import codec
    from dd_tasks.errors import InputError

    try:
        tables = [datasets.Dataset(pq.ParquetFile(out / name).read()) for name in TABLES.values()]
    except Exception as error:  # what is no table at all is refused by datasets, before us
        raise InputError(f"datasets: {type(error).__name__}") from error
    for streamed in (False, True):
        seen = codec.replay(*(table.to_iterable_dataset() if streamed else table for table in tables))
        if not streamed:
            seen[0], seen[len(seen) - 1]  # type: ignore[index]
        else:
            next(iter(seen), None)


def run_text(name: str, case: tuple[str, bytes, bool, str], room: Path, prepared: Path) -> list[str]:
    kind, text, sealed, way = case
    out = laid(sound(prepared)[kind] | {name: text}, room)
    if sealed and name == "croissant.json":
        _listed(out, name)
    return calls(out, room, way)


def _listed(out: Path, name: str) -> None:
    from dd_tasks import artifact

    manifest = json.loads((out / "retort.json").read_bytes())
    manifest["files"][name] = artifact.file_entry(out / name).model_dump()
    (out / "retort.json").write_text(json.dumps(manifest))


WAYS = st.sampled_from(("validate", "validate", "validate", "report", "compare", "publish"))


@st.composite
def manifests(draw: Any) -> tuple[str, bytes, bool, str]:
    kind = draw(st.sampled_from(KINDS))
    document = json.loads(base()[kind]["retort.json"])
    focus = draw(st.sampled_from((None, "labels", "files", "claims", "classes", "nearness", "numbers")))
    if focus == "numbers":
        for place in draw(
            st.lists(st.sampled_from(("ipc", "side", "seed", "held_out", "classes")), min_size=1, max_size=2)
        ):
            document[place] = draw(st.sampled_from((1, 0, 2, 7, 2**15, 2**31, 2**63, 10**30, 10**400, 0.5, -1, 1e300)))
        text = json.dumps(document).encode()
    elif focus is None:
        text = draw(documents(document, 3))
    else:
        document[focus] = draw(edited(document[focus], 2))
        text = json.dumps(document).encode()
    return kind, text, False, draw(WAYS)


@st.composite
def cards(draw: Any) -> tuple[str, bytes, bool, str]:
    """The YAML header edited as data, its text harmed, or the tables below it."""
    import yaml

    from benchmarks.hostile.texts import YAML, laughs

    kind = draw(st.sampled_from(KINDS))
    card = base()[kind]["README.md"].decode()
    _, header, body = card.split("---\n", 2)
    match draw(st.integers(0, 5)):
        case 0 | 1:
            value = draw(edited(yaml.safe_load(header)))
            header = json.dumps(value).replace("NaN", ".nan") + "\n"
        case 2:
            header += f"x{draw(st.integers(0, 9))}: {draw(st.sampled_from(YAML))}\n"
        case 3:
            header = (
                laughs(draw(st.integers(2, 12)))
                + "\n"
                + header
                + draw(st.sampled_from(("", "tags: *a1\n", "language: *a1\n")))
            )
        case 4:
            lines = header.splitlines()
            at = draw(st.integers(0, len(lines) - 1))
            lines[at] = lines[at].partition(":")[0] + ": " + draw(st.sampled_from(YAML))
            header = "\n".join(lines) + "\n"
        case _:
            lines = body.splitlines()
            lines[draw(st.integers(0, len(lines) - 1))] = draw(
                st.sampled_from(("|", "||||||||", "| a | b | c |", "---", "\x1b[2J", "|" * 10_000))
            )
            body = "\n".join(lines)
    text = f"---\n{header}---\n{body}".encode("utf-8", "surrogatepass")
    return kind, draw(spoiled(st.just(text))), False, draw(WAYS)


@st.composite
def croissants(draw: Any) -> tuple[str, bytes, bool, str]:
    kind = draw(st.sampled_from(KINDS))
    text = draw(documents(json.loads(base()[kind]["croissant.json"])))
    return kind, text, draw(st.booleans()), draw(st.sampled_from(("validate", "validate", "publish")))


def folders() -> st.SearchStrategy[Any]:
    """What lies in the folder beside, or instead of, its files."""
    kind = st.sampled_from(("link", "loop", "folder", "missing", "empty", "more", "fifo", "dangling", "unreadable"))
    return st.tuples(
        kind,
        st.sampled_from(
            (
                *TABLES.values(),
                "README.md",
                "retort.json",
                "croissant.json",
                "assets/story.safetensors",
                "x",
                "images",
                "assets",
            )
        ),
        SEEDS,
        WAYS,
    )


def run_folder(case: tuple[str, str, int, str], room: Path, prepared: Path) -> list[str]:
    import os

    what, name, seed, way = case
    out = laid(sound(prepared)[KINDS[seed % 3]], room)
    path = out / name
    if what != "more" and path.exists():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    match what:
        case "link":
            path.symlink_to("/etc/hostname")
        case "loop":
            path.symlink_to(path.name)
        case "dangling":
            path.symlink_to("nowhere")
        case "folder":
            path.mkdir(parents=True)
        case "empty":
            path.write_bytes(b"")
        case "fifo":
            os.mkfifo(path)
        case "unreadable" | "more":
            odd = out / "assets" / os.fsdecode(bytes([seed % 200 + 40, 0xFF, 0x0A]))
            odd.parent.mkdir(exist_ok=True)
            odd.write_bytes(b"x")
    return calls(out, room, way)


def story(prepared: Path) -> bytes:
    return sound(prepared)["exact"]["assets/story.safetensors"]


def run_story(case: tuple[int, bool], room: Path, prepared: Path) -> list[str]:
    seed, _ = case
    out = laid(sound(prepared)["exact"] | {"assets/story.safetensors": harmed(story(prepared), seed)}, room)
    return [told("report", out, "--out", room / "report.html")]


def of(name: str) -> Any:
    return lambda case, room, prepared: run_text(name, case, room, prepared)


FAMILIES = (
    Family("manifests", manifests(), of("retort.json"), prepare),
    Family("cards", cards(), of("README.md"), prepare, cost=0.8),
    Family("croissant", croissants(), of("croissant.json"), prepare, cost=0.5),
    Family("folders", folders(), run_folder, prepare, cost=0.4),
    Family("stories", st.tuples(SEEDS, st.booleans()), run_story, prepare, cost=0.3),
)
