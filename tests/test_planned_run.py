"""What was planned is what a real run's manifest, artifact and store say."""

import json
from pathlib import Path

import pytest

from dd_tasks.plan import exact_label_bytes
from schemas.manifest import Manifest
from schemas.plan import Plan
from schemas.spec import RunSpec

pytestmark = pytest.mark.usefixtures("prefect_server")
STORE_WITHIN, KIND_WITHIN = 1.1, 1.35  # of the blobs: in all, and of one kind (an image's bytes come from its shard's)
ARTIFACT_WITHIN = 1.25  # a few small files, mostly pages


@pytest.fixture(scope="module")
def both(
    quick: dict[str, object], tmp_path_factory: pytest.TempPathFactory, prefect_server: None
) -> tuple[Plan, Manifest, Path]:
    """The plan of a run, its manifest, and its store."""
    from flows.distill import distill_dataset
    from flows.planning import indexed_extent, planned
    from flows.settings import Settings

    root = tmp_path_factory.mktemp("planned")
    spec = RunSpec.model_validate({**quick, "codec": "exact", "panel": 7})
    extent = indexed_extent(spec)
    assert extent is not None
    made = distill_dataset(spec, root / "dataset", Settings(store=str(root / "store"), device="cpu"))
    return planned(spec, extent), made, root / "store"


def test_image_updates_views_and_students_are_exact(both: tuple[Plan, Manifest, Path]) -> None:
    plan, manifest, _ = both
    totals = plan.totals
    assert totals.least_image_updates <= manifest.cost.image_updates == totals.image_updates
    assert totals.labelled_views == manifest.labels.views == manifest.labels.drawn * 20
    assert totals.students == sum(len(claim.seeds) for claim in manifest.claims)
    assert plan.data.images == manifest.source.samples and plan.data.classes == len(manifest.classes)
    assert plan.data.test == 355


def test_stages_are_those_of_the_manifest(both: tuple[Plan, Manifest, Path]) -> None:
    plan, manifest, _ = both
    assert {line.stage for line in plan.work} - {"candidates", "random rows"} == set(manifest.cost.seconds)


def test_bytes_of_exact_labels_are_foreseen(both: tuple[Plan, Manifest, Path]) -> None:
    plan, manifest, _ = both
    assert exact_label_bytes(20, 10, 3) == plan.totals.exact_label_bytes
    assert plan.totals.exact_label_bytes == pytest.approx(manifest.labels.bytes, rel=0.1)


def test_bytes_of_the_artifact_are_foreseen(both: tuple[Plan, Manifest, Path]) -> None:
    plan, manifest, _ = both
    sizes = {line.kind: line.bytes for line in plan.bytes if line.where == "artifact"}
    for kind in ("images", "soft_labels"):
        written = sum(entry.bytes for name, entry in manifest.files.items() if name.startswith(f"{kind}/"))
        assert sizes[kind] == pytest.approx(written, rel=0.1), kind
    written = sum(entry.bytes for entry in manifest.files.values())
    assert written / ARTIFACT_WITHIN <= plan.totals.upload_bytes <= written * ARTIFACT_WITHIN


def test_bytes_of_the_store_are_foreseen_by_kind(both: tuple[Plan, Manifest, Path]) -> None:
    plan, _, store = both
    planned = {line.kind: line.bytes for line in plan.bytes if line.where == "store"}
    blobs: dict[str, set[str]] = {}
    for entry in (path for path in store.glob("*/*.json") if path.parent.name != "runs"):
        blobs.setdefault(entry.parent.name, set()).update(json.loads(entry.read_text())["blobs"].values())
    blobs["canvas"] -= blobs["panel"]  # the gathered canvas is what the panels left
    sizes = {kind: sum((store / "blobs" / name).stat().st_size for name in names) for kind, names in blobs.items()}
    for kind, foreseen in planned.items():
        assert sizes[kind] / KIND_WITHIN <= foreseen <= sizes[kind] * KIND_WITHIN, (kind, foreseen, sizes[kind])
    whole = sum(sizes.values())
    assert whole / STORE_WITHIN <= plan.totals.store_bytes <= whole * STORE_WITHIN
