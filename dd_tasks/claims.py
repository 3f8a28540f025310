"""What claims say: their rows in words, accuracies as text, and distilled images against random ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot

from schemas.manifest import Claim, Manifest

ROWS = {
    "distilled": "the distilled images",
    "distilled_hard": "the distilled images, class labels only",
    "distilled_plain": "the distilled images, no augmentation",
    "random": "as many random real images, labelled alike",
    "random_hard": "as many random real images, class labels only",
    "random_plain": "as many random real images, labelled alike, no augmentation",
    "jpeg": "random real images of as many bytes, as JPEG files with class labels",
    "full": "all real images",
}
RESULT_COLUMNS = ("images", "student", "epochs", "n", "mean ± std, %", "seconds")
QUALITY = 75  # of the row jpeg's files, Pillow's default
ORDINARY_UPDATES = 2  # times the image-updates of the distilled row that its students get
LIMITS = {"distilled": "", "distilled_hard": "class labels only", "distilled_plain": "no augmentation"}


def percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def accuracy(claim: Claim) -> str:
    """Mean and spread in %; one seed has no spread."""
    return percent(claim.mean) + (f" ± {percent(claim.std)}" if len(claim.seeds) > 1 else "")


def result_title(manifest: Manifest) -> str:
    """What the rows of a run's result are."""
    return f"{manifest.name}: top-1 of students on {manifest.claims[0].split} images, last epoch"


def result_rows(claims: Sequence[Claim]) -> list[tuple[str, ...]]:
    """The result of a run, a row a claim, by RESULT_COLUMNS."""
    return [
        (claim.row, claim.student, str(claim.epochs), str(len(claim.seeds)), accuracy(claim), f"{claim.seconds:.0f}")
        for claim in claims
    ]


@dataclass(frozen=True)
class Pairing:
    """Distilled images against as many random real ones: same student, same kind of labels, same epochs and split."""

    distilled: Claim
    random: Claim

    @property
    def limit(self) -> str:
        """What both had to do with; nothing where labels and augmentation are the usual ones."""
        return LIMITS[self.distilled.row]

    @property
    def lead(self) -> float:
        return self.distilled.mean - self.random.mean

    @property
    def spread(self) -> float:
        """Two standard deviations of the difference."""
        return 2 * hypot(self.distilled.std, self.random.std)

    @property
    def single(self) -> bool:
        """Whether a row has one seed alone, and so no spread."""
        return min(len(self.distilled.seeds), len(self.random.seeds)) < 2

    @property
    def verdict(self) -> str:
        """`ahead` or `behind` where the difference exceeds `spread`, else `unclear`; always so with a single seed."""
        if self.single or abs(self.lead) <= self.spread:
            return "unclear"
        return "ahead" if self.lead > 0 else "behind"

    @property
    def sentence(self) -> str:
        labels = f"with {self.limit}" if self.limit else "labelled alike"
        start = (
            f"Trained on these images, {self.distilled.student} reaches {accuracy(self.distilled)} % on the "
            f"{self.distilled.split} data; trained on as many random real ones, {labels}, {accuracy(self.random)} %: "
            f"that is {percent(abs(self.lead))} points {'less' if self.lead < 0 else 'more'}"
        )
        if self.single:
            return f"{start}. With one seed, that is not shown to be more than chance."
        if self.verdict == "unclear":
            return f"{start}, no clear difference: 2 std of it are {percent(self.spread)}."
        return f"{start}, which is more than 2 std of the difference ({percent(self.spread)})."


def pairings(claims: Sequence[Claim]) -> list[Pairing]:
    """Every distilled row that has its random counterpart, in the order of LIMITS: soft labels first."""
    found = {(str(claim.row), claim.student, claim.epochs, claim.split): claim for claim in claims}
    pairs = [
        (claim, found.get((row.replace("distilled", "random"), *key[1:])))
        for row in LIMITS
        for key, claim in found.items()
        if key[0] == row
    ]
    return [Pairing(distilled, random) for distilled, random in pairs if random]


def at_equal_bytes(claims: Sequence[Claim]) -> list[Pairing]:
    """Every student's distilled row, that of soft labels first, against real JPEG images of as many bytes."""
    pairs = []
    for jpeg in (claim for claim in claims if claim.row == "jpeg"):
        ours = (claim for row in LIMITS for claim in claims if _matches(claim, row, jpeg))
        pairs += [Pairing(claim, jpeg) for claim in ours][:1]
    return pairs


def _matches(claim: Claim, row: str, jpeg: Claim) -> bool:
    return (claim.row, claim.student, claim.split) == (row, jpeg.student, jpeg.split)
