"""`python tests/short_of_memory.py MEGABYTES [unforeseen]`: a panel and its labels with all memory there is, then again
with so many megabytes left, and how far apart the two are; `unforeseen`: as if nobody had looked how many there are.

A process of its own, since a limit that a process lowers stays low. Prints one line of JSON; what went wrong on the way
is logged.
"""

import json
import logging
import resource
import sys
from pathlib import Path

import tiny
import torch

from dd_tasks import memory, probe
from dd_tasks.initialise import WholeImages
from dd_tasks.label import Relabel
from dd_tasks.recipe import Ballot, Recipe
from dd_tasks.recovery import recover, relabel
from dd_tasks.schedule import Phase, RandomCrops, Revisit, Schedule
from dd_tasks.terms import CrossEntropy, SmoothedStatistics
from dd_tasks.voters import Everyone

SIDE, IMAGES = 32, 256
PANEL = Recipe(
    WholeImages(), (Ballot(Everyone(), (CrossEntropy(), SmoothedStatistics())),),
    Schedule((Phase(2, RandomCrops(threshold=0.0)), Phase(1, Revisit(threshold=0.0)))), Relabel(epochs=2, batch=512),
)  # fmt: skip


def leave(megabytes: int) -> None:
    """No more memory for this process than so much above what it has, without what it has freed."""
    memory.give_back()
    lines = Path("/proc/self/status").read_text().splitlines()
    held = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))
    most = held + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def panel() -> tuple[torch.Tensor, torch.Tensor]:
    observers = [tiny.observer(seed, f"convnet3_bn_w{width}", SIDE) for seed, width in enumerate((32, 24))]
    canvas, studio = tiny.canvas(IMAGES, side=SIDE), tiny.studio(*observers)
    made = recover(PANEL, canvas, studio, "panel 0")
    return made.canvas.images_NCHW, relabel(PANEL.labeller, made.canvas, studio, "labels").logits_VK


def main(megabytes: int, foreseen: bool) -> None:
    torch.set_num_threads(1)
    images_NCHW, logits_VK = panel()
    if not foreseen:
        probe.free_memory = lambda device: sys.maxsize
    leave(megabytes)
    again_NCHW, others_VK = panel()
    pixels = (images_NCHW.int() - again_NCHW.int()).abs().max().item()
    print(json.dumps({"pixels": pixels, "logits": (logits_VK - others_VK).abs().max().item()}))


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    main(int(sys.argv[1]), foreseen=len(sys.argv) < 3)
