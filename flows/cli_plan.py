"""`retort plan` and `retort calibrate`: what a run will take before it begins, and how fast this device is."""

from pathlib import Path
from typing import Annotated

import typer

from flows.options import (
    BytesRow,
    CodecName,
    Committee,
    Device,
    Flip,
    FullEpochs,
    GuidePool,
    HardRows,
    Ipc,
    LabelBytes,
    Overrides,
    PanelSize,
    PlainRows,
    Seeds,
    Shards,
    Side,
    Student,
    StudentBatch,
    StudentEpochs,
    Test,
    Verbose,
    spec_of,
)

MOST = 1_000_000  # as in a specification
Dataset = Annotated[str | None, typer.Option(help="A dataset by name: imagenet-1k, imagenet-21k, cifar10, ...")]


def plan(
    preset: Annotated[str, typer.Argument(help="A method (`retort presets`), or the path of a SPEC.yaml.")],
    shards: Shards = None,
    test: Test = None,
    dataset: Dataset = None,
    classes: Annotated[
        int | None, typer.Option(min=2, max=MOST, help="Classes of a dataset that is not at hand.")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, max=1 << 40, help="Its images for training.")] = None,
    ipc: Ipc = None,
    side: Side = None,
    committee: Committee = None,
    student: Student = None,
    seeds: Seeds = None,
    student_epochs: StudentEpochs = None,
    student_batch: StudentBatch = None,
    full_epochs: FullEpochs = None,
    hard_rows: HardRows = None,
    plain_rows: PlainRows = None,
    flip: Flip = None,
    guides: GuidePool = None,
    panel: PanelSize = None,
    codec: CodecName = None,
    label_bytes_per_image: LabelBytes = None,
    bytes_row: BytesRow = None,
    override: Overrides = None,
    calibration: Annotated[Path | None, typer.Option(help="What `retort calibrate` wrote; tells seconds.")] = None,
    price_per_hour: Annotated[float | None, typer.Option(min=0, max=MOST, help="Of one worker.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=MOST, help="Machines or GPUs as calibrated, side by side.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON (schemas/json/plan.schema.json).")] = False,
) -> None:
    """What a run will do, take and cost: image-updates, time, memory, bytes. Nothing is computed."""
    from dd_tasks.errors import InputError

    if dataset and shards:
        raise InputError(f"--dataset {dataset!r} and --shards {shards[0]!r}: name one of them")
    if (dataset or shards) and (classes or images):
        raise InputError(
            "--classes and --images are of a dataset that is not at hand: leave out --dataset and --shards"
        )
    elsewhere = [dataset] if dataset else ["planned"] if classes or images else None
    spec = spec_of(
        preset, shards=elsewhere or shards, test=test, ipc=ipc, side=side, committee=committee, students=student,
        seeds=seeds, student_epochs=student_epochs, student_batch=student_batch, full_epochs=full_epochs,
        hard_rows=hard_rows, plain_rows=plain_rows, flip=flip, guides=guides, panel=panel, codec=codec,
        label_bytes_per_image=label_bytes_per_image, bytes_row=bytes_row, set=override or None,
    )  # fmt: skip
    from flows import planning

    data = planning.extent(spec, dataset, classes, images)
    rates = planning.read_calibration(calibration) if calibration else None
    found = planning.planned(spec, data, rates, workers=workers, price=price_per_hour)
    if json:
        print(found.model_dump_json(indent=1))
    else:
        planning.show(found)


def calibrate(
    side: Annotated[int, typer.Option(min=8, max=8192, help="Pixels a side.")] = 32,
    committee: Annotated[str, typer.Option(help="A committee by name.")] = "small",
    student: Annotated[
        list[str] | None, typer.Option(help="Architecture; may be repeated.  [default: convnet3]")
    ] = None,
    preset: Annotated[
        list[str] | None, typer.Option(help="Whose terms; may be repeated.  [default: sre2l, e2d]")
    ] = None,
    classes: Annotated[int, typer.Option(min=2, max=MOST, help="Classes that the networks tell apart.")] = 10,
    panel: Annotated[
        list[int] | None, typer.Option(min=1, max=MOST, help="Sizes of panels.  [default: 10, 100]")
    ] = None,
    student_batch: Annotated[
        list[int] | None, typer.Option(min=2, max=MOST, help="Of students.  [default: 10, 100]")
    ] = None,
    compile_: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Also long work, where torch.compile is used.")
    ] = True,
    seconds: Annotated[float, typer.Option(min=0.1, max=3600, help="Of each measurement.")] = 2.0,
    device: Device = "auto",
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("calibration.json"),
    verbose: Verbose = False,
) -> None:
    """Measure this device with real networks and the loops of a run, a few seconds each, for `retort plan`."""
    from dd_tasks.calibrate import Trial
    from flows import console, launch, planning

    console.start(verbose)
    launch.check_file(out, "--out")
    trial = Trial(
        side=side, classes=classes, committee=committee, students=tuple(student or ("convnet3",)),
        presets=tuple(preset or ("sre2l", "e2d")), panels=tuple(panel or (10, 100)),
        student_batches=tuple(student_batch or (10, 100)), compiled=compile_, seconds=seconds,
    )  # fmt: skip
    planning.calibrate(trial, device, out)
