"""The pools of frozen networks that a recipe asks for: trained, imported, or found in the store. Within a flow."""

from dd_tasks.committee import Imported
from dd_tasks.guides import Course, Guides, courses
from dd_tasks.recipe import voters_in, without_flips
from flows.assemble import Run
from flows.settings import Settings
from flows.tasks import import_guide, index_shards, train_observer
from flows.workspace import Data, GuideSeat, Pool


def train_guides(run: Run, data: Data, settings: Settings) -> tuple[Pool, ...]:
    """One pool for each text that asks for one."""
    asked = dict.fromkeys(voters.pool for voters in voters_in(run.recipe) if isinstance(voters, Guides))
    return tuple(
        Pool(text, tuple(seat for course in courses(text) for seat in _seats(course, run, data, settings)))
        for text in asked
    )


def _seats(course: Course, run: Run, data: Data, settings: Settings) -> tuple[GuideSeat, ...]:
    """The guides that a course leaves, one a checkpoint."""
    if course.source is not None:
        spec = run.spec
        data = index_shards((course.source,), (), data.side, spec.held_out, spec.tolerate, ipc=1)
    member = course.member
    if isinstance(member, Imported):
        weights, shape = import_guide(member, data.shape, settings)
        return (GuideSeat(member.name, member.architecture, weights, "weights", shape),)
    member = member if run.spec.flip else without_flips(member)
    weights = train_observer(member, data, settings)
    return tuple(
        GuideSeat(f"{member.name} {checkpoint}", member.architecture, weights, checkpoint, data.shape)
        for checkpoint in course.checkpoints
    )
