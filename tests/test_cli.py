"""The command line: one clear line and exit code 2 for what cannot be used; tables and pages for what can."""

import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tarred import write_tar

from dd_tasks.presets import LARGE, PRESETS
from flows import cli

RETORT = Path(sys.executable).with_name("retort")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of a command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["retort", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """The one line on standard error of a command that ends with exit code 2."""
    assert call(monkeypatch, *arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("retort: ")]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def run(digits: Path, tmp_path: Path) -> list[object]:
    return [
        "run", "e2d", "--shards", f"{digits}/train/*.tar", "--ipc", "2", "--committee", "tiny",
        "--out", tmp_path / "out", "--store", tmp_path / "store", "--student", "convnet3_w32",
    ]  # fmt: skip


def changed(run: list[object], option: str, value: object) -> list[object]:
    """The command with one option set to another value."""
    if option not in run:
        return [*run, option, value]
    at = run.index(option) + 1
    return [*run[:at], value, *run[at + 1 :]]


@pytest.mark.parametrize(
    ("option", "value", "line"),
    [
        ("--ipc", "0", "retort: ipc 0: input should be greater than or equal to 1"),
        ("--seeds", "0", "retort: seeds 0: input should be greater than or equal to 1"),
        ("--license", "mitt", "retort: license 'mitt': the Hub knows no licence 'mitt'; did you mean mit"),
        ("--source-dataset", "my photos", "retort: source_dataset 'my photos': 'my photos' is not a dataset's name: "),
        ("--side", "2", "retort: --side '2': input should be greater than or equal to 8"),
        ("--committee", "smal", "retort: unknown committee 'smal'; did you mean 'small'? (choices: "),
        ("--committee", "none.json", "retort: no committee file none.json"),
        ("--student", "convnet33", "retort: unknown architecture 'convnet33'; did you mean 'convnet3'? (choices: "),
        ("--shards", "/nowhere/*.tar", "retort: no shard matches '/nowhere/*.tar'"),
        ("--device", "tpu", "retort: device 'tpu' is not here (choices: auto, cpu"),
        ("--engine", "rayy", "retort: engine 'rayy': expected local, ray, ray://HOST:PORT, pool or pool:NAME"),
        ("--request", "panels", "retort: --request 'panels': expected PART:cpus=N,gpus=N,memory=BYTES"),
        (
            "--request",
            "panel:gpus=1",
            "retort: --request 'panel:gpus=1': part 'panel': input should be 'observers', 'panels', ",
        ),
        ("--set", "labeller", "retort: --set 'labeller': expected part.field=value"),
        ("--set", "labeller.epoch=3", "retort: unknown field of Relabel in --set labeller.epoch 'epoch'; did you mean"),
        ("--set", "labeller.epochs=many", "retort: --set labeller.epochs=many: expected int"),
        (
            "--guides",
            "convnet3@epoch=2",
            "retort: --guides 'convnet3@epoch=2': this method has no guides (clom(METHOD)",
        ),
        ("--set", "initialiser=Whole", "retort: unknown part in --set initialiser 'Whole'; did you mean"),
    ],
)
def test_a_bad_option_is_one_line(
    run: list[object],
    option: str,
    value: str,
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = refused(capsys, monkeypatch, *changed(run, option, value))
    assert said.startswith(line), said


@pytest.mark.parametrize(
    ("guides", "line"),
    [
        (
            "convnet3@epoch=two",
            "retort: guides 'convnet3@epoch=two': epoch=two: expected numbers such as 2,4,8 or 0..2",
        ),
        ("convnet3@epoch=2 source=/nowhere/*.tar", "retort: no shard matches '/nowhere/*.tar'"),
    ],
)
@pytest.mark.parametrize("command", ["run", "compare"])
def test_guides_that_cannot_be_had_are_one_line_before_anything_is_made(
    run: list[object],
    command: str,
    guides: str,
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = refused(capsys, monkeypatch, command, f"clom(e2d, {guides})", *run[2:])
    assert said.startswith(line), said


def test_an_unknown_preset_names_the_choices(
    run: list[object], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = refused(capsys, monkeypatch, *[run[0], "e2dd", *run[2:]])
    choices = ", ".join(sorted(PRESETS | LARGE))
    assert line == f"retort: unknown preset 'e2dd'; did you mean 'e2d'? (choices: {choices})"


LEVELS = (f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))
LAUGHS = "\n".join(["preset: e2d", "shards: [x]", "a0: &a0 [x]", *LEVELS, "ipc: *a11"])  # 9 ** 11 values


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, "retort: cannot read {}: No such file or directory"),
        ("a: [", "retort: {} is not YAML: "),
        ("- a", "retort: {}: expected a mapping of parameters, found list"),
        ("preset: e2d", "retort: {}: shards is missing"),
        ("preset: e2d\nshards: [x]\nipc: 1\nipx: 2", "retort: {}: ipx 2: extra inputs are not permitted"),
        ("seed: 2001-99-99", "retort: {} is not YAML: a value in it cannot be read (ValueError)"),
        ("seed: !!timestamp x", "retort: {} is not YAML: a value in it cannot be read (AttributeError)"),
        (f"seed: {'9' * 5000}", "retort: {} is not YAML: a value in it cannot be read (ValueError)"),
        ("- " * 2000, "retort: {} is not YAML: a value in it cannot be read (RecursionError)"),
        ("[" * 3000, "retort: {} is not YAML: more than 100 brackets within brackets"),
        ("1: 2", "retort: {}: the parameter 1 is no name"),
        (f"preset: e2d\nshards: [x]\nipc: {'&a [' * 2}", "retort: {} is not YAML: "),
        (LAUGHS, "retort: {}: ipc [[[...], [...], [...], [...], [...], [...], ...], [[...], "),
        (
            "preset: e2d\nshards: [x]\nipc: 2000000",
            "retort: {}: ipc 2000000: input should be less than or equal to 1000000",
        ),
        ("preset: e2d\nshards: [x]\nipc: 1\n'a\x1b[2J': 2", "retort: {} is not YAML: "),
        ('preset: e2d\nshards: [x]\nipc: 1\n"a\\e[2J": 2', "retort: {}: a\\x1b[2J 2: extra inputs are not permitted"),
    ],
)
def test_a_bad_specification_is_one_line(
    text: str | None, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tmp_path / "spec.yaml"
    if text is not None:
        spec.write_text(text)
    said = refused(capsys, monkeypatch, "run", spec)
    assert said.startswith(line.format(spec)), said


def test_an_out_that_is_no_artifact_is_left_alone(
    run: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    line = refused(capsys, monkeypatch, *run)
    assert "exists and is not an artifact" in line
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_a_store_that_cannot_be_written_is_named(
    run: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    line = refused(capsys, monkeypatch, *changed(run, "--store", tmp_path / "file" / "store"))
    assert f"store {tmp_path / 'file' / 'store'} cannot be written" in line


@pytest.fixture
def image(digits: Path) -> bytes:
    with tarfile.open(next(digits.glob("train/*.tar"))) as tar:
        member = next(m for m in tar if m.name.endswith(".png"))
        return tar.extractfile(member).read()  # type: ignore[union-attr]


@pytest.mark.usefixtures("prefect_server")
class TestBadShards:
    """Noticed only once the flow reads them: still one line."""

    def test_ipc_above_the_images_of_a_class(
        self, run: list[object], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        line = refused(capsys, monkeypatch, *changed(run, "--ipc", 5000))
        assert line.startswith("retort: ipc 5000 is above the ") and "images of class" in line

    def test_a_shard_cut_in_half(
        self,
        run: list[object],
        digits: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        whole = next(digits.glob("train/*.tar")).read_bytes()
        (tmp_path / "half.tar").write_bytes(whole[: len(whole) // 2])
        line = refused(capsys, monkeypatch, *changed(run, "--shards", tmp_path / "half.tar"))
        assert "half.tar" in line and "cut short" in line
        assert not (tmp_path / "out").exists()

    def test_an_image_of_no_bytes(
        self,
        run: list[object],
        tmp_path: Path,
        image: bytes,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        members = [("good.png", image), ("good.cls", b"0"), ("empty.png", b""), ("empty.cls", b"1")]
        shard = write_tar(tmp_path / "s.tar", members)
        line = refused(capsys, monkeypatch, *changed(run, "--shards", shard))
        assert "s.tar" in line and "'empty'" in line

    def test_a_class_id_out_of_range(
        self,
        run: list[object],
        tmp_path: Path,
        image: bytes,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        (tmp_path / "classes.txt").write_text("cat\ndog\n")
        shard = write_tar(tmp_path / "s.tar", [("a.png", image), ("a.cls", b"12")])
        line = refused(capsys, monkeypatch, *changed(run, "--shards", shard))
        assert "class id 12 out of range 0..1" in line and "s.tar" in line and "'a'" in line


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("which", ["--store", "--out"])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    which: str, run: list[object], full_disk: Path, quick: dict[str, object], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump({**quick, "ipc": 20, "full_epochs": 0, "seeds": 1}))
    places = {"--out": tmp_path / "out", "--store": tmp_path / "store"} | {which: full_disk / "it"}
    line = refused(capsys, monkeypatch, "run", spec, *(x for pair in places.items() for x in pair))
    assert "No space left on device" in line
    assert not [p for p in full_disk.rglob("*") if "partial" in p.name]
    assert not (places["--out"] / "retort.json").exists()


def test_help_comes_at_once_without_the_heavy_libraries() -> None:
    code = (
        "import sys; sys.argv = ['retort', '--help']\n"
        "from flows.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'prefect', 'datasets', 'timm', 'torchvision', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("run", "presets", "validate", "report", "shards", "committee"):
        assert command in done.stdout


def test_explain_says_what_would_run_and_makes_nothing(
    run: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(monkeypatch, *run, "--explain", "--classes", "3,5,8", "--normalise", "imagenet") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "observer thin_vgg_w16: runs: not in the store" in lines and lines[-1].endswith("out: follows")
    assert "panel 0 (slots 0..5): runs: its inputs " in "\n".join(lines)
    assert not (tmp_path / "out").exists() and not [*(tmp_path / "store").rglob("*.json")]


def test_a_dry_run_prints_the_recipe_and_computes_nothing(
    run: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(monkeypatch, *run, "--dry-run", "--set", "schedule.phases.0.steps=7") == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert [phase["steps"] for phase in printed["recipe"]["schedule"]["phases"]] == [7, 60]
    assert printed["plan"]["steps"] == 67
    assert not (tmp_path / "out").exists() and not (tmp_path / "store").exists()


def test_options_name_the_rows(run: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import launch

    asked = []
    monkeypatch.setattr(launch, "show_plan", lambda spec, out: asked.append(spec))
    monkeypatch.setattr(launch, "compare", lambda specs, *others: asked.extend(specs))
    for rows in ([], ["--hard-rows"], ["--plain-rows"]):
        assert call(monkeypatch, *run, "--dry-run", *rows) == 0
        assert call(monkeypatch, "compare", "e2d", *run[2:6], *rows) == 0
    assert [(spec.hard_rows, spec.plain_rows) for spec in asked] == [
        (False, False), (False, False), (True, False), (True, False), (False, True), (False, True),
    ]  # fmt: skip


def test_presets_are_listed_with_their_parts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(monkeypatch, "presets") == 0
    methods, large = capsys.readouterr().out.split("presets for ImageNet-21K")
    for word in ("e2d", "WholeImages", "RoundRobin", "SmoothedStatistics", "Relabel"):
        assert word in methods
    assert "_21k" not in methods and "cda_21k" in large and "e2d_21k" in large


def test_pack_and_check(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "shards"
    assert call(monkeypatch, "shards", "pack", "digits", "--split", "test", "--out", out) == 0
    assert "images of 10 classes in 1 shards" in capsys.readouterr().out
    assert call(monkeypatch, "shards", "check", f"{out}/*.tar") == 0
    both = [tmp_path / "both", "--split", "train", "--split", "test"]
    assert call(monkeypatch, "shards", "pack", "digits", "--out", *both) == 0
    assert (tmp_path / "both" / "test" / "test-0000.tar").read_bytes() == (out / "test-0000.tar").read_bytes()
    assert (tmp_path / "both" / "train" / "index.json").exists()
    shard = out / "test-0000.tar"
    shard.write_bytes(shard.read_bytes().replace(b"IHDR", b"IHDX", 1))
    assert call(monkeypatch, "shards", "check", f"{out}/*.tar") == 1
    assert "test-0000.tar" in capsys.readouterr().out


@pytest.mark.usefixtures("prefect_server")
def test_run_validate_report(
    quick: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, out = tmp_path / "spec.yaml", tmp_path / "out"
    spec.write_text(yaml.safe_dump(quick))
    places = ["--out", out, "--store", tmp_path / "store", "--report", tmp_path / "report.html"]
    assert call(monkeypatch, "run", spec, *places) == 0
    printed = capsys.readouterr().out
    assert "distilled" in printed and "random" in printed and "load_dataset" in printed
    assert call(monkeypatch, "validate", out) == 0
    assert call(monkeypatch, "report", out, "--out", tmp_path / "again.html") == 0
    assert (tmp_path / "again.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "report.html").exists()
    shutil.copy(out / "retort.json", tmp_path / "kept.json")
    manifest = json.loads((out / "retort.json").read_text())
    (out / "retort.json").write_text(json.dumps({**manifest, "ipc": 3}))
    capsys.readouterr()
    assert call(monkeypatch, "validate", out) == 1
    assert "by retort.json it should be 30" in capsys.readouterr().out


def test_validate_of_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "nowhere" in refused(capsys, monkeypatch, "validate", tmp_path / "nowhere")


@pytest.mark.usefixtures("prefect_server")
def test_an_imported_observer_is_checked_in_and_used(
    digits: Path,
    quick: dict[str, object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import hashlib

    import safetensors.torch

    from dd_tasks.networks import Shape, build

    net = build("convnet3_bn_w16", Shape(10, 16))
    weights = tmp_path / "net.safetensors"
    weights.write_bytes(safetensors.torch.save({k: v.contiguous() for k, v in net.state_dict().items()}))
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    committee, store = tmp_path / "committee.json", tmp_path / "store"
    given = ["--shards", f"{digits}/train/*.tar", "--weights", weights, "--committee", committee, "--store", store]
    line = refused(capsys, monkeypatch, "committee", "import", "convnet3_bn_w16", *given, "--sha256", "0" * 64)
    assert sha256 in line and not committee.exists()
    assert call(monkeypatch, "committee", "import", "convnet3_bn_w16", *given, "--sha256", sha256) == 0
    spec = tmp_path / "spec.yaml"
    overrides = {k: v for k, v in quick["set"].items() if not k.startswith("observers")}  # type: ignore[attr-defined]
    spec.write_text(yaml.safe_dump({**quick, "committee": str(committee), "set": overrides, "flip": True}))
    assert call(monkeypatch, "run", spec, "--out", tmp_path / "out", "--store", store) == 0
    observers = json.loads((tmp_path / "out" / "retort.json").read_text())["observers"]
    assert [o["architecture"] for o in observers] == ["convnet3_bn_w16"]


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ('"$0" presets | head -1', 0, ""),
        ('"$0" presets >&-', 0, ""),
        ('"$0" validate nowhere 2>&-', 2, ""),
        ('"$0" presets > /dev/full', 2, "retort: No space left on device\n"),
    ],
)
def test_where_nobody_listens_a_command_ends_without_a_traceback(command: str, code: int, said: str) -> None:
    ended = subprocess.run(["bash", "-c", command, RETORT], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (code, said)
