"""Tables of artifacts, harmed as bytes, or sound Parquet files of what no artifact holds."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from benchmarks.hostile.artifacts import KINDS, TABLES, base, calls, laid, prepare, seal, sound
from benchmarks.hostile.family import Family
from benchmarks.hostile.mutations import NAMES, SEEDS, harmed
from benchmarks.hostile.pictures import images

ROWS = (20_000, 1_600_000)


def prepare_tables(folder: Path) -> None:
    """And files of many rows in few bytes: all the same, over and over."""
    prepare(folder)
    (folder / "bombs").mkdir()
    for name, path in TABLES.items():
        table = pq.read_table(folder / KINDS[0] / path)
        many = table.take(pa.array(np.zeros(ROWS[0], np.int64)))
        for rows in ROWS:
            with pq.ParquetWriter(folder / "bombs" / f"{name}-{rows}", table.schema, compression="zstd") as file:
                for _ in range(rows // len(many)):
                    file.write_table(many)


TYPES = (pa.int8(), pa.int64(), pa.uint64(), pa.float64(), pa.string(), pa.binary(), pa.large_string(), pa.bool_(),
pa.null(), pa.timestamp("us"), pa.decimal128(38, 2), pa.dictionary(pa.int32(), pa.string()))  # fmt: skip
BIG = (-1, 2**15 - 1, 2**31 - 1, 10**6, -(2**15), 7)


@st.composite
def tables(draw: Any) -> tuple[str, str, bytes | dict[str, Any], bool, str]:
    """Which artifact and table; the file itself, or what is to become of the sound one; whether all agrees with it."""
    kind, name = draw(st.sampled_from(KINDS)), draw(st.sampled_from(tuple(TABLES)))
    data = base()[kind][TABLES[name]]
    columns = pq.read_schema(pa.BufferReader(data)).names
    way = draw(st.sampled_from(("validate", "validate", "validate", "replay", "replay", "report", "load")))
    if draw(st.integers(0, 2)) == 0:
        return kind, name, harmed(data, draw(SEEDS), 3), draw(st.booleans()), way
    column = draw(st.sampled_from(columns))
    what = draw(
        st.sampled_from(
            (
                "drop",
                "cast",
                "null",
                "value",
                "value",
                "value",
                "rename",
                "double",
                "rows",
                "rows",
                "image",
                "metadata",
                "nested",
                "length",
                "bytes",
            )
        )
    )
    change: dict[str, Any] = {"what": what, "column": column, "seed": draw(SEEDS), "value": draw(st.sampled_from(BIG))}
    if what == "image":
        change["image"] = draw(images())
    elif what == "cast":
        change["type"] = draw(st.sampled_from(TYPES))
    elif what == "rows":
        change["rows"] = draw(st.sampled_from((0, 1, 19, 21, 1000, *ROWS)))
    elif what in ("rename", "metadata"):
        change["name"] = draw(st.sampled_from(NAMES[:-2])).replace("\ud800", "?")
    return kind, name, change, draw(st.integers(0, 3)) > 0, way


def changed(table: pa.Table, change: dict[str, Any]) -> pa.Table:
    """Where arrow cannot make such a table, the sound one."""
    try:
        return _changed(table, change)
    except (pa.ArrowException, TypeError, OverflowError, ValueError):
        return table


def _changed(table: pa.Table, change: dict[str, Any]) -> pa.Table:
    at, rng = table.schema.names.index(change["column"]), np.random.default_rng(change["seed"])
    field, column, rows = table.schema.field(at), table.column(at).combine_chunks(), len(table)
    match change["what"]:
        case "drop":
            return table.remove_column(at)
        case "cast":
            made = column.cast(change["type"]) if rng.random() < 0.5 else pa.nulls(rows, change["type"])
            return table.set_column(at, field.name, made)
        case "null":
            mask = pa.array(rng.random(rows) < 0.3)
            return table.set_column(
                at,
                field,
                pa.array(
                    [None if m else v for m, v in zip(mask.to_pylist(), column.to_pylist(), strict=True)], field.type
                ),
            )
        case "value":
            return table.set_column(at, field, pa.array(_values(column.to_pylist(), change["value"], rng), field.type))
        case "rename":
            return table.rename_columns([change["name"] if i == at else n for i, n in enumerate(table.schema.names)])
        case "double":
            return table.append_column(field, column)
        case "rows":
            return table.take(pa.array(np.zeros(change["rows"], np.int64)))
        case "metadata":
            return table.replace_schema_metadata({b"huggingface": change["name"].encode(), b"pandas": b"{"})
        case "nested":
            return table.set_column(at, field.name, pa.array([[v] for v in column.to_pylist()]))
        case "image" if field.name == "image" or (
            "image" in table.schema.names and pa.types.is_struct(table.schema.field("image").type)
        ):
            files = [{"bytes": change["image"], "path": None}] * rows
            return table.set_column(0, table.schema.field(0), pa.array(files, table.schema.field(0).type))
        case "length" if pa.types.is_fixed_size_list(field.type):
            return table.set_column(
                at,
                field.name,
                pa.array(
                    [v[:-1] for v in column.to_pylist()], pa.list_(field.type.value_type, field.type.list_size - 1)
                ),
            )
        case "bytes":
            return table.set_column(
                at, field, pa.array([rng.bytes(int(rng.integers(0, 3000))) for _ in range(rows)], field.type)
            )
    return table


def _values(values: list[Any], value: int, rng: np.random.Generator) -> list[Any]:
    """With one of them, or one number in it, out of range."""
    place = int(rng.integers(len(values)))
    old = values[place]
    odd = float("nan") if value == 7 else value
    if isinstance(old, list) and old:
        old[int(rng.integers(len(old)))] = (
            odd if isinstance(old[0], float) else value if isinstance(old[0], int) else "x"
        )
    else:
        values[place] = odd if isinstance(old, float) else value
    return values


def run_table(case: tuple[str, str, bytes | dict[str, Any], bool, str], room: Path, prepared: Path) -> list[str]:
    kind, name, change, sealed, way = case
    out = laid(sound(prepared)[kind], room)
    if isinstance(change, bytes):
        (out / TABLES[name]).write_bytes(change)
    elif change.get("rows") in ROWS:
        shutil.copy(prepared / "bombs" / f"{name}-{change['rows']}", out / TABLES[name])
        _agree(out, name, change)
    else:
        file = out / TABLES[name]
        pq.write_table(changed(pq.read_table(file), change), file, compression="zstd")
        _agree(out, name, change)
    if sealed:
        seal(out, TABLES[name])
    return calls(out, room, way)


def _agree(out: Path, name: str, change: dict[str, Any]) -> None:
    """A manifest that says as many rows as a table has."""
    if change["what"] != "rows" or not change["rows"] or change["seed"] % 2:
        return
    manifest = json.loads((out / "retort.json").read_bytes())
    if name == "images":
        manifest["ipc"] = -(-change["rows"] // 10)
    else:
        manifest["labels"]["rows"] = change["rows"]
    (out / "retort.json").write_text(json.dumps(manifest))


FAMILY = Family("Parquet files", tables(), run_table, prepare_tables, cost=0.8)
