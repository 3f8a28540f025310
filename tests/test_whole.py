"""Files and folders that are whole or not there, and what killed processes leave of them."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from dd_tasks import whole


def fill(out: Path, text: str, *, overwrite: bool = True) -> None:
    with whole.all_or_nothing(out, overwrite=overwrite) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text(text)


def killed(code: str, *arguments: Path) -> None:
    """Python code in a process of its own, which kills itself."""
    begin = "import os, signal, sys\nfrom pathlib import Path\nfrom dd_tasks import whole\n"
    done = subprocess.run([sys.executable, "-c", begin + textwrap.dedent(code), *arguments])
    assert done.returncode == -signal.SIGKILL


def test_a_folder_takes_the_place_of_another_or_leaves_it(tmp_path: Path) -> None:
    out = tmp_path / "parent" / "out"
    for text in ("one", "two"):
        fill(out, text)
        assert (out / "deep" / "file").read_text() == text
    with pytest.raises(ZeroDivisionError), whole.all_or_nothing(out) as folder:
        (folder / "half").write_text("")
        _ = 1 / 0
    with pytest.raises(OSError, match="not empty"):
        fill(out, "three", overwrite=False)
    assert (out / "deep" / "file").read_text() == "two" and os.listdir(out.parent) == ["out"]


def test_an_empty_folder_is_taken_without_leave_to_overwrite(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out", "one", overwrite=False)
    assert os.listdir(tmp_path / "out") == ["deep"]


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_fills_is_not(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, "whole")
    code = """
        with whole.all_or_nothing(Path(sys.argv[1])) as folder:
            (folder / "half").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    killed(code, out)
    left = {path for path in tmp_path.iterdir() if path != out}
    assert len(left) == 1
    with whole.all_or_nothing(out) as living:
        assert set(tmp_path.iterdir()) == {out, living}
        whole.sweep(out)
        assert living.exists()
        (living / "file").write_text("new")
    assert os.listdir(tmp_path) == ["out"] and os.listdir(out) == ["file"]


@pytest.mark.parametrize("after", [lambda out: whole.sweep(out), lambda out: fill(out, "next")])
def test_a_kill_between_two_renames_loses_nothing(tmp_path: Path, after: Callable[[Path], None]) -> None:
    """Where the file system cannot exchange names."""
    out = tmp_path / "out"
    fill(out, "whole")
    code = """
        rename = Path.rename
        def last(self, target):
            rename(self, target)
            if ".old-" in target.name:
                os.kill(os.getpid(), signal.SIGKILL)
        whole._exchanged = lambda *_: False
        Path.rename = last
        with whole.all_or_nothing(Path(sys.argv[1])) as folder:
            (folder / "deep").mkdir()
    """
    killed(code, out)
    assert not out.exists() and len(os.listdir(tmp_path)) == 2
    after(out)
    assert (out / "deep" / "file").read_text() in ("whole", "next") and os.listdir(tmp_path) == ["out"]


def test_many_processes_that_fill_one_folder_leave_one_whole(tmp_path: Path) -> None:
    code = """
        from pathlib import Path
        import sys
        from dd_tasks import whole
        for i in range(20):
            with whole.all_or_nothing(Path(sys.argv[1])) as folder:
                for name in "abc":
                    (folder / name).write_text(sys.argv[2])
    """
    makers = [subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), tmp_path / "out", name]) for name in "123"]
    assert [maker.wait() for maker in makers] == [0, 0, 0]
    assert len({(tmp_path / "out" / name).read_text() for name in "abc"}) == 1
    assert os.listdir(tmp_path) == ["out"]


def test_a_file_is_replaced_whole_and_a_device_is_written(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    whole.write(tmp_path / "link", b"new")
    whole.write(tmp_path / "deep" / "page", b"page")
    whole.write(Path("/dev/null"), b"gone")
    assert (tmp_path / "real").read_text() == "new" and (tmp_path / "link").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["deep", "link", "real"] and os.listdir(tmp_path / "deep") == ["page"]
    with pytest.raises(OSError, match="File name too long"):
        whole.write(tmp_path / ("x" * 250), b"")
    assert not Path("/dev/null").is_file() and len(os.listdir(tmp_path)) == 3
