"""@flow compare_presets: several methods under the same observers, labels, students and seeds."""

import re
from pathlib import Path

from dd_tasks import comparison, whole
from flows.distill import distill_dataset
from flows.engines import ENGINE
from flows.settings import Settings
from flows.walk import flow
from schemas.comparison import Comparison
from schemas.spec import RunSpec

RESULT, TABLE, PAGE = "comparison.json", "comparison.md", "comparison.html"


@flow(name="compare-presets", validate_parameters=False, task_runner=ENGINE)
def compare_presets(
    specs: tuple[RunSpec, ...], out: Path, settings: Settings, command: str, factors: tuple[str, ...] = ()
) -> Comparison:
    """One artifact a specification, in folders of `out`; then the table and the page over all of them.

    What they share (observers, random images, their labels and students) is made once: the store holds it. In a study
    `factors` says of each what it varies.
    """
    folders = [folder_of(spec) for spec in specs]
    made = {
        folder: distill_dataset(spec, out / folder, settings, command)
        for folder, spec in dict(zip(folders, specs, strict=True)).items()
    }
    manifests = [made[folder] for folder in folders]
    found = comparison.compared(manifests, folders, specs[0].labels, command, factors)
    pages = {
        RESULT: found.model_dump_json(indent=1) + "\n",
        TABLE: comparison.markdown(found),
        PAGE: comparison.render(found),
    }
    for name, text in pages.items():
        whole.write(out / name, text.encode())
    return found


def folder_of(spec: RunSpec) -> str:
    """Of its artifact: the method's name without what a shell would stumble over."""
    name = re.sub(r"[^\w.=]+", "-", spec.preset.replace(":", ".")).strip("-")
    return f"{name}-ipc{spec.ipc}"
