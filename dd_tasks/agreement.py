"""Do an artifact's card and its croissant.json say what its manifest says? Every difference, as one line."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from dd_tasks.card import CARD, CLAIMS_HEAD, MANIFEST, claims_table, columns, download_bytes, rows
from dd_tasks.croissant import CROISSANT, described_by
from schemas.card import CardHeader, ClassLabelType, Feature
from schemas.manifest import Manifest


def header_problems(header: CardHeader, manifest: Manifest) -> Iterator[str]:
    """Where the header's licence, tables, their files, sizes or columns are not the manifest's."""
    if header.license != manifest.license:
        yield f"{CARD} header: license is {header.license}, by {MANIFEST} it should be {manifest.license}"
    wanted = columns(manifest)
    if (found := [info.config_name for info in header.dataset_info]) != list(wanted):
        yield f"{CARD} header: names the tables {', '.join(found)}, by {MANIFEST} it should be {', '.join(wanted)}"
        return
    for config, info in zip(header.configs, header.dataset_info, strict=True):
        table, place = info.config_name, f"{CARD} header: {info.config_name}"
        if [files.path for files in config.data_files] != [f"{table}/train-*.parquet"]:
            yield f"{place}: data_files must be {table}/train-*.parquet"
        for what, says, wants in (
            ("num_examples", info.splits[0].num_examples, rows(manifest)[table]),
            ("download_size", info.download_size, download_bytes(manifest, table)),
        ):
            if says != wants:
                yield f"{place}: {what} is {says}, by {MANIFEST} it should be {wants}"
        yield from (f"{place}: {line}" for line in _columns_differ(info.features, wanted[table]))


def _columns_differ(found: list[Feature], wanted: list[Feature]) -> Iterator[str]:
    if [column.name for column in found] != [column.name for column in wanted]:
        yield f"columns are {', '.join(column.name for column in found)}"
        return
    for is_, should in zip(found, wanted, strict=True):
        if is_ == should:
            continue
        both_named = isinstance(is_.dtype, ClassLabelType) and isinstance(should.dtype, ClassLabelType)
        yield f"column {is_.name}: {'class names differ from' if both_named else 'type is not as by'} {MANIFEST}"


def claims_problems(text: str, manifest: Manifest) -> Iterator[str]:
    """Where the card's table of claims has other lines than the manifest's claims give."""
    found, wanted = Counter(_table_under(CLAIMS_HEAD, text)), Counter(map(_cells, claims_table(manifest)[2:]))
    for row in wanted - found:
        yield f"{CARD}: the table of accuracies lacks a claim of {MANIFEST}: {' | '.join(row)}"
    for row in found - wanted:
        yield f"{CARD}: the table of accuracies has a line that {MANIFEST} does not claim: {' | '.join(row)}"


def _table_under(head: str, text: str) -> list[tuple[str, ...]]:
    """The cells of every line of the tables with this head, but for the head and the rule below it."""
    found, inside = [], False
    for line in text.splitlines():
        cells = _cells(line)
        if cells == _cells(head):
            inside = True
        elif not line.lstrip().startswith("|"):
            inside = False
        elif inside and any(cell.strip(":-") for cell in cells):
            found.append(cells)
    return found


def _cells(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.strip().strip("|").split("|"))


def croissant_problems(fields: Any, manifest: Manifest) -> Iterator[str]:
    """One line where croissant.json names another artifact, other files or other columns than the manifest."""
    try:
        found, wanted = dict(_facts(fields)), dict(_facts(described_by(manifest)))
    except (KeyError, TypeError, AttributeError) as error:
        yield f"{CROISSANT}: is not as this tool writes it: {type(error).__name__} {error}"
        return
    if wrong := [what for what in wanted | found if found.get(what) != wanted.get(what)]:
        others = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        yield f"{CROISSANT}: {wrong[0]}{others} is not as by {MANIFEST}: of an earlier run, or edited"


def _facts(fields: Any) -> Iterator[tuple[str, Any]]:
    """What must agree, by its place; descriptions and citations may differ between versions of this tool."""
    for what in ("name", "version", "license"):
        yield what, fields[what]
    for part in fields["distribution"]:
        yield (
            f"distribution {part['@id']}",
            [part.get(what) for what in ("contentUrl", "contentSize", "sha256", "includes")],
        )
    for records in fields["recordSet"]:
        yield f"recordSet {records['@id']}", records.get("data")
        for field in records["field"]:
            yield f"recordSet {field['@id']}", [field.get(what) for what in ("dataType", "arrayShape", "source")]
