"""What a run will cost before it runs: the bytes of its soft labels."""

from math import e, log2, pi, sqrt

from dd_tasks.compact import COARSEST, FEWEST, GROUP

LOGIT_BYTES = 2  # a float16
ROW_BYTES = 20  # of a compact row but its codes and classes, compressed: crop, flip, mix box and the like


def exact_label_bytes(images: int, classes: int, epochs: int) -> int:
    """Of the logits of every view, which hardly compress; crops and mix boxes add about 10 bytes a view."""
    return images * epochs * classes * LOGIT_BYTES


def compact_label_bytes(images: int, classes: int, epochs: int, top: int = FEWEST) -> int:
    """Of compact labels of `top` classes at the coarsest step: a code has the entropy of a normal variable in steps of
    COARSEST standard deviations, a class log2(classes) bits where not all are kept."""
    code_bits = log2(sqrt(2 * pi * e) / COARSEST)
    class_bits = log2(classes) if top < classes else 0.0
    bits = images * epochs * min(top, classes) * (code_bits + class_bits)
    return round(bits / 8 + epochs * images / GROUP * ROW_BYTES)
