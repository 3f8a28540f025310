"""`retort ...`: the command line. Heavy libraries are imported by the command that needs them."""

import os
import re
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer

from flows import cli_plan
from flows.cli_committee import committee_app, guides_app
from flows.cli_serve import serve
from flows.cli_store import store_app
from flows.options import (
    BytesRow,
    Classes,
    CodecName,
    Committee,
    Device,
    Engine,
    Flip,
    FullEpochs,
    GuidePool,
    HardRows,
    Ipc,
    LabelBytes,
    License,
    Normalise,
    Overrides,
    PanelSize,
    PlainRows,
    Profile,
    ProfileTo,
    Requests,
    Seed,
    Seeds,
    Shards,
    Side,
    SourceDataset,
    Store,
    Student,
    StudentBatch,
    StudentEpochs,
    Test,
    Threads,
    Tolerate,
    Verbose,
    Workers,
    profilable,
    profiles_of,
    settings_of,
    spec_of,
    use_hub,
    words,
)  # fmt: skip
from flows.refusals import failed, line_of, placed, shown, tell

app = typer.Typer(
    name="retort", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Distil a labelled image dataset into a few images per class with soft labels.",
)  # fmt: skip
shards_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Pack and check WebDataset shards.")
app.add_typer(shards_app, name="shards")
app.add_typer(committee_app, name="committee")
app.add_typer(guides_app, name="guides")
app.add_typer(store_app, name="store")
app.command()(cli_plan.plan)
app.command()(cli_plan.calibrate)
app.command()(serve)

UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # of every mistake in the arguments


@app.command()
@profilable
def run(
    preset: Annotated[str, typer.Argument(help="A method (`retort presets`), or the path of a SPEC.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder of the artifact.")] = Path("runs/dataset"),
    shards: Shards = None,
    test: Test = None,
    ipc: Ipc = None,
    classes: Classes = None,
    normalise: Normalise = None,
    side: Side = None,
    committee: Committee = None,
    student: Student = None,
    seeds: Seeds = None,
    student_epochs: StudentEpochs = None,
    student_batch: StudentBatch = None,
    full_epochs: FullEpochs = None,
    hard_rows: HardRows = None,
    plain_rows: PlainRows = None,
    seed: Seed = None,
    flip: Flip = None,
    guides: GuidePool = None,
    panel: PanelSize = None,
    codec: CodecName = None,
    label_bytes_per_image: LabelBytes = None,
    bytes_row: BytesRow = None,
    tolerate: Annotated[int | None, typer.Option(help="Broken samples to set aside before failing.")] = None,
    license_: License = None,
    source_dataset: SourceDataset = None,
    override: Overrides = None,
    report: Annotated[Path | None, typer.Option(help="Also write the report here.")] = None,
    store: Store = "runs/store",
    device: Device = "auto",
    engine: Engine = "local",
    workers: Workers = None,
    threads: Threads = None,
    request: Requests = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the recipe and the plan, and stop.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Print which stages would run and why, and stop.")] = False,
    profile: Profile = False,
    profile_to: ProfileTo = None,
    verbose: Verbose = False,
) -> None:
    """Distil shards into a dataset: train the committee, recover, relabel, score, validate, report."""
    spec = spec_of(
        preset, shards=shards, test=test, ipc=ipc, classes=classes, normalise=normalise, side=side,
        committee=committee, students=student, seeds=seeds,
        student_epochs=student_epochs, student_batch=student_batch, full_epochs=full_epochs, hard_rows=hard_rows,
        plain_rows=plain_rows, seed=seed, flip=flip, guides=guides, panel=panel, tolerate=tolerate,
        license=license_, source_dataset=source_dataset, codec=codec, label_bytes_per_image=label_bytes_per_image,
        bytes_row=bytes_row, set=override or None,
    )  # fmt: skip
    from dd_tasks.errors import InputError
    from flows.environment import importing

    with importing():
        from flows import distill, launch  # noqa: F401  the flow too: every way from here needs it
    settings = settings_of(store, device, verbose, engine=engine, workers=workers, threads=threads, requests=request)
    wanted = profile_to or (profiles_of(out) if profile else None)
    if wanted and (dry_run or explain):
        raise InputError("--profile is of a run that is made: leave out --dry-run and --explain")
    if dry_run:
        launch.show_plan(spec, out)
    elif explain:
        launch.explain(spec, out, settings_of(store, device, verbose))
    else:
        launch.run(spec, out, report, settings, words(), wanted)


@app.command()
def compare(
    presets: Annotated[list[str], typer.Argument(help="Methods (`retort presets`).")],
    shards: Annotated[list[str], typer.Option(help="Glob, brace pattern or URL of shards; may be repeated.")],
    ipc: Annotated[str, typer.Option(help="Images per class; several with commas.")],
    out: Annotated[Path, typer.Option(help="Folder of the artifacts, the table and the page.")] = Path("runs/compare"),
    test: Test = None,
    labels: Annotated[str, typer.Option(help="Preset whose labels all methods get; `own`: each its own.")] = "e2d",
    side: Side = None,
    committee: Committee = None,
    student: Student = None,
    seeds: Seeds = None,
    student_epochs: StudentEpochs = None,
    student_batch: StudentBatch = None,
    full_epochs: FullEpochs = None,
    hard_rows: HardRows = None,
    plain_rows: PlainRows = None,
    seed: Seed = None,
    flip: Flip = None,
    panel: PanelSize = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="part.field=value, in every method.")] = None,
    store: Store = "runs/store",
    device: Device = "auto",
    engine: Engine = "local",
    workers: Workers = None,
    threads: Threads = None,
    request: Requests = None,
    verbose: Verbose = False,
) -> None:
    """Run several methods under the same observers, labels, students and seeds; one table, one page."""
    specs = tuple(
        spec_of(
            preset, shards=shards, test=test, ipc=n, side=side, committee=committee, students=student, seeds=seeds,
            student_epochs=student_epochs, student_batch=student_batch, full_epochs=full_epochs, hard_rows=hard_rows,
            plain_rows=plain_rows, seed=seed, flip=flip, panel=panel, labels=None if labels == "own" else labels,
            codec="exact", bytes_row=False, set=override or None,
        )
        for n in ipc.split(",")
        for preset in dict.fromkeys(presets)
    )  # fmt: skip
    from flows import launch

    settings = settings_of(store, device, verbose, engine=engine, workers=workers, threads=threads, requests=request)
    launch.compare(specs, out, settings, words())


@app.command("presets")
def presets_() -> None:
    """The methods: paper, parts and cost."""
    from flows import launch

    launch.show_presets()


@app.command()
def validate(path: Annotated[Path, typer.Argument(help="Folder of an artifact.")]) -> None:
    """Check an artifact: schema, checksums, counts, labels, images. Exit 1 with a list of what is wrong."""
    from dd_tasks.validate import validate as problems_of

    problems = problems_of(path)
    tell(problems)
    if problems:
        raise SystemExit(1)
    print(f"{path}: valid")


@app.command()
def verify(
    target: Annotated[str, typer.Argument(help="Folder of an artifact, or ORG/NAME[@REVISION] on the Hub.")],
    students: Annotated[str, typer.Option(help="Architectures, with commas.  [default: all that are claimed]")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Measure the first seed of each claim alone.")] = False,
    test: Annotated[list[str] | None, typer.Option(help="Test shards.  [default: those of the manifest]")] = None,
    shards: Annotated[
        list[str] | None, typer.Option(help="Training shards, where claims are of held-out ones.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Also write the results here, as JUnit XML.")] = None,
    store: Store = "runs/verify-store",
    device: Device = "auto",
    verbose: Verbose = False,
) -> None:
    """Validate an artifact, open it as a stranger would, and train its students again. Exit 1 if a claim fails."""
    from dd_tasks.verify import Scope
    from flows import launch

    wanted = tuple(filter(None, students.split(",")))
    scope = Scope(wanted, quick, tuple(test or ()), tuple(shards or ()))
    if not launch.verify(target, scope, junit, settings_of(store, device, verbose)):
        raise SystemExit(1)


@app.command()
def report(
    path: Annotated[Path, typer.Argument(help="Folder of an artifact.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
) -> None:
    """Write the HTML report of an artifact again."""
    from flows import launch

    launch.write_report(path, out)


@app.command()
def publish(
    path: Annotated[Path, typer.Argument(help="Folder of an artifact.")],
    target: Annotated[str, typer.Argument(help="ORG/NAME on the Hub, or file:///FOLDER.")],
    private: Annotated[bool, typer.Option("--private", help="If the repository is new, make it private.")] = False,
    branch: Annotated[str | None, typer.Option(help="Commit to this one; created from main if missing.")] = None,
    pull_request: Annotated[bool, typer.Option("--pr", help="Open a pull request instead.")] = False,
    tag: Annotated[str | None, typer.Option(help="Of the new revision, e.g. v1.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Another Hub's URL.  [default: HF_ENDPOINT]")] = None,
    token_block: Annotated[str | None, typer.Option(help="Prefect Secret block.  [default: HF_TOKEN]")] = None,
    verbose: Verbose = False,
) -> None:
    """Publish an artifact in one commit: validate, commit, read back, tag. Again, it changes nothing."""
    use_hub(endpoint)
    from flows import console, launch
    from schemas.release import ReleaseSpec

    console.start(verbose)
    launch.publish(
        path,
        ReleaseSpec(
            target=target, private=private, branch=branch, pull_request=pull_request, tag=tag, token_block=token_block
        ),
    )  # fmt: skip


@shards_app.command("pack")
def pack(
    source: Annotated[str, typer.Argument(help="Folder of class folders, `digits`, or a Hugging Face dataset.")],
    out: Annotated[Path, typer.Option(help="Folder of the shards; of several splits, each in a folder of its own.")],
    split: Annotated[list[str] | None, typer.Option(help="Split; may be repeated.  [default: train]")] = None,
    image_column: Annotated[str | None, typer.Option(help="Default: the only image column.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Default: the only class column.")] = None,
    side: Annotated[int, typer.Option(min=1, max=512, help="Pixels a side of `digits`.")] = 16,
    samples_per_shard: Annotated[int, typer.Option(min=1, max=1 << 40)] = 10_000,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace shards that are there.")] = False,
) -> None:
    """Pack images into WebDataset shards with an index.json."""
    from dd_tasks import packing
    from dd_tasks.errors import InputError
    from flows import console

    console.start()
    splits = split or ["train"]
    if len(set(splits)) < len(splits):
        raise InputError(f"--split {max(splits, key=splits.count)!r} is given twice")
    for part in splits:
        classes, samples = packing.samples_of(source, part, image_column, label_column, side)
        prefix = re.sub(r"[^A-Za-z0-9_-]+", "-", part).strip("-")
        folder = out / prefix if len(splits) > 1 else out
        index = packing.pack(
            samples, classes, folder, prefix=prefix, samples_per_shard=samples_per_shard, track=console.track,
            overwrite=overwrite,
        )  # fmt: skip
        print(f"{folder}: {index.samples} images of {len(index.classes)} classes in {len(index.shards)} shards")


@shards_app.command("check")
def check(
    patterns: Annotated[list[str], typer.Argument(help="Globs, brace patterns or URLs of shards.")],
    tolerate: Tolerate = 0,
) -> None:
    """Read every sample. Exit 0 when sound, 1 with a list of what is wrong."""
    from dd_tasks import packing
    from dd_tasks.shards import Quarantine
    from flows import console

    console.start()
    problems = packing.check(patterns, quarantine=Quarantine(tolerate), track=console.track)
    tell(problems)
    if problems:
        raise SystemExit(1)
    print("sound")


def main() -> None:
    """Bad input is one line and exit code 2; so is an operating system's refusal (a full disk, say). SIGTERM and Ctrl-C
    are one line and exit code 130. No secret is told, not even by a failure of our own."""
    from dd_tasks.redaction import hush
    from flows import interrupts
    from flows.environment import keep_freed_memory, leave_garbage, prepare_environment

    with interrupts.expected():
        try:
            prepare_environment()
            keep_freed_memory()
            leave_garbage()
            hush()
            sys.excepthook = failed
            for name in ("stdout", "stderr"):
                if getattr(sys, name) is None:  # a shell closed it: nothing that is opened later may be taken for it
                    setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
            for stream in (sys.stdout, sys.stderr):  # of a locale that knows no ± (say)
                if isinstance(stream, TextIOWrapper):
                    stream.reconfigure(errors="replace")
            _run()
        except BaseException as error:
            if interrupts.came() or isinstance(error, KeyboardInterrupt | typer.Abort):
                interrupts.end()
            raise


def _run() -> None:
    try:
        raise SystemExit(app(standalone_mode=False) or 0)
    except UsageError as error:
        message = error.format_message()  # type: ignore[attr-defined]
        print(message if "Usage: " in message else f"retort: {shown(placed(error, message))}", file=sys.stderr)
        raise SystemExit(2) from None
    except (ValueError, OSError) as error:
        line = line_of(error)
        if line is None:
            raise
        print(f"retort: {line}", file=sys.stderr)
        raise SystemExit(2) from None
