"""What a distilled set is worth beyond one accuracy (DD-Ranking; methods section 9). Accuracies are fractions."""

import math


def label_robust_score(
    *, full_hard: float, distilled_hard: float, distilled: float, random: float, weight: float = 0.5
) -> float:
    """LRS in [0, 1]: `(e^a - e^-1) / (e - e^-1)` with `a = w IOR - (1 - w) HLR`.

    HLR = accuracy on all real images - on distilled ones with class labels: what is lost without soft labels.
    IOR = accuracy on distilled images - on as many random real ones, both as they are meant to be used.
    """
    lost, gained = full_hard - distilled_hard, distilled - random
    return _scaled(weight * gained - (1 - weight) * lost)


def augmentation_robust_score(*, gain: float, gain_without: float, weight: float = 0.5) -> float:
    """ARS in [0, 1]: the same scale over `a = w g + (1 - w) g'`, the gains over random real images with the student's
    augmentation and without any."""
    return _scaled(weight * gain + (1 - weight) * gain_without)


def _scaled(a: float) -> float:
    return (math.exp(a) - math.exp(-1)) / (math.e - math.exp(-1))
