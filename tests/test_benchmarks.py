"""What the README says was measured is what the benchmarks wrote."""

from pathlib import Path

from benchmarks import tables

README = Path(tables.ROOT) / "README.md"


def test_the_readme_shows_the_committed_results() -> None:
    text = README.read_text()
    assert tables.MARKS.search(text)
    assert tables.rewritten(text) == text


def test_a_result_that_changes_changes_the_table(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    for path in (tables.ROOT / "benchmarks" / "results").glob("*.json"):
        (folder / path.name).write_text(path.read_text().replace('"mean": 0.', '"mean": 0.0'))
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    assert tables.rewritten(README.read_text()) != README.read_text()
