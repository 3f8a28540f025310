"""Losses, weights and logits that are no numbers: noticed without stalling a GPU, and named.

Shape letters: T steps of a loop.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from dd_tasks.errors import NumericalError

ASK_EVERY = 100  # steps of training between two questions, each of which waits for the device
LEAST_STD = 1 / 255  # of a channel that does not vary: one level of its values


class Unsound(ArithmeticError):
    """From this step of a loop on, counted from 0, something is no finite number."""

    def __init__(self, step: int) -> None:
        super().__init__(f"not finite from step {step + 1} on")
        self.step = step


class Watch:
    """Notes on the device, step by step, whether what a loop computes is finite; asked seldom, it says where it was not
    for the first time."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self.noted_T = torch.zeros(steps, device=device)

    def note(self, step: int, *found: Tensor) -> None:
        """What is found to be infinite or no number, or whose sum is."""
        for part in found:
            self.noted_T[step] += part.detach().sum()

    def expect(self) -> None:
        """Unsound unless all that was noted is finite. Waits for the device."""
        wrong_T = ~self.noted_T.isfinite()
        if wrong_T.any():
            raise Unsound(int(wrong_T.long().argmax()))


def expect_learning(watch: Watch, steps: int, what: str, how: str, epochs: int = 0) -> None:
    """NumericalError naming the step, and the epoch where there are any, at which a loss was not finite."""
    try:
        watch.expect()
    except Unsound as found:
        epoch = f", epoch {found.step * epochs // steps + 1} of {epochs}" if epochs else ""
        raise NumericalError(f"{what}: step {found.step + 1} of {steps}{epoch}: its loss is not finite{how}") from None


def divisible(std: tuple[float, float, float]) -> tuple[float, float, float]:
    """The channels' std, and LEAST_STD for a channel that does not vary at all."""
    red, green, blue = (each or LEAST_STD for each in std)
    return red, green, blue


def expect_colours(std: tuple[float, float, float]) -> None:
    """NumericalError for images that do not vary in any channel."""
    if not any(std):
        raise NumericalError("every pixel of the images is of one colour: there is nothing to learn from them")


def says(found: Tensor) -> str:
    """What is wrong with numbers that are not all finite."""
    return "not a number" if found.isnan().any() else "infinite"


def expect_finite(tensors: Mapping[str, Tensor], what: str, how: str = "") -> None:
    """NumericalError naming the first of these that is not finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            wrong = int((~tensor.isfinite()).sum())
            raise NumericalError(f"{what}: {wrong} of {tensor.numel()} values of {name} are {says(tensor)}{how}")


def expect_weights(weights: Mapping[str, Tensor], what: str) -> None:
    """NumericalError for weights by which no network computes: values that are not finite, negative variances, or a
    std of 0 to divide by."""
    expect_finite(weights, what)
    for name, tensor in weights.items():
        if name.endswith("running_var") and (tensor < 0).any():
            raise NumericalError(f"{what}: {int((tensor < 0).sum())} of {tensor.numel()} values of {name} are negative")
        if name == "0.std" and (tensor <= 0).any():
            raise NumericalError(f"{what}: its images are divided by a std of {tensor.flatten().tolist()}")
