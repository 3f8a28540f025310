"""Every command on every kind of bad argument: exactly one line, exit code 2, and nothing written.

`bad_arguments.txt` is the table: a command line after `$`, and under it what is said of it. {here} is the folder that
the commands run in.
"""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from sample import draft, tiny_canvas, tiny_labels, tiny_nearest

from dd_tasks import artifact
from flows import cli

TABLE = (Path(__file__).parent / "bad_arguments.txt").read_text(encoding="utf-8").strip().split("\n$ ")
ROWS = [tuple(row.removeprefix("$ ").split("\n", 1)) for row in TABLE]
LOGGED = re.compile(r"\d\d:\d\d:\d\d ")


def commands(group: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command."""
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


@pytest.fixture(scope="module")
def here(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sound shards, an artifact and a specification, and things that are none of these."""
    folder = tmp_path_factory.mktemp("here")
    for split in ("train", "test"):
        (folder / split).symlink_to(digits / split)
    artifact.write(
        folder / "artifact", tiny_canvas(), tiny_labels(), draft(), {"preview.png": b"x"}, nearest=tiny_nearest()
    )
    for name in ("empty", "mine"):
        (folder / name).mkdir()
    whole = next(digits.glob("train/*.tar")).read_bytes()
    texts = {
        "note.txt": "mine", "mine/thesis.txt": "mine", "note.tar": "no tar", "bad.yaml": "a: [", "list.yaml": "- a",
        "no-ipc.yaml": "preset: e2d\nshards: [train/*.tar]\n", "bad.json": "{", "none.json": '{"observers": []}',
        "more.yaml": "preset: e2d\nshards: [train/*.tar]\nipc: 1\nipx: 2\n", "weights.safetensors": "no weights",
        "null.json": "null",
        "twice.yaml": "preset: e2d\npreset: edc\nshards: [train/*.tar]\nipc: 1\n",
        "alone.yaml": "preset: e2d\nshards: train/*.tar\nipc: 1\n",
        "good.yaml": "preset: e2d\nshards: [train/*.tar]\nipc: 1\ncommittee: tiny\n",
        "signed.yaml": "preset: e2d\nshards: ['https://host/x.tar?Signature=hidden']\nipc: 1\ncommittee: tiny\n",
    }  # fmt: skip
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "half.tar").write_bytes(whole[: len(whole) // 2])
    for name in ("loop", "loop.yaml"):
        (folder / name).symlink_to(name)
    (folder / "latin.yaml").write_bytes(b"preset: \xff")
    return folder


def listed(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder, with its size and when it was written."""
    found = [*folder.rglob("*"), *folder.glob("train/*"), *folder.glob("test/*")]
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in found if not path.is_dir()} | {
        str(path): (0, 0) for path in found if path.is_dir()
    }


@pytest.mark.parametrize(("command", "line"), ROWS, ids=[row[0] for row in ROWS])
def test_a_bad_argument_is_one_line_and_nothing_is_written(
    command: str, line: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    monkeypatch.delenv("RETORT_STORE", raising=False)
    monkeypatch.setattr(sys, "argv", ["retort", *shlex.split(command.replace("{here}", str(here)))])
    before = listed(here)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr()
    lines = [said_line for said_line in said.err.splitlines() if not LOGGED.match(said_line)]
    assert lines == [f"retort: {line}".replace("{here}", str(here))]
    assert stopped.value.code == 2 and said.out == ""
    assert listed(here) == before


def test_every_command_has_rows_and_there_are_many() -> None:
    known = set(commands(typer.main.get_command(cli.app)))
    told = {
        command: [row for row in ROWS if tuple(shlex.split(row[0]))[: len(command)] == command] for command in known
    }
    assert {command for command, rows in told.items() if not rows} == set()
    assert len(ROWS) >= 60 and len(set(ROWS)) == len(ROWS)
