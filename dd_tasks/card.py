"""The dataset card (README.md) of an artifact, from its manifest: every number in it is computed, none is typed."""

import html
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from pydantic import BaseModel

from dd_tasks import citation
from dd_tasks.claims import (
    ORDINARY_UPDATES,
    QUALITY,
    ROWS,
    Pairing,
    accuracy,
    at_equal_bytes,
    pairings,
    percent,
)
from dd_tasks.codec import label_schema
from dd_tasks.visible import one_line
from schemas.card import CardHeader, ClassLabelType, ClassNames, Config, DataFiles, DatasetInfo, Feature, Split
from schemas.card import size_category as category
from schemas.manifest import Manifest
from schemas.tables import GroupRow, ImageRow, ViewRow

MANIFEST, CARD = "retort.json", "README.md"
Table = Literal["images", "soft_labels"]
TAGS = ("dataset-distillation", "soft-labels", "retort")
SHARDS_SHOWN = 20
NAMES = {"halffloat": "float16", "float": "float32"}  # the Hub's for Arrow's
CLAIMS_HEAD = "| trained on | student | seeds | accuracy | epochs | tested on |"
HERE = "path/to/this-folder"  # load_dataset(".") fails: datasets 5.2 finds no name in it


def image_columns(classes: list[str]) -> list[Feature]:
    """Columns of the table `images` in the form of the Hub's header."""
    names = ClassNames(names={str(i): name for i, name in enumerate(classes)})
    return [
        Feature(name="image", dtype="image"),
        Feature(name="label", dtype=ClassLabelType(class_label=names)),
        Feature(name="soft_label", list="float32", length=len(classes)),
        Feature(name="slot", dtype="int32"),
        Feature(name="sources", list="string"),
        Feature(name="nearest", dtype="string"),
        Feature(name="similarity", dtype="float32"),
    ]


def label_columns(manifest: Manifest) -> list[Feature]:
    """Columns of the table `soft_labels` in the form of the Hub's header."""
    labels = manifest.labels
    return [_feature(field) for field in label_schema(labels.codec, len(manifest.classes), labels.top)]


def _feature(field: pa.Field) -> Feature:
    if pa.types.is_fixed_size_list(field.type):
        return Feature(name=field.name, list=NAMES[str(field.type.value_type)], length=field.type.list_size)
    if pa.types.is_list(field.type):
        return Feature(name=field.name, list=str(field.type.value_type))
    return Feature(name=field.name, dtype=NAMES.get(str(field.type), str(field.type)))


def columns(manifest: Manifest) -> dict[str, list[Feature]]:
    """The columns of each table that the artifact has: without views there is no `soft_labels`."""
    tables = {"images": image_columns(manifest.classes)}
    return tables | ({"soft_labels": label_columns(manifest)} if manifest.labels.views else {})


def rows(manifest: Manifest) -> dict[str, int]:
    """How many rows each table has."""
    return {"images": manifest.ipc * len(manifest.classes), "soft_labels": manifest.labels.rows}


def download_bytes(manifest: Manifest, table: str) -> int:
    """Bytes of the table's files."""
    return sum(entry.bytes for name, entry in manifest.files.items() if name.startswith(f"{table}/"))


def _info(table: Table, manifest: Manifest, table_bytes: int) -> DatasetInfo:
    return DatasetInfo(
        config_name=table,
        features=columns(manifest)[table],
        splits=[Split(num_bytes=table_bytes, num_examples=rows(manifest)[table])],
        download_size=download_bytes(manifest, table),
        dataset_size=table_bytes,
    )


def _config(table: Table) -> Config:
    files = [DataFiles(path=f"{table}/train-*.parquet")]
    return Config(config_name=table, default=True if table == "images" else None, data_files=files)


def _origin(dataset: str | None) -> list[str]:
    """Where the real data comes from, in the Hub's words; nothing where it is not known."""
    return [dataset if dataset == "original" else f"extended|{dataset}"] if dataset else []


def header(manifest: Manifest, table_bytes: Mapping[str, int]) -> CardHeader:
    """The card's header; `table_bytes` says how large each table is in memory."""
    tables: list[Table] = ["images", "soft_labels"]
    tables = tables[: len(columns(manifest))]
    return CardHeader(
        license=manifest.license,
        pretty_name=f"{manifest.name}, {manifest.ipc} per class",
        task_categories=["image-classification"],
        task_ids=["multi-class-image-classification"],
        annotations_creators=["machine-generated"],
        source_datasets=_origin(manifest.source_dataset),
        tags=list(TAGS),
        size_categories=[category(rows(manifest)["images"])],
        configs=[_config(table) for table in tables],
        dataset_info=[_info(table, manifest, table_bytes[table]) for table in tables],
    )


def header_text(card_header: CardHeader) -> str:
    fields = card_header.model_dump(mode="json", by_alias=True, exclude_none=True)
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=120)


def escape(text: str) -> str:
    """The text so that Markdown and HTML show it as it is, on one line."""
    marked = re.sub(r"([\\`*_\[\]#|~$:@])", r"\\\1", one_line(str(text)))
    return html.escape(marked, quote=False)


def size(count: int) -> str:
    """A number of bytes, readable."""
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= step:
            return f"{count / step:.1f} {unit}"
    return f"{count} bytes"


def claims_table(manifest: Manifest) -> list[str]:
    """The lines of the table of claims, its two first ones included."""
    lines = [CLAIMS_HEAD, re.sub(r"[^|]+", "---", CLAIMS_HEAD)]
    for claim in manifest.claims:
        scored = f"{escape(claim.student)} | {len(claim.seeds)} | {accuracy(claim)} | {claim.epochs} | {claim.split}"
        lines.append(f"| {ROWS[claim.row]} | {scored} |")
    return lines


def _sentence(pair: Pairing) -> str:
    """Whether the distilled images beat the random ones."""
    limits = f" ({pair.limit})" if pair.limit else ""
    start = f"With {escape(pair.distilled.student)}{limits}, this dataset"
    points, limit = percent(pair.lead), percent(pair.spread)
    if pair.lead <= 0:
        return f"{start} does **not** beat random real images: the difference is {points} points (2 std: {limit})."
    ahead = f"{start} is {points} points ahead of random real images"
    if pair.single:
        return f"{ahead}, but with one seed that is **not** shown to be more than chance."
    if pair.verdict == "unclear":
        return f"{ahead}, **not** more than 2 std of the difference ({limit}): it does not clearly beat them."
    return f"{start} beats random real images by {points} points, more than 2 std of the difference ({limit})."


WINS = {"ahead": "wins", "behind": "does **not** win", "unclear": "does **not** clearly win"}


def _bytes_sentence(pair: Pairing) -> str:
    """Whether the dataset is worth its bytes."""
    jpeg = pair.random
    return (
        f"At equal bytes it {WINS[pair.verdict]}: {jpeg.images:,} random real images, as JPEG files of quality "
        f"{QUALITY} with class labels, bring {escape(jpeg.student)} to {accuracy(jpeg)} %, trained with about "
        f"{ORDINARY_UPDATES} times the image-updates; this dataset is {percent(abs(pair.lead))} points "
        f"{'behind' if pair.lead < 0 else 'ahead'} (2 std: {percent(pair.spread)})."
    )


def described(manifest: Manifest) -> dict[str, list[tuple[str, str, str]]]:
    """(name, type, meaning) of each column of each table."""
    label_row = ViewRow if manifest.labels.codec == "exact" else GroupRow
    models: dict[str, type[BaseModel]] = {"images": ImageRow, "soft_labels": label_row}
    return {table: _columns(models[table], features) for table, features in columns(manifest).items()}


def _columns(row: type[BaseModel], features: list[Feature]) -> list[tuple[str, str, str]]:
    found = []
    for feature in features:
        kind = "class label" if isinstance(feature.dtype, ClassLabelType) else feature.dtype
        kind = kind or f"list of {feature.length or ''} {feature.items}".replace("  ", " ")
        found.append((feature.name, kind, row.model_fields[feature.name].description or _IMAGE))
    return found


_IMAGE = "the image, a PNG"


@cache
def _template() -> Template:
    folder = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(loader=folder, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(text=escape, percent=percent, size=size, similarity="{:.3f}".format)
    return environment.get_template("card.md.j2")


def for_repository(text: str, repository: str) -> str:
    """The card `text` of a local artifact with examples that load `repository` from the Hub, and its address there."""
    return citation.published(text.replace(f'"{HERE}"', f'"{repository}"'), repository)


def render(manifest: Manifest, table_bytes: Mapping[str, int], *, repository: str = HERE) -> str:
    """The whole README.md.

    `table_bytes` maps `images` and `soft_labels` to their size in memory, `repository` is what the examples load. The
    manifest must already list its files.
    """
    values: dict[str, Any] = {
        "header": header_text(header(manifest, table_bytes)),
        "manifest": manifest,
        "repository": HERE,
        "images": rows(manifest)["images"],
        "columns": described(manifest),
        "claims": claims_table(manifest),
        "citations": [citation.of_artifact(manifest, citation.UNPUBLISHED), *citation.of_papers(manifest.preset)],
        "comparisons": [_sentence(pair) for pair in pairings(manifest.claims)],
        "equal_bytes": [_bytes_sentence(pair) for pair in at_equal_bytes(manifest.claims)],
        "shards_shown": SHARDS_SHOWN,
        "mean_std": [[float(f"{x:.6g}") for x in triple] for triple in (manifest.mean, manifest.std)],
        "command": one_line(manifest.command),
        "download": {table: download_bytes(manifest, table) for table in columns(manifest)},
    }
    text = _template().render(values) + "\n"
    return text if repository == HERE else for_repository(text, repository)
