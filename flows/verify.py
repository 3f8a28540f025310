"""@flow verify_dataset: an artifact as a stranger meets it. It is opened, validated, and its claims measured again."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from dd_tasks import artifact, hub, shards, students, verify
from dd_tasks.errors import InputError
from dd_tasks.feeds import Feed
from dd_tasks.networks import Shape
from dd_tasks.recipe import identity
from dd_tasks.shards import Quarantine, Source
from dd_tasks.store import Ref
from dd_tasks.students import StudentRecipe
from dd_tasks.validate import validate
from dd_tasks.verify import Check, Scope, Split
from flows import console
from flows.engines import ENGINE
from flows.seeing import show_checks
from flows.settings import VERIFY_STORE, Settings
from flows.stages import stage
from flows.stored import Made, facts_of, kept
from flows.walk import flow
from flows.workspace import device_of
from schemas.manifest import Claim, Manifest

EVERYTHING = Scope()
HERE = Settings(store=VERIFY_STORE)


@dataclass(frozen=True)
class Trial:
    """What students learn from and are tested on: the tables of an artifact, and real images found again."""

    folder: Path
    tables: str  # digest
    shape: Shape
    source: Source
    share: float | None  # of the source's images, those held out by their keys; None: all
    tolerate: int

    @property
    def digest(self) -> str:
        return identity(
            "trial", 1, tables=self.tables, shape=self.shape, source=self.source.digest, share=self.share
        )  # fmt: skip

    def is_tested(self, key: str) -> bool:
        return self.share is None or shards.held_out(key, self.share)


def locate(target: str) -> Path:
    """The folder of that name, or else the files of the Hub's dataset ORG/NAME[@REVISION]. InputError for neither."""
    if Path(target).exists():
        return Path(target)
    try:
        return hub.fetch_dataset(target)
    except InputError as error:
        raise InputError(f"no folder {target!r}, and {error}") from None


@flow(name="verify-dataset", task_runner=ENGINE)
def verify_dataset(
    target: str, scope: Scope = EVERYTHING, settings: Settings = HERE, strict: bool = False
) -> tuple[Check, ...]:
    """Everything that was asked of the artifact, claim by claim, and what came of it. NotAsPromised for a check that
    failed, if `strict`: so that a scheduled run fails.

    Args:
        target: folder of an artifact, or ORG/NAME[@REVISION] on the Hub
        strict: fail where a check does
    """
    checks = show_checks(target, checked(target, scope, settings))
    if strict and verify.failed(checks):
        raise verify.NotAsPromised(target, checks)
    return checks


def checked(target: str, scope: Scope, settings: Settings) -> tuple[Check, ...]:
    folder = locate(target)

    # Nothing is trained on what is not sound, or on what a stranger cannot open.
    checks = list(check_files(folder))
    manifest = _manifest_of(folder)
    if manifest is None:
        return tuple(checks)
    asked = verify.plan(manifest, scope)
    trials = {} if verify.failed(checks) else find_images(folder, manifest, scope)
    if not verify.failed(checks):
        checks += check_opening(folder, manifest)
    if verify.failed(checks):
        return (*checks, *(Check(verify.named(c), "skipped", why or "the artifact is not sound") for c, why in asked))

    # Claims: the same students, by the same recipe and seeds, on the artifact's own images and labels.
    for claim, why in asked:
        if why:
            checks.append(Check(verify.named(claim), "skipped", why))
        else:
            checks.append(_measured(claim, manifest, trials[claim.split], scope.quick, settings))
    if not trials:
        checks.append(Check("claims", "failed", "there is none that can be measured from the artifact alone"))
    return tuple(checks)


def _manifest_of(folder: Path) -> Manifest | None:
    """The manifest, if it can be read: where not, the checks of the files say so."""
    try:
        return artifact.read_manifest(folder)
    except InputError:
        return None


def expect_usable(target: str, scope: Scope) -> tuple[str, ...]:
    """The shards that verifying the target takes. InputError, before any work, for a target, a student or shards that
    cannot be had; what is wrong with the artifact itself is for the checks to say."""
    manifest = _manifest_of(locate(target))
    if manifest is None:
        return ()
    return tuple(pattern for split in _splits(manifest, scope) for pattern in _patterns(split, manifest, scope))


def _splits(manifest: Manifest, scope: Scope) -> list[Split]:
    """Those of the claims that will be measured."""
    return list(dict.fromkeys(claim.split for claim, why in verify.plan(manifest, scope) if not why))


def _patterns(split: Split, manifest: Manifest, scope: Scope) -> tuple[str, ...]:
    found = verify.patterns_of(manifest, split, scope)
    try:
        shards.expand(found)
    except InputError as error:
        hint = "" if scope.test or scope.shards else f"; give the shards of the {split} images"
        raise InputError(f"{verify.OPTIONS[split]}: {error}{hint}") from None
    return found


@stage("validate")
def check_files(folder: Path) -> tuple[Check, ...]:
    problems = validate(folder)
    return tuple(Check(f"valid: {problem.split(': ')[0]}", "failed", problem) for problem in problems) or (
        Check("valid", "passed", "schema, checksums, counts, labels and images"),
    )


@stage("open as a stranger")
def check_opening(folder: Path, manifest: Manifest) -> list[Check]:
    return verify.opened(folder, manifest)


@stage("find the test images")
def find_images(folder: Path, manifest: Manifest, scope: Scope) -> dict[Split, Trial]:
    """The real images that claims were measured on, by split. InputError where they are not found, or are others."""
    return {split: _trial(split, folder, manifest, scope) for split in _splits(manifest, scope)}


def _trial(split: Split, folder: Path, manifest: Manifest, scope: Scope) -> Trial:
    known = verify.images_of(manifest, split)
    tolerate = len(known.quarantined)
    source = shards.open_source(
        _patterns(split, manifest, scope), classes=known.classes or manifest.classes,
        only=manifest.classes if known.classes else (), quarantine=Quarantine(tolerate), track=console.track,
    )  # fmt: skip
    verify.expect_digest(known, source.digest, split)
    tables = {name: entry.sha256 for name, entry in manifest.files.items() if name.endswith(".parquet")}
    shape = Shape(len(manifest.classes), manifest.side, manifest.mean, manifest.std)
    share = manifest.held_out if split == "held-out" else None
    return Trial(folder, identity("tables", 1, tables=tables), shape, source, share, tolerate)


def _measured(claim: Claim, manifest: Manifest, trial: Trial, quick: bool, settings: Settings) -> Check:
    """What became of one claim. A manifest that does not say how its students were trained fails its claims."""
    try:
        recipe = students.for_claim(manifest.student, claim)
    except InputError as error:
        return Check(verify.named(claim), "failed", str(error))
    seeds = claim.seeds[:1] if quick else claim.seeds
    refs = [retrain(recipe, trial, seed, settings) for seed in seeds]
    facts = [facts_of(ref, settings) for ref in refs]
    seconds = sum(fact["seconds"] for fact in facts)
    return verify.judge(claim, [fact["accuracy"] for fact in facts], facts[0]["images"], seconds)


@stage("student {recipe.architecture} again (seed {seed})")
def retrain(recipe: StudentRecipe, trial: Trial, seed: int, settings: Settings) -> Ref:
    """A student's score. By what it is made of, and by torch's version, it is never one that the run itself stored."""
    inputs = {"recipe": recipe, "trial": trial.digest, "seed": seed, "torch": torch.__version__}
    ref = Ref("score", identity("verify", students.VERSION, **inputs))

    def make() -> Made:
        loaded, feed = _artifact(trial.folder, trial.tables), _feed(trial)
        top1 = students.train(
            recipe, trial.shape, loaded.canvas, loaded.views, feed, seed=seed, device=device_of(settings),
            track=console.track,
        )  # fmt: skip
        return {"accuracy": top1, "images": feed.samples}, {}

    return kept(ref, f"{recipe.architecture}{' on class labels' * recipe.hard} again, seed {seed}", settings, make)


@lru_cache(maxsize=1)
def _artifact(folder: Path, tables: str) -> artifact.Loaded:
    return artifact.read(folder)


_feeds: dict[str, Feed] = {}


def _feed(trial: Trial) -> Feed:
    """The test images, decoded once a process where they fit into memory."""
    if trial.digest not in _feeds:
        _feeds.clear()
        keep: Callable[[str], bool] = shards.keep_all if trial.share is None else trial.is_tested
        quarantine = Quarantine(trial.tolerate)
        _feeds[trial.digest] = shards.feed(
            trial.source, side=trial.shape.side, keep=keep, quarantine=quarantine, track=console.track
        )
    return _feeds[trial.digest]
