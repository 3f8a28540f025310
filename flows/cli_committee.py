"""`retort committee ...` and `retort guides ...`: the networks that judge, ahead of the runs that seat them."""

from pathlib import Path
from typing import Annotated

import typer

from flows.options import (
    Committee,
    Device,
    Engine,
    Flip,
    Ipc,
    Overrides,
    PanelSize,
    Requests,
    Seed,
    Seeds,
    Shards,
    Side,
    Store,
    Student,
    StudentBatch,
    StudentEpochs,
    Test,
    Threads,
    Tolerate,
    Verbose,
    Workers,
    settings_of,
    spec_of,
    words,
)  # fmt: skip

MOST = 1_000_000  # epochs, as in a specification

committee_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Train or import the observers.")
guides_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Study pools of pre-trained guides.")


@committee_app.command("train")
def train(
    shards: Annotated[list[str], typer.Option(help="Globs, brace patterns or URLs of shards.")],
    committee: Annotated[str, typer.Argument(help="A committee by name.")] = "small",
    side: Side = None,
    tolerate: Tolerate = 0,
    keep_every: Annotated[int, typer.Option(min=0, max=MOST, help="Keep a checkpoint every k epochs.")] = 0,
    epochs: Annotated[int | None, typer.Option(min=1, max=MOST, help="Default: the committee's own.")] = None,
    store: Store = "runs/store",
    device: Device = "auto",
    engine: Engine = "local",
    workers: Workers = None,
    threads: Threads = None,
    request: Requests = None,
    verbose: Verbose = False,
) -> None:
    """Train a committee into the store; later runs on the same shards find it there."""
    from flows import launch

    settings = settings_of(store, device, verbose, engine=engine, workers=workers, threads=threads, requests=request)
    launch.train(committee, tuple(shards), side, tolerate, keep_every, epochs, settings)


@committee_app.command("priors")
def priors(
    preset: Annotated[str, typer.Argument(help="The method that will weigh them, or the path of a SPEC.yaml.")],
    shards: Shards = None,
    ipc: Ipc = None,
    side: Side = None,
    committee: Committee = None,
    student: Annotated[list[str] | None, typer.Option(help="Architecture that measures; the first counts.")] = None,
    seed: Seed = None,
    override: Overrides = None,
    store: Store = "runs/store",
    device: Device = "auto",
    verbose: Verbose = False,
) -> None:
    """Measure what each observer is worth alone, on held-out training images; later runs find it in the store."""
    spec = spec_of(
        preset,
        shards=shards,
        ipc=ipc,
        side=side,
        committee=committee,
        students=student,
        seed=seed,
        set=override or None,
    )
    from flows import launch

    launch.measure_priors(spec, settings_of(store, device, verbose))


@guides_app.callback()
def guides_() -> None:
    """Its one command has a name, so that others can join it."""


@guides_app.command("study")
def study(
    shards: Annotated[list[str], typer.Option(help="Glob, brace pattern or URL of shards; may be repeated.")],
    ipc: Annotated[int, typer.Option(help="Images per class.")],
    base: Annotated[str, typer.Argument(help="The method that is guided.")] = "dream_plus",
    out: Annotated[Path, typer.Option(help="Folder of the artifacts, the table and the page.")] = Path("runs/guides"),
    architecture: Annotated[str, typer.Option(help="Of the guides.")] = "convnet3",
    other: Annotated[str, typer.Option(help="Another one, to vary it.")] = "thin_resnet8_w16",
    epochs: Annotated[str, typer.Option(help="Of the guides' training: the last is its end.")] = "1,2,4,8",
    foreign: Annotated[str | None, typer.Option(help="Shards of another dataset, to vary the domain.")] = None,
    test: Test = None,
    side: Side = None,
    committee: Committee = None,
    student: Student = None,
    seeds: Seeds = None,
    student_epochs: StudentEpochs = None,
    student_batch: StudentBatch = None,
    seed: Seed = None,
    flip: Flip = None,
    panel: PanelSize = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="part.field=value, in every method.")] = None,
    store: Store = "runs/store",
    device: Device = "auto",
    verbose: Verbose = False,
) -> None:
    """Vary one factor of a pool at a time: its diversity, epoch, architecture and domain; one table, one page."""
    from dd_tasks import guides

    factors, presets = zip(*guides.study(base, architecture, other, epochs, foreign), strict=True)
    specs = tuple(
        spec_of(
            preset, shards=shards, test=test, ipc=ipc, side=side, committee=committee, students=student, seeds=seeds,
            student_epochs=student_epochs, student_batch=student_batch, full_epochs=0, seed=seed, flip=flip,
            panel=panel, codec="exact", bytes_row=False, set=override or None,
        )
        for preset in presets
    )  # fmt: skip
    from flows import launch

    launch.compare(specs, out, settings_of(store, device, verbose), words(), factors)


@committee_app.command("import")
def import_(
    architecture: Annotated[str, typer.Argument(help="timm/NAME, torchvision/NAME or one of ours.")],
    shards: Annotated[list[str], typer.Option(help="Shards to measure its statistics on.")],
    weights: Annotated[str, typer.Option(help="A .safetensors file, or ORG/NAME on the Hub.")],
    sha256: Annotated[str, typer.Option(help="Of the weights file; they are refused when it differs.")],
    committee: Annotated[Path, typer.Option(help="Committee file it joins.")] = Path("committee.json"),
    side: Side = None,
    store: Store = "runs/store",
    device: Device = "auto",
    verbose: Verbose = False,
) -> None:
    """Seat a pre-trained network: check its weights, measure accuracy and statistics on the shards."""
    from dd_tasks.committee import Imported
    from flows import launch

    member = Imported(architecture, weights, sha256.lower())
    launch.import_observer(member, tuple(shards), committee, side, settings_of(store, device, verbose))
