"""What the commands do: checks that need no server first, then the flow, then what a user wants to see of it."""

import json
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dd_tasks import artifact, comparison, presets, report, whole
from dd_tasks.claims import RESULT_COLUMNS, result_rows, result_title
from dd_tasks.committee import Imported, Member, named, read_committee
from dd_tasks.errors import InputError, expect_open
from dd_tasks.guides import Guides, sources
from dd_tasks.networks import builder
from dd_tasks.publish import check as check_release
from dd_tasks.recipe import Recipe, plain, voters_in
from dd_tasks.redaction import redacted
from dd_tasks.shards import expand
from dd_tasks.store import Store
from dd_tasks.verify import Scope, failed, junit
from dd_tasks.visible import one_line
from flows import profile
from flows.settings import Distilling, Settings, Verifying
from schemas.comparison import Comparison
from schemas.manifest import Manifest
from schemas.release import Released, ReleaseSpec
from schemas.spec import RunSpec

DATASET = re.compile(r"[\w.-]+/[\w.-]+(@[^\s@]+)?", re.ASCII)
SIDE_FOR_PLAN, CLASSES_FOR_PLAN = 32, 10


def run(
    spec: RunSpec, out: Path, page: Path | None, settings: Settings, command: str, profile_to: Path | None = None
) -> None:
    """Distil; where a folder is given for the profile, its count is under way."""
    artifact.check_out(out)
    check_file(page, "--report")
    check_apart(out, **{"--report": page, "--store": settings.store, "--profile-to": profile_to})
    check_places(spec.shards + spec.test, settings)
    check_recipe(spec)
    if profile_to:
        profile.expect(profile_to, settings)
    from flows.distill import distill_dataset

    with profile.profiled(profile_to, command) if profile_to else nullcontext():
        manifest = distill_dataset(spec, out, settings, command)
        if page is not None:
            whole.write(page, (out / "assets" / "report.html").read_bytes())
        show_result(manifest, out, page)


def explain(spec: RunSpec, out: Path, settings: Settings) -> None:
    """What `run` would make, and why, as plain lines."""
    artifact.check_out(out)
    check_places(spec.shards + spec.test, settings)
    check_recipe(spec)
    from flows.explain import explain as explained

    for line in explained(spec, out, settings):
        print(line)


def compare(
    specs: tuple[RunSpec, ...], out: Path, settings: Settings, command: str, factors: tuple[str, ...] = ()
) -> None:
    for spec in specs:
        check_recipe(spec)
    check_places(specs[0].shards + specs[0].test, settings)
    from flows.compare import PAGE, compare_presets, folder_of

    named_so: dict[str, str] = {}
    for spec in specs:
        if (other := named_so.setdefault(folder_of(spec), spec.preset)) != spec.preset:
            raise InputError(
                f"{spec.preset!r} and {other!r} would share the folder {folder_of(spec)}; compare them apart"
            )
        artifact.check_out(out / folder_of(spec))
    found = compare_presets(specs, out, settings, command, factors)
    show_comparison(found)
    print(f"\npage: {out / PAGE}")


def show_comparison(found: Comparison) -> None:
    lines = list(comparison.lines(found))
    columns = comparison.shown_columns(lines)
    table = Table(title="top-1 in %, last epoch, mean ± std over seeds")
    for i in columns:
        table.add_column(comparison.COLUMNS[i], justify="left" if i < comparison.LEFT_COLUMNS else "right")
    for line in lines:
        table.add_row(*(line.cells[i] for i in columns))
    _shown(160).print(table)


def check_recipe(spec: RunSpec) -> None:
    """InputError for a name or an override that means nothing, or where guides' shards are missing."""
    from flows.assemble import resolve

    run = resolve(spec, spec.side or SIDE_FOR_PLAN, CLASSES_FOR_PLAN)
    for voters in voters_in(run.recipe):
        if isinstance(voters, Guides) and (elsewhere := sources(voters.pool)):
            expand(elsewhere)


def check_places(patterns: tuple[str, ...], settings: Settings) -> None:
    """InputError unless every pattern matches, the store can be written and the device is here."""
    if patterns:
        expand(patterns)
    Store(settings.store)
    from flows.engines import expect
    from flows.workspace import device_of

    expect(settings)

    device_of(settings)


def check_file(path: Path | None, option: str) -> None:
    """InputError unless a file can be written there."""
    if path is None:
        return
    if path.is_dir() or not str(path.name):
        raise InputError(f"{option} {path}: is a folder; name a file")
    if parent := whole.refusing(path):
        raise InputError(f"{option} {path}: cannot write into {parent}; choose another place")


def check_apart(artifact: Path, **others: Path | str | None) -> None:
    """InputError where something else, by its option, would lie in an artifact, which is what its manifest lists."""
    for option, place in others.items():
        if place and "://" not in str(place) and whole.lies_in(Path(place), artifact):
            raise InputError(f"{option} {place}: lies in the artifact {artifact}; choose another place")


def _shown(width: int) -> Console:
    """Standard output; `width` columns wide where it is not a terminal."""
    return Console(width=None if sys.stdout.isatty() else width)


def show_result(manifest: Manifest, out: Path, page: Path | None) -> None:
    """The final table, and the lines that load the result."""
    table = Table(title=result_title(manifest))
    for column in RESULT_COLUMNS:
        table.add_column(column, justify="left" if column in ("images", "student") else "right")
    for row in result_rows(manifest.claims):
        table.add_row(*row)
    shown = _shown(100)
    shown.print(table)
    shown.print(f"\nreport: {page or out / 'assets' / 'report.html'}\nload it with\n", highlight=False)
    shown.print("    from datasets import load_dataset", highlight=False)
    shown.print(f'    images = load_dataset("{out}", split="train")', highlight=False, soft_wrap=True)


def show_plan(spec: RunSpec, out: Path) -> None:
    """The resolved recipe and what a run would do, as YAML; nothing is computed."""
    import yaml

    from flows.assemble import resolve
    from flows.planning import counts, indexed_extent, planned

    artifact.check_out(out)
    urls, data = expand(spec.shards), indexed_extent(spec)
    shape = (data.side, data.classes) if data else (spec.side or SIDE_FOR_PLAN, CLASSES_FOR_PLAN)
    resolved = resolve(spec, *shape)
    steps = resolved.recipe.schedule.steps
    plan = {
        "shards": len(urls),
        "test shards": len(expand(spec.test)) if spec.test else 0,
        "observers": [o.name for o in resolved.observers],
        "images per class": spec.ipc,
        "steps": steps,
        "image-updates per image, at most": steps
        * sum(ballot.voters.at_once(len(resolved.observers)) for ballot in resolved.recipe.ballots),
        "labelled views per image": resolved.recipe.labeller.epochs,
        "soft labels": _labels_planned(resolved.compact, spec.label_bytes_per_image),
        "students": [f"{s.architecture}, {s.epochs} epochs, {spec.seeds} seeds" for s in resolved.students],
        "in all": counts(planned(spec, data)) if data else "unknown: no index.json lists these shards",
        "out": str(out),
    }
    print(yaml.safe_dump({"recipe": plain(resolved.recipe), "plan": plan}, sort_keys=False), end="")


def _labels_planned(compact: bool, per_image: int | None) -> str:
    if not compact:
        return "exact"
    return f"compact, at most {f'{per_image:,} bytes an image' if per_image else 'as many bytes as the images'}"


def show_presets() -> None:
    for title, methods in (("presets", presets.PRESETS), ("presets for ImageNet-21K", presets.LARGE)):
        _shown(140).print(_listed(title, methods))


def _listed(title: str, methods: Mapping[str, Callable[..., Recipe]]) -> Table:
    table = Table(title=title)
    for column in ("preset", "what it is", "initialiser", "voters", "terms", "steps", "labels"):
        table.add_column(column)
    for name, make in methods.items():
        recipe = make(side=SIDE_FOR_PLAN)
        voters = ", ".join(type(b.voters).__name__ for b in recipe.ballots)
        terms = " + ".join(type(t).__name__ for b in recipe.ballots for t in b.terms)
        labeller = recipe.labeller
        table.add_row(
            name, (make.__doc__ or "").splitlines()[0], type(recipe.initialiser).__name__, voters, terms,
            str(recipe.schedule.steps), f"{type(labeller).__name__}, {labeller.epochs} views an image",
        )  # fmt: skip
    return table


def verify(target: str, scope: Scope, results: Path | None, settings: Settings) -> bool:
    """Whether the artifact keeps its promises; the table says which it does not."""
    from flows.verify import expect_usable, verify_dataset

    check_file(results, "--junit")
    check_apart(Path(target), **{"--junit": results, "--store": settings.store})
    check_places(expect_usable(target, scope), settings)
    checks = verify_dataset(target, scope, settings)
    table = Table(title=f"{target}{': the first seed of each claim' if scope.quick else ''}")
    for column in ("check", "", "what was found", "seconds"):
        table.add_column(column, justify="right" if column == "seconds" else "left", overflow="fold")
    for check in checks:
        cells = tuple(map(one_line, (check.name, check.outcome, check.message)))
        table.add_row(*map(Text, cells), f"{check.seconds:.0f}", style="red" if check.outcome == "failed" else None)
    _shown(140).print(table)
    if results is not None:
        whole.write(results, junit(f"retort verify {target}", checks))
    return not failed(checks)


def write_report(path: Path, out: Path) -> None:
    check_file(out, "--out")
    check_apart(path, **{"--out": out})
    loaded = artifact.read(path)
    kept = path / "assets" / "story.safetensors"
    if not kept.is_file():
        raise InputError(f"{path} keeps no story (assets/{kept.name}); the report cannot be written again")
    story = report.Story.from_bytes(kept.read_bytes())
    whole.write(out, report.render(loaded.manifest, loaded.canvas, story).encode())
    print(out)


def serve(distilling: Distilling | None, verifying: Verifying | None, settings: Settings) -> None:
    """Serve the flows on demand, and by schedule those that are given, until Ctrl-C."""
    if distilling is not None:
        artifact.check_out(distilling.out)
        check_apart(distilling.out, **{"--store": settings.store})
        for pattern in distilling.spec.shards + distilling.spec.test:
            expect_open(pattern, "shards", "the deployment")
        check_recipe(distilling.spec)
    check_places(distilling.spec.shards + distilling.spec.test if distilling else (), settings)
    if verifying and not (Path(verifying.target).is_dir() or DATASET.fullmatch(verifying.target)):
        raise InputError(f"--verify {verifying.target!r}: expected ORG/NAME[@REVISION], or a folder")
    from flows import deploy
    from flows.release import expect_publishable

    expect_publishable(distilling.release if distilling else None)
    deployments = deploy.on_demand(settings)
    if distilling is not None:
        deployments.append(deploy.distilling(distilling, settings))
    if verifying is not None:
        deployments.append(deploy.verifying(verifying, settings))
    print(f"{redacted(deploy.expect_server())} asks this machine, until Ctrl-C, for")
    for each in deployments:
        print(f"- {each.flow_name}/{each.name}: {deploy.when(each)}", flush=True)
    deploy.serve(deployments)


def publish(folder: Path, spec: ReleaseSpec) -> None:
    check_release(spec)
    artifact.read_manifest(folder)
    from flows.release import release_dataset, token_of

    if spec.token_block is None:
        token_of(spec)  # before a server is started
    show_release(release_dataset(folder, spec))


def show_release(released: Released) -> None:
    """What changed and where it is, as plain lines."""
    print("\n".join(f"- {line}" for line in released.changelog) or f"{released.target} holds this artifact already")
    for what, value in (
        ("revision", released.revision), ("url", released.pull_request or released.url), ("tag", released.tag),
    ):  # fmt: skip
        if value:
            print(f"{what}: {value}")


def train(
    name: str, patterns: tuple[str, ...], side: int | None, tolerate: int, keep_every: int, epochs: int | None,
    settings: Settings,
) -> None:  # fmt: skip
    members = tuple(
        m if isinstance(m, Imported) else replace(m, keep_every=keep_every, epochs=epochs or m.epochs)
        for m in named(name)
    )
    check_places(patterns, settings)
    _seat(members, patterns, side, tolerate, settings)


def measure_priors(spec: RunSpec, settings: Settings) -> None:
    """The prior of every observer, and the weights that make votes of them."""
    check_places(spec.shards, settings)
    check_recipe(spec)
    from flows.committee import priors_from_shards
    from flows.stored import facts_of

    table = Table(title="priors: top-1, on held-out training images, of students of each observer alone")
    for column in ("observer", "top-1", "prior", "seconds"):
        table.add_column(column, justify="left" if column == "observer" else "right")
    for seat in priors_from_shards(spec, settings):
        assert seat.prior is not None
        prior = facts_of(seat.prior, settings)
        scores = (f"{100 * seat.accuracy(settings):.1f}", f"{100 * prior['accuracy']:.1f}", f"{prior['seconds']:.0f}")
        table.add_row(seat.recipe.name, *scores)
    _shown(100).print(table)


def import_observer(
    member: Imported, patterns: tuple[str, ...], committee: Path, side: int | None, settings: Settings
) -> None:
    """Check the observer in, then add it to the committee file."""
    builder(member.architecture)
    check_file(committee, "--committee")
    others = read_committee(committee) if committee.exists() else ()
    check_places(patterns, settings)
    _seat((member,), patterns, side, 0, settings)
    listed = [*(o for o in others if o.name != member.name), member]
    whole.write(committee, (json.dumps({"observers": [asdict(o) for o in listed]}, indent=1) + "\n").encode())
    print(f"{committee}: {len(listed)} observers; use it with --committee {committee}")


def _seat(
    members: tuple[Member, ...], patterns: tuple[str, ...], side: int | None, tolerate: int, settings: Settings
) -> None:
    from flows.committee import committee_from_shards
    from flows.stored import facts_of

    seats = committee_from_shards(members, patterns, side, RunSpec.model_fields["held_out"].default, tolerate, settings)
    table = Table(title="committee: top-1 on the held-out part of the training images")
    for column in ("observer", "top-1", "epochs", "seconds"):
        table.add_column(column, justify="left" if column == "observer" else "right")
    for seat in seats:
        facts = facts_of(seat.weights, settings)
        score = f"{100 * seat.accuracy(settings):.1f}"
        table.add_row(seat.recipe.name, score, str(facts["epochs"]), f"{facts['seconds']:.0f}")
    _shown(100).print(table)
