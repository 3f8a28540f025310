"""The options that several commands take, and what is made of them. Imports nothing heavy."""

import functools
import os
import re
import reprlib
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pydantic import ValidationError

    from flows.settings import Request, Settings
    from schemas.spec import RunSpec

Store = Annotated[str, typer.Option(envvar="RETORT_STORE", help="Folder or URL of finished results.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")]
Engine = Annotated[str, typer.Option(envvar="RETORT_ENGINE", help="local, ray, ray://HOST:PORT, pool or pool:NAME.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Stages that --engine ray runs at once.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Of one stage; default: local all cores, elsewhere one.")]
Requests = Annotated[
    list[str] | None, typer.Option("--request", help="PART:cpus=N,gpus=N,memory=BYTES of a stage on Ray.")
]
Shards = Annotated[list[str] | None, typer.Option(help="Glob, brace pattern or URL of shards; may be repeated.")]
Test = Annotated[list[str] | None, typer.Option(help="Shards for the final rows.")]
Ipc = Annotated[int | None, typer.Option(help="Images per class.")]
Classes = Annotated[str | None, typer.Option(help="Distil these alone, by name, with commas; default: all.")]
Normalise = Annotated[str | None, typer.Option(help="Pixels by the mean and std of the data, or of imagenet.")]
Side = Annotated[int | None, typer.Option(min=8, max=8192, help="Pixels a side; default: the shards' own.")]
Committee = Annotated[str | None, typer.Option(help="A committee by name, or the file of `committee import`.")]
Student = Annotated[list[str] | None, typer.Option(help="Architecture to score; may be repeated.")]
Seeds = Annotated[int | None, typer.Option(help="Students a row.")]
StudentEpochs = Annotated[int | None, typer.Option(help="Epochs of a student.")]
StudentBatch = Annotated[int | None, typer.Option(help="Views a batch of a student.")]
FullEpochs = Annotated[int | None, typer.Option(help="Epochs of the full-data row; 0 leaves it out.")]
HardRows = Annotated[bool | None, typer.Option("--hard-rows", help="Also score hard labels, for LRS.")]
PlainRows = Annotated[bool | None, typer.Option("--plain-rows", help="Also score without augmentation, for ARS.")]
Seed = Annotated[int | None, typer.Option(help="Of everything random.")]
Flip = Annotated[bool | None, typer.Option("--flip/--no-flip", help="Whether mirrored images keep their class.")]
PanelSize = Annotated[int | None, typer.Option(help="Images recovered together.")]
GuidePool = Annotated[str | None, typer.Option("--guides", help="Pool, e.g. 'convnet3@epoch=2,4,8 seeds=0..2'.")]
License = Annotated[str | None, typer.Option("--license", help="Of the real data, by the Hub's identifier.")]
SourceDataset = Annotated[str | None, typer.Option(help="The real data's name, on the Hub or elsewhere.")]
CodecName = Annotated[str | None, typer.Option(help="Of soft labels: compact (the default) or exact.")]
LabelBytes = Annotated[int | None, typer.Option(help="Of compact labels; default: as many as the images take.")]
BytesRow = Annotated[
    bool | None, typer.Option("--bytes-row/--no-bytes-row", help="Also score real JPEG images of as many bytes.")
]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="part.field=value; may be repeated.")]
Tolerate = Annotated[int, typer.Option(min=0, help="Broken samples to set aside before failing.")]
Profile = Annotated[bool, typer.Option("--profile", help="Also write where the seconds went, into OUT-profile.")]
ProfileTo = Annotated[Path | None, typer.Option(metavar="FOLDER", help="The same, into this folder.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log details.")]


SHORT = reprlib.Repr()  # a few bytes of YAML may stand for more values than fit into memory
SHORT.maxlevel, SHORT.maxstring, SHORT.maxother = 2, 200, 200


def profiles_of(out: Path) -> Path:
    """Where the profile of a run goes that nobody named a folder for: beside its artifact."""
    return out.with_name(f"{out.name}-profile")


def profilable(command: Callable[..., None]) -> Callable[..., None]:
    """A command that counts the seconds of its process, where it is asked for a profile."""

    @functools.wraps(command)
    def counted(**options: Any) -> None:
        if not options["profile"] and options["profile_to"] is None:
            return command(**options)
        from flows import profile

        with profile.counted():
            return command(**options)

    return counted


def words() -> str:
    """The command that is under way, as a shell would take it, without the secrets in its URLs."""
    from dd_tasks.redaction import redacted

    return redacted(shlex.join(["retort", *sys.argv[1:]]))


def use_hub(endpoint: str | None) -> None:
    """Talk to the Hub at this URL, with progress bars on a terminal alone. Call before anything imports
    huggingface_hub, which reads these settings once."""
    from dd_tasks.errors import InputError, expect_open

    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if endpoint is None:
        return
    if not re.match(r"https?://[^/]", endpoint):
        raise InputError(f"--endpoint {endpoint!r}: expected http:// or https:// and a host")
    expect_open(endpoint, "--endpoint", "logs")
    os.environ["HF_ENDPOINT"] = endpoint.rstrip("/")


def settings_of(store: str, device: str, verbose: bool, **engine: Any) -> "Settings":
    """InputError for an engine, a number or a request that means nothing."""
    from pydantic import ValidationError

    from dd_tasks.errors import InputError
    from flows import console
    from flows.settings import Settings

    console.start(verbose)
    engine["requests"] = tuple(map(_request, engine.get("requests") or ()))
    try:
        return Settings(store=store, device=device, **engine)
    except ValidationError as error:
        raise InputError(_first(error)) from None


def _request(text: str) -> "Request":
    """PART:cpus=N,gpus=N,memory=BYTES"""
    from pydantic import ValidationError

    from dd_tasks.errors import InputError
    from flows.settings import Request

    part, _, asked = text.partition(":")
    pairs = [pair.split("=", 1) for pair in asked.split(",")]
    if not all(len(pair) == 2 for pair in pairs):
        raise InputError(f"--request {text!r}: expected PART:cpus=N,gpus=N,memory=BYTES")
    try:
        return Request.model_validate({**dict(pairs), "part": part})
    except ValidationError as error:
        raise InputError(f"--request {text!r}: {_first(error)}") from None


def _first(error: "ValidationError") -> str:
    """The first thing that is wrong with some values, in one line."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    said = first["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list")
    if first["type"] == "missing":
        return f"{place} is missing"
    return f"{place} {SHORT.repr(first['input'])}: {said[:1].lower()}{said[1:]}"


def _names(text: str) -> tuple[str, ...]:
    from dd_tasks.errors import InputError

    if not (names := tuple(filter(None, text.split(",")))):
        raise InputError(f"--classes {text!r}: expected names of classes, with commas")
    return names


def _overrides(pairs: list[str]) -> dict[str, str]:
    from dd_tasks.errors import InputError

    for pair in pairs:
        if "=" not in pair:
            raise InputError(f"--set {pair!r}: expected part.field=value")
    return dict(pair.split("=", 1) for pair in pairs)


def spec_of(preset: str, **options: Any) -> "RunSpec":
    """The run as specified by a SPEC.yaml and the options that were given, those first. InputError for what does not
    fit."""
    from pydantic import ValidationError

    from dd_tasks.errors import InputError
    from schemas.spec import RunSpec

    given = {key: value for key, value in options.items() if value is not None}
    if "classes" in given:
        given["classes"] = _names(given["classes"])
    if "set" in given:
        given["set"] = _overrides(given["set"])
    values: dict[str, Any] = {"preset": preset}
    if preset.endswith((".yaml", ".yml")):
        values = _yaml(Path(preset))
    elif "shards" not in given or "ipc" not in given:
        raise InputError(f"{preset!r}: --{'ipc' if 'shards' in given else 'shards'} is missing")
    try:
        return RunSpec(**{**values, **given})
    except ValidationError as error:
        own = preset.endswith((".yaml", ".yml")) and next(iter(error.errors()[0]["loc"]), None) not in given
        raise InputError(f"{preset}: {_first(error)}" if own else _first(error)) from None


def _yaml(path: Path) -> dict[str, Any]:
    from dd_tasks import yamls
    from dd_tasks.errors import InputError

    try:
        values = yamls.read(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    except ValueError as error:
        raise InputError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of parameters, found {type(values).__name__}")
    if odd := [name for name in values if not isinstance(name, str)]:
        raise InputError(f"{path}: the parameter {SHORT.repr(odd[0])} is no name")
    return values
