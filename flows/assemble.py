"""From a specification to what the flow runs, and from its results to the artifact."""

import importlib.metadata
import logging
import resource
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from dd_tasks import artifact, nearness, presets, recipe, report, throughput, validate, whole
from dd_tasks.codec import Labels
from dd_tasks.committee import Member, ObserverRecipe, named
from dd_tasks.compact import GROUP
from dd_tasks.errors import InputError
from dd_tasks.label import Labeller
from dd_tasks.networks import builder
from dd_tasks.pictures import preview
from dd_tasks.recipe import Recipe, identity, plain
from dd_tasks.redaction import redacted
from dd_tasks.shards import Source
from dd_tasks.store import Ref
from dd_tasks.students import StudentRecipe, shared
from dd_tasks.verify import portable
from flows.settings import Settings
from flows.stages import stage
from flows.stored import facts_of, get_canvas, get_labels, get_nearest, hold, store_of
from flows.walk import current
from flows.workspace import Data, Pool, Seat, machine
from schemas.manifest import (
    Claim,
    Cost,
    GuideEntry,
    LabelInfo,
    Manifest,
    Metrics,
    Nearness,
    ObserverEntry,
    QuarantinedSample,
    SourceData,
    SourceShard,
)
from schemas.spec import RunSpec

log = logging.getLogger(__name__)
Row = tuple[str, str, int]  # row, student, epochs
Seen = Literal["augmented", "plain"]  # how students see the images
VERSIONS = ("retort", "torch", "torchvision", "datasets", "pyarrow", "prefect")


@dataclass(frozen=True)
class Run:
    """A specification with its names resolved."""

    spec: RunSpec
    recipe: Recipe
    observers: tuple[Member, ...]
    compact: bool  # whether labels are published so
    students: tuple[StudentRecipe, ...]

    @property
    def labellers(self) -> dict[Seen, tuple[Labeller, Labeller]]:
        """Of the distilled images and of whole real ones, by how students see them."""
        ours, theirs = self.recipe.labeller, self.recipe.labeller.of_whole_images()
        usual: dict[Seen, tuple[Labeller, Labeller]] = {"augmented": (ours, theirs)}
        return usual | ({"plain": (ours.plain(), theirs.plain())} if self.spec.plain_rows else {})

    @property
    def rows(self) -> Iterator[tuple[StudentRecipe, Seen]]:
        """Each student on soft labels and, where asked for or where there are no others, on hard ones; where asked for,
        also without augmentation, on those the method has."""
        hard = self.recipe.labeller.hard
        for student in self.students:
            if not hard:
                yield student, "augmented"
            if self.spec.hard_rows or hard:
                yield replace(student, hard=True), "augmented"
            if self.spec.plain_rows:
                yield replace(student, hard=hard or student.hard, mirror=False, across=False), "plain"

    def row(self, data: str, student: StudentRecipe, seen: Seen) -> Row:
        ending = "_plain" if seen == "plain" else "_hard" if student.hard else ""
        return data + ending, student.architecture, student.epochs

    @property
    def full_students(self) -> Iterator[ObserverRecipe]:
        """The same architectures on all real data, trained as observers are, one a seed."""
        for architecture in self.spec.students if self.spec.full_epochs else ():
            for seed in range(self.spec.seeds):
                yield ObserverRecipe(
                    architecture, self.spec.full_epochs, peak_rate=0.05, batch=64, flip=self.spec.flip, seed=seed
                )


@dataclass
class Explained(Exception):
    """The end of a walk: what was asked for, and what becomes of the artifact."""

    run: Run
    data: Data
    fate: str


@dataclass(frozen=True)
class Labelled:
    """The labels of the distilled images, as drawn and as published, and those of each draw of random ones: as their
    students see them, and as drawn."""

    drawn: Ref
    published: Ref
    random: list[Ref]
    random_drawn: list[Ref]


@dataclass(frozen=True)
class Results:
    """What a run made, by reference: the committee, the canvas before and after, how near it is to real images, its
    labels, the scores."""

    seats: tuple[Seat, ...]
    pools: tuple[Pool, ...]
    first: Ref
    panels: tuple[Ref, ...]
    canvas: Ref
    near: Ref
    labels: Labelled
    measured: list[tuple[Row, int, Ref]]
    real: tuple[Ref, ...]  # candidates, and the random images of the claims

    @property
    def held(self) -> dict[str, list[Ref]]:
        """What each stage left in the store, that of random real images with it."""
        stages, labels = self.stages, self.labels
        more = {
            "recover": [*self.panels, self.canvas],
            "relabel": [*stages["relabel"], *labels.random, *labels.random_drawn],
        }
        return {"draw": list(self.real), **stages, **more}

    @property
    def stages(self) -> dict[str, list[Ref]]:
        """What each stage made, for its cost."""
        ahead = {
            "guides": [guide.weights for pool in self.pools for guide in pool.guides],
            "priors": [ref for seat in self.seats for ref in seat.trial],
        }
        return {stage: list(dict.fromkeys(refs)) for stage, refs in ahead.items() if refs} | {
            "observers": [seat.weights for seat in self.seats],
            "statistics": [ref for seat in self.seats for ref in seat.measured],
            "choose": [self.first],
            "recover": list(self.panels),
            "nearness": [self.near],
            "relabel": [self.labels.drawn, self.labels.published],
            "students": [ref for _, _, ref in self.measured],
        }

    @property
    def refs(self) -> tuple[Ref, ...]:
        """All of these, for the store to keep."""
        return tuple(dict.fromkeys(ref for refs in self.held.values() for ref in refs))


def resolve(spec: RunSpec, side: int, classes: int) -> Run:
    """The run at this side and number of classes. Overrides go to the recipe, the student or the observers.

    InputError for a name or an override that means nothing.
    """
    method: Recipe = presets.preset(spec.preset, side=side)
    if spec.labels is not None:
        method = replace(method, labeller=presets.preset(spec.labels, side=side).labeller)
    few = spec.codec == "compact" and not method.labeller.hard
    batch = spec.student_batch or min(max(spec.ipc * classes // 10, 10), 100)
    student = StudentRecipe(epochs=spec.student_epochs, batch=batch, mirror=few and spec.flip, across=few)
    observers = named(spec.committee)
    if spec.guides is not None:
        method = recipe.with_guides(method, spec.guides)
    if not spec.flip:
        method, observers = recipe.without_flips((method, observers))
    for path, text in spec.overrides.items():
        head, _, rest = path.partition(".")
        if head == "student" and rest:
            student = recipe.override(student, rest, text, "student.")
        elif head == "observers" and rest:
            observers = tuple(recipe.override(o, rest, text, "observers.") for o in observers)
        else:
            method = recipe.override(method, path, text)
    method, compact = _coded(method, spec)
    for voters in recipe.voters_in(method):
        voters.at_once(len(observers))
    method.check_batch()
    for name in (*spec.students, *(o.architecture for o in observers)):
        builder(name)
    return Run(spec, method, observers, compact, tuple(replace(student, architecture=name) for name in spec.students))


def _coded(method: Recipe, spec: RunSpec) -> tuple[Recipe, bool]:
    """The method with views drawn as the codec needs them, and whether labels are compact: never those that are the
    classes alone. InputError for a labeller that knows no groups."""
    labeller = method.labeller
    if spec.codec == "exact" or labeller.hard or not labeller.epochs:
        return method, False
    if not hasattr(labeller, "group"):
        raise InputError(f"codec compact: {type(labeller).__name__} draws no views in groups (choices: exact)")
    return replace(method, labeller=replace(labeller, group=GROUP)), True  # type: ignore[type-var]


def claims_of(measured: list[tuple[Row, int, Ref]], split: str, settings: Settings) -> list[Claim]:
    """One claim a row: last-epoch top-1 by seed, mean and sample standard deviation."""
    by_row: dict[Row, list[tuple[int, Mapping[str, Any]]]] = {}
    for row, seed, ref in measured:
        by_row.setdefault(row, []).append((seed, facts_of(ref, settings)))
    claims = []
    for (name, student, epochs), found in by_row.items():
        accuracies = [facts["accuracy"] for _, facts in found]
        images = found[0][1].get("images")
        claims.append(
            Claim(
                row=name, student=student, epochs=epochs, split=split, seeds=[seed for seed, _ in found],
                images=images, accuracies=accuracies, mean=statistics.fmean(accuracies),
                std=statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
                seconds=round(sum(facts["seconds"] for _, facts in found), 1),
            )
        )  # fmt: skip
    return claims


def _source(source: Source, patterns: tuple[str, ...], data: Data | None = None) -> SourceData:
    index = source.index
    shards = [SourceShard(**entry.model_dump(exclude={"classes"})) for entry in index.shards]
    faults = [QuarantinedSample(shard=f.shard, key=f.key, reason=f.reason) for f in (data.faults if data else ())]
    return SourceData(
        digest=source.digest, shards=shards, samples=index.samples, quarantined=faults,
        classes=list(source.known) or None,
        patterns=[pattern for pattern in patterns if portable(pattern)],
    )  # fmt: skip


def _observer(seat: Seat, settings: Settings) -> ObserverEntry:
    facts = facts_of(seat.weights, settings)
    return ObserverEntry(
        name=seat.recipe.name, architecture=seat.recipe.architecture, epochs=facts["epochs"],
        accuracy=seat.accuracy(settings), digest=seat.weights.digest, seconds=facts["seconds"],
    )  # fmt: skip


def _nearness(results: Results, settings: Settings) -> Nearness:
    near, random_N = get_nearest(results.near, settings)
    return nearness.summary(near, get_canvas(results.canvas, settings).sources, random_N)


@stage("assemble", spent="artifact")
def assemble(run: Run, data: Data, results: Results, out: Path, settings: Settings, command: str) -> Manifest:
    """Write the artifact folder, unless it is there already; it is validated before it takes its name."""
    if (walk := current()) and (walk.running or walk.wanted):
        raise Explained(run, data, "follows")
    begun, finished = get_canvas(results.first, settings), get_canvas(results.canvas, settings)
    labels, (near, _) = get_labels(results.labels.published, finished, settings), get_nearest(results.near, settings)
    name = run.spec.name or out.resolve().name
    if not walk:
        whole.sweep(out)
    draft = draft_of(run, data, results, labels, settings, name=name, command=command)
    there = artifact.standing(out, draft, validate.validate)
    if walk:
        raise Explained(run, data, "is already this" if there else "is written")
    hold(draft.name, draft.identity, draft.preset, results.refs, settings)
    if there:
        log.info("%s is already this artifact: it is not written again", out)
        return there
    story = story_of(run, begun.images_NCHW, results.panels, settings)
    pictures = {
        "preview.png": preview(
            begun.images_NCHW, finished.images_NCHW, finished.targets_N, draft.classes, began_as=finished.began_as
        ),
        "story.safetensors": story.to_bytes(),
        "report.html": report.render(draft, finished, story).encode(),
    }
    return artifact.write(out, finished, labels, draft, pictures, nearest=near, overwrite=True, check=validate.validate)


def draft_of(
    run: Run, data: Data, results: Results, labels: Labels, settings: Settings, *, name: str, command: str
) -> Manifest:
    """The manifest but for the files, which are listed once they are written."""
    spec, shape, cost = run.spec, data.shape, _cost(results, settings)
    return Manifest(
        name=name,
        license=spec.license,
        source_dataset=spec.source_dataset,
        nearness=_nearness(results, settings),
        preset=spec.preset,
        recipe=plain(run.recipe),
        identity=identity("run", 1, canvas=results.canvas.digest, labels=results.labels.published.digest),
        seed=spec.seed,
        ipc=spec.ipc,
        classes=data.source.index.classes,
        side=data.side,
        mean=shape.mean,
        std=shape.std,
        source=_source(data.source, spec.shards, data),
        test=_source(data.test, spec.test) if data.test else None,
        held_out=data.held_out,
        observers=[_observer(seat, settings) for seat in results.seats],
        guides=[
            GuideEntry(name=g.name, architecture=g.architecture, checkpoint=g.checkpoint, digest=g.weights.digest)
            for pool in results.pools
            for g in pool.guides
        ],
        labels=_label_info(run.recipe.labeller, labels),
        student=shared(run.students[0]),
        claims=claims_of(results.measured, "test" if data.test else "held-out", settings),
        cost=cost,
        metrics=_metrics(results, cost, settings),
        command=redacted(command),
        versions={"python": sys.version.split()[0]}
        | {package: importlib.metadata.version(package) for package in VERSIONS},
        files={},
    )


def _label_info(labeller: Labeller, labels: Labels) -> LabelInfo:
    coding, drawn = labels.coding, labeller.epochs
    epochs = coding.epochs if coding else drawn
    return LabelInfo(
        codec=labels.codec, epochs=epochs, drawn=drawn, views=epochs * len(labels.soft_NK), rows=len(labels.table),
        top=coding.top if coding else None, step=coding.step if coding else None, bytes=0,
        batch_statistics=getattr(labeller, "batch_statistics", None),
    )  # fmt: skip


def _cost(results: Results, settings: Settings) -> Cost:
    def total(fact: str, refs: Iterable[Ref]) -> float:
        return sum(facts_of(ref, settings).get(fact, 0) for ref in refs)

    stages = results.stages
    return Cost(
        image_updates=int(total("image_updates", (*stages["recover"], *stages.get("priors", ())))),
        seconds={stage: round(total("seconds", refs), 1) for stage, refs in stages.items()},
        peak_memory_bytes=peak_memory(),
        machine=machine(),
    )


def _metrics(results: Results, cost: Cost, settings: Settings) -> Metrics:
    panels: list[Mapping[str, Any]] = [facts_of(panel, settings) for panel in results.panels]
    held = {stage: store_of(settings).size(refs) for stage, refs in results.held.items()}
    return throughput.metrics(panels, cost, held)


def story_of(run: Run, before_NCHW: torch.Tensor, panels: tuple[Ref, ...], settings: Settings) -> report.Story:
    """The curves of every panel and where exploitation looked, for the report."""
    curves = [store_of(settings).get(panel, "curves").tensors["curves"] for panel in panels]
    phases = run.recipe.schedule.phases
    return report.Story(
        before_NCHW, tuple(c["loss_T"] for c in curves), tuple(c["remembered_T"] for c in curves),
        torch.cat([c["gaze_NSS"] for c in curves]), phases[0].steps if phases else 0,
    )  # fmt: skip


def peak_memory() -> int:
    """Bytes: of the GPU where one was used, else of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
