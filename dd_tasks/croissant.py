"""`croissant.json`: the tables of an artifact for any tool that reads Croissant (JSON-LD, version 1.1)."""

import json
from typing import Any

from dd_tasks import citation
from dd_tasks.card import TAGS, columns, described, rows
from schemas.card import ClassLabelType, Feature
from schemas.manifest import Manifest

CROISSANT = "croissant.json"
PARQUET = "application/x-parquet"
Json = dict[str, Any]
TERMS = (
    "arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "extract", "field", "fileObject",
    "fileProperty", "fileSet", "format", "includes", "isArray", "isLiveDataset", "jsonPath", "key", "md5",
    "parentField", "path", "recordSet", "references", "regex", "repeated", "replace", "samplingRate", "separator",
    "source", "subField", "transform",
)  # fmt: skip
CONTEXT: Json = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
    "description": {"@container": "@language"},
    **{term: f"cr:{term}" for term in TERMS},
}
TYPES = {"bool": "sc:Boolean", "string": "sc:Text", "binary": "sc:Text", "image": "sc:ImageObject"} | {
    kind.lower(): f"cr:{kind}"
    for kind in ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "Float16", "Float32", "Float64")
}


def text(manifest: Manifest) -> str:
    """The whole file. The manifest must already list its Parquet files; what else it lists does not count."""
    return json.dumps(described_by(manifest), indent=2, ensure_ascii=False) + "\n"


def described_by(manifest: Manifest) -> Json:
    tables = list(columns(manifest))
    distribution = [part for table in tables for part in (*_files(manifest, table), _file_set(table))]
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": manifest.name,
        "description": _summary(manifest),
        "version": f"1.0.0+{manifest.identity[: citation.SHOWN_IDENTITY]}",
        "license": manifest.license,
        "citeAs": citation.of_artifact(manifest),
        "keywords": [*TAGS, "image-classification"],
        "distribution": distribution,
        "recordSet": [*(_records(manifest, table) for table in tables), _classes(manifest.classes)],
    }


def _summary(manifest: Manifest) -> str:
    of = f" of {manifest.source_dataset}" if manifest.source_dataset else ""
    counts = f"{rows(manifest)['images']} images, {manifest.ipc} for each of {len(manifest.classes)} classes"
    labels = f", with {manifest.labels.views} soft labels of their views" if manifest.labels.views else ""
    return f"{counts}, distilled from {manifest.source.samples} real ones{of} by {manifest.preset}{labels}."


def _files(manifest: Manifest, table: str) -> list[Json]:
    """One object a Parquet file, with its checksum."""
    return [
        {
            "@type": "cr:FileObject",
            "@id": name,
            "name": name.rpartition("/")[2],
            "contentUrl": name,
            "contentSize": f"{entry.bytes} B",
            "encodingFormat": PARQUET,
            "sha256": entry.sha256,
        }
        for name, entry in sorted(manifest.files.items())
        if name.startswith(f"{table}/")
    ]


def _file_set(table: str) -> Json:
    """All files of a table, which is what its records are read from."""
    pattern = f"{table}/train-*.parquet"
    return {"@type": "cr:FileSet", "@id": f"{table}-files", "encodingFormat": PARQUET, "includes": pattern}


def _records(manifest: Manifest, table: str) -> Json:
    meanings = {name: meaning for name, _, meaning in described(manifest)[table]}
    fields = [_field(table, column, meanings[column.name]) for column in columns(manifest)[table]]
    return {"@type": "cr:RecordSet", "@id": table, "name": table, "field": fields}


def _field(table: str, column: Feature, meaning: str) -> Json:
    source: Json = {"fileSet": {"@id": f"{table}-files"}, "extract": {"column": column.name}}
    if column.dtype == "image":
        source["transform"] = {"jsonPath": "bytes"}
    field: Json = {
        "@type": "cr:Field",
        "@id": f"{table}/{column.name}",
        "name": column.name,
        "description": meaning,
        "dataType": data_type(column),
        "source": source,
    }
    if column.items:
        field |= {"isArray": True, "arrayShape": str(column.length or -1)}
    if isinstance(column.dtype, ClassLabelType):
        field["references"] = {"field": {"@id": "classes/number"}}
    return field


def data_type(column: Feature) -> str:
    """The column's type, or that of the items of its lists, in Croissant's words."""
    return "cr:Int64" if isinstance(column.dtype, ClassLabelType) else TYPES[column.items or column.dtype or ""]


def _classes(names: list[str]) -> Json:
    """The names of the classes, by number."""
    return {
        "@type": "cr:RecordSet",
        "@id": "classes",
        "name": "classes",
        "dataType": "sc:Enumeration",
        "key": {"@id": "classes/number"},
        "field": [
            {"@type": "cr:Field", "@id": "classes/number", "name": "number", "dataType": "sc:Integer"},
            {"@type": "cr:Field", "@id": "classes/name", "name": "name", "dataType": "sc:Text"},
        ],
        "data": [{"classes/number": i, "classes/name": name} for i, name in enumerate(names)],
    }
