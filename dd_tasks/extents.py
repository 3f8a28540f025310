"""How large the datasets are that everybody knows, so that a run on them can be planned without their shards."""

from collections.abc import Mapping

from dd_tasks.errors import unknown
from schemas.plan import Extent

RIDNIK = "ImageNet-21K-P, winter 2021 (Ridnik et al. 2021); bytes: 1.1 TB for 13.2 million images of the whole release"
KNOWN: Mapping[str, Extent] = {
    extent.name: extent
    for extent in (
        Extent(
            name="digits", classes=10, images=1442, side=16, image_bytes=557, fewest=140, test=355,
            source="scikit-learn's optical digits as `retort shards pack digits` writes them",
        ),
        Extent(
            name="cifar10", classes=10, images=50_000, side=32, image_bytes=2300, fewest=5000, test=10_000,
            source="Krizhevsky 2009; bytes as PNG files",
        ),
        Extent(
            name="cifar100", classes=100, images=50_000, side=32, image_bytes=2300, fewest=500, test=10_000,
            source="Krizhevsky 2009; bytes as PNG files",
        ),
        Extent(
            name="tiny-imagenet", classes=200, images=100_000, side=64, image_bytes=2000, fewest=500, test=10_000,
            source="Le and Yang 2015; bytes as its JPEG files",
        ),
        Extent(
            name="imagenette", classes=10, images=9469, side=224, image_bytes=115_000, fewest=858, test=3925,
            source="fastai's Imagenette 2; bytes as ImageNet-1K",
        ),
        Extent(
            name="imagenet-1k", classes=1000, images=1_281_167, side=224, image_bytes=115_000, fewest=732, test=50_000,
            source="ILSVRC 2012 (Russakovsky et al. 2015); bytes: its archive of 147.9 GB",
        ),
        Extent(
            name="imagenet-21k", classes=10_450, images=11_060_223, side=224, image_bytes=84_000, fewest=450,
            test=522_500, source=RIDNIK,
        ),
    )
}  # fmt: skip


def known(name: str) -> Extent:
    """InputError for a dataset that is not in the table."""
    if name not in KNOWN:
        raise unknown("dataset", name, KNOWN)
    return KNOWN[name]
