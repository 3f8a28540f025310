"""Views seen again, from the Parquet files, by the client that strangers use: what the committee saw and said."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import tiny
import torch
from safetensors.torch import load_file
from sample import SIDE, K, N, compact_info, draft, exact_info, tiny_canvas, tiny_nearest
from torch import Tensor

from dd_tasks import artifact, codec
from dd_tasks.codec import Labels, Replay, replay
from dd_tasks.committee import Observer, seeded
from dd_tasks.compact import GROUP
from dd_tasks.errors import InputError
from dd_tasks.label import Relabel
from dd_tasks.networks import Shape, build
from dd_tasks.types import Reading, Views

EPOCHS, ROWS = 60, 1000


class Remembering:
    """An observer that keeps every view that it is shown."""

    prior = None

    def __init__(self) -> None:
        net = seeded(lambda: build("convnet2_bn_w4", Shape(K, SIDE, tiny.MEAN, tiny.STD)), 0)
        self.inner, self.seen = Observer("one", net.eval(), ()), list[Tensor]()

    def read(self, pixels_NCHW: Tensor) -> Reading:
        self.seen.append(pixels_NCHW.clone())
        return self.inner.read(pixels_NCHW)


def labelled(kind: str) -> tuple[Labels, Views, Tensor]:
    """Labels of the sample's canvas, the views that the committee labelled, and what it saw of each."""
    observer = Remembering()
    labeller = Relabel(epochs=EPOCHS, scale=(0.3, 1.0), group=GROUP if kind == "compact" else 1)
    views = labeller.label(tiny_canvas(), tiny.studio(observer, classes=K))
    whole = codec.whole(views, tiny_canvas().targets_N, SIDE)
    labels = whole if kind == "exact" else codec.fitted(views, N, SIDE, budget=20_000)
    return labels, views, torch.cat(observer.seen)


@pytest.fixture(scope="module", params=["exact", "compact"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    """(folder, labels, labelled views, what the committee saw), on disk."""
    labels, views, seen_VCSS = labelled(request.param)
    info = exact_info(EPOCHS) if request.param == "exact" else {**compact_info(labels), "drawn": EPOCHS}
    out, cache = tmp_path_factory.mktemp("replay") / "out", tmp_path_factory.mktemp("cache")
    artifact.write(out, tiny_canvas(), labels, draft(labels=info), {}, nearest=tiny_nearest())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        yield out, labels, views, seen_VCSS


def load(out: Path, config: str, *, streaming: bool = False) -> datasets.Dataset:
    return datasets.load_dataset(str(out), config, split="train", streaming=streaming)


def replayed(out: Path, epochs: int | None = None, *, streaming: bool = False) -> Replay:
    return replay(load(out, "images"), load(out, "soft_labels", streaming=streaming), epochs)


def bytes_of(pixels: Tensor) -> Tensor:
    return (pixels * 255).round().to(torch.uint8)


def key(epoch: Tensor, image: Tensor) -> list[tuple[int, int]]:
    return list(zip(epoch.tolist(), image.tolist(), strict=True))


def test_a_thousand_random_rows_are_what_the_committee_saw_to_the_last_bit(published: tuple) -> None:
    out, labels, views, seen_VCSS = published
    again, at = replayed(out), {k: i for i, k in enumerate(key(views.epochs_V, views.images_V))}
    assert len(again) == len(labels.views) >= ROWS
    keys = key(labels.views.epochs_V, labels.views.images_V)
    rows = torch.randperm(len(again), generator=tiny.generator(3))[:ROWS].tolist()
    for row in rows:
        view_CSS, logits_K = again[row]
        first = at[keys[row]]
        assert torch.equal(bytes_of(view_CSS), bytes_of(seen_VCSS[first])), row
        assert torch.allclose(logits_K, labels.views.logits_VK[row].float())
        off = (logits_K - views.logits_VK[first].float()).abs().max()
        assert off <= (labels.coding.step / 2 + 0.01 if labels.coding else 0), row


# In a process of its own: a test session's threads and exit hooks are not for the workers that are forked off it.
LOADS = """if True:
    import sys
    import torch
    from datasets import load_dataset
    from safetensors.torch import save_file
    from torch.utils.data import DataLoader
    from dd_tasks.codec import replay

    images, found = load_dataset(sys.argv[1], split="train"), {}
    for how in sys.argv[3:]:
        batch, workers, streaming = map(int, how.split("-"))
        labels = load_dataset(sys.argv[1], "soft_labels", split="train", streaming=bool(streaming))
        loader = DataLoader(replay(images, labels), batch, shuffle=None if streaming else True, num_workers=workers)
        seen, logits = (torch.cat(parts) for parts in zip(*loader))
        found |= {f"{how} seen": seen, f"{how} logits": logits}
    save_file(found, sys.argv[2])
"""
AT_HAND, STREAMED = ("10-0-0", "50-2-0", "100-0-0"), ("32-0-1", "32-2-1")  # batch, workers, streaming


@pytest.fixture(scope="module")
def loaded(published: tuple, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """All views and logits as DataLoaders give them."""
    result = tmp_path_factory.mktemp("loaded") / "found"
    command = [sys.executable, "-c", LOADS, str(published[0]), str(result), *AT_HAND, *STREAMED]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_file(result)


@pytest.mark.parametrize("how", AT_HAND)
def test_any_batch_size_order_and_number_of_workers_shows_the_same_views(
    published: tuple, loaded: dict[str, Tensor], how: str
) -> None:
    expected_VK, found_VK = published[1].views.logits_VK.float(), loaded[f"{how} logits"]
    assert found_VK.sum(1).sort().values.equal(expected_VK.sum(1).sort().values)
    assert not torch.equal(found_VK, expected_VK)


@pytest.mark.parametrize("how", STREAMED)
def test_a_stream_shows_the_same_views_in_the_order_of_the_rows(
    published: tuple, loaded: dict[str, Tensor], how: str
) -> None:
    every = replayed(published[0])
    views_VCSS, logits_VK = (torch.stack(parts) for parts in zip(*every.__getitems__(range(len(every))), strict=True))
    assert torch.equal(bytes_of(loaded[f"{how} seen"]), bytes_of(views_VCSS))
    assert torch.equal(loaded[f"{how} logits"], logits_VK)


def test_batches_and_single_rows_agree(published: tuple) -> None:
    again = replayed(published[0])
    rows = [5, 1, len(again) - 1, 5]
    for (one, _), (other, _) in zip(again.__getitems__(rows), [again[i] for i in rows], strict=True):
        assert torch.equal(bytes_of(one), bytes_of(other))


def test_epochs_beyond_those_stored_begin_again(published: tuple) -> None:
    out, labels, *_ = published
    stored = int(labels.views.epochs_V.max()) + 1
    again = replayed(out, epochs=stored + 2)
    assert len(again) == (stored + 2) * N
    for i in (0, N + 3, 2 * N - 1):
        assert torch.equal(again[stored * N + i][0], again[i][0])
    streamed = list(replayed(out, epochs=stored + 2, streaming=True))
    assert len(streamed) == len(again)
    assert torch.equal(bytes_of(streamed[-1][0]), bytes_of(again[-1][0]))
    assert len(list(replayed(out, epochs=1, streaming=True))) == N
    with pytest.raises(IndexError):
        again[len(again)]


def test_another_table_is_refused(published: tuple) -> None:
    out, *_ = published
    with pytest.raises(InputError, match="images: no column soft_label"):
        replay(load(out, "images").remove_columns("soft_label"), load(out, "soft_labels"))
    with pytest.raises(InputError, match="not those of labelled views"):
        replay(load(out, "images"), load(out, "images"))
    with pytest.raises(
        InputError, match=f"^soft_labels: (images 0..{N - 1} of {N // 2} are shown|cannot be read: index {N // 2} )"
    ):
        replay(load(out, "images").select(range(N // 2)), load(out, "soft_labels"))
