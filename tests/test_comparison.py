"""Methods side by side: one table and one page from their manifests."""

import math
from itertools import pairwise

import pytest
import sample

from dd_tasks import comparison
from dd_tasks.comparison import COLUMNS, compared, lines, markdown, plots, render
from dd_tasks.scores import augmentation_robust_score, label_robust_score
from schemas.comparison import Comparison
from schemas.manifest import Manifest

PLAIN = [sample.claim("distilled_plain", [0.45, 0.47]), sample.claim("random_plain", [0.4, 0.41])]


def made(preset: str, updates: int, distilled: list[float], *, hard: bool = False, **changes: object) -> Manifest:
    claims = [sample.claim("distilled", distilled), sample.claim("random", [0.4, 0.42]), sample.claim("full", [0.8])]
    if hard:
        claims += [sample.claim("distilled_hard", [0.3, 0.32]), sample.claim("random_hard", [0.2, 0.22])]
    seconds = {"choose": 1.0, "recover": updates / 100, "relabel": 50.0}
    cost = {"image_updates": updates, "seconds": seconds, "peak_memory_bytes": 1, "machine": "2 cores"}
    return sample.draft(preset=preset, cost=cost, claims=claims, **changes)


def three(*, hard: bool = False) -> Comparison:
    manifests = [
        made("rded", 0, [0.41, 0.43], hard=hard),
        made("e2d", 1500, [0.5, 0.52], hard=hard),
        made("sre2l", 40000, [0.3, 0.32], hard=hard),
    ]
    return compared(manifests, ["rded-ipc2", "e2d-ipc2", "sre2l-ipc2"], "e2d", "retort compare <them>")


def test_rows_hold_what_the_manifests_say():
    found = three()
    assert [(r.preset, r.image_updates, r.seconds, r.folder) for r in found.rows] == [
        ("rded", 0, 1.0, "rded-ipc2"), ("e2d", 1500, 16.0, "e2d-ipc2"), ("sre2l", 40000, 401.0, "sre2l-ipc2"),
    ]  # fmt: skip
    assert Comparison.model_validate_json(found.model_dump_json()) == found


def test_artifacts_of_other_data_or_committees_are_not_compared():
    other = made("e2d", 1, [0.5, 0.6], observers=[])
    with pytest.raises(ValueError, match="differ in their data or their committee"):
        compared([made("rded", 0, [0.4, 0.5]), other], ["a", "b"], None, "")


def test_the_table_says_who_leads_and_leaves_out_what_nobody_measured():
    head, rule, *rows = markdown(three()).splitlines()
    assert head == "| IPC | method | student | image-updates | seconds | distilled | random | lead | all real |"
    assert rule.count("---:") == 6
    assert rows[1] == ("| 2 | e2d | resnet\\_18 | 1,500 | 16 | 51.00 ± 1.41 | 41.00 ± 1.41 | +10.00 ahead | 80.00 |")
    assert "+1.00 unclear" in rows[0] and "-10.00 behind" in rows[2]


def test_label_robustness_needs_hard_rows_and_is_its_formula():
    found = list(lines(three(hard=True)))[1]
    a = 0.5 * (0.51 - 0.41) - 0.5 * (0.8 - 0.31)
    expected = (math.exp(a) - math.exp(-1)) / (math.e - math.exp(-1))
    assert found.lrs == pytest.approx(expected)
    assert found.cells[COLUMNS.index("LRS")] == f"{100 * expected:.2f}"
    assert list(lines(three()))[1].lrs is None


def test_augmentation_robustness_needs_plain_rows_and_is_its_formula():
    manifest = made("e2d", 1500, [0.5, 0.52])
    plain = manifest.model_copy(update={"claims": [*manifest.claims, *PLAIN]})
    (line,) = lines(compared([plain], ["e2d-ipc2"], None, ""))
    a = 0.5 * (0.51 - 0.41) + 0.5 * (0.46 - 0.405)
    expected = (math.exp(a) - math.exp(-1)) / (math.e - math.exp(-1))
    assert line.ars == pytest.approx(expected) and line.lrs is None
    head, _, *rows = markdown(compared([plain, manifest], ["a", "b"], None, "")).splitlines()
    assert head.endswith("| all real | ARS |")
    assert rows[0].endswith(f"| {100 * expected:.2f} |") and rows[1].endswith("| 80.00 |  |")
    assert "ARS" not in render(three(hard=True)) and list(lines(three()))[1].ars is None


def test_of_class_labels_alone_augmentation_robustness_is_by_those():
    hard = [sample.claim("distilled_hard", [0.5, 0.52]), sample.claim("random_hard", [0.2, 0.22])]
    manifest = made("dream_plus", 900, [0.1]).model_copy(update={"claims": [*hard, *PLAIN]})
    (line,) = lines(compared([manifest], ["a"], None, ""))
    assert line.ars == pytest.approx(augmentation_robust_score(gain=0.3, gain_without=0.055))


def test_a_method_with_class_labels_alone_leads_by_those():
    hard = [sample.claim("distilled_hard", [0.5, 0.52]), sample.claim("random_hard", [0.2, 0.22])]
    manifest = made("dream_plus", 900, [0.1]).model_copy(update={"claims": hard})
    found = compared([made("e2d", 1500, [0.5, 0.52], hard=True), manifest], ["a", "b"], None, "")
    _, line = lines(found)
    assert (line.soft, line.lrs) == (None, None) and line.main.lead == pytest.approx(0.3)
    assert markdown(found).splitlines()[3] == (
        "| 2 | dream\\_plus | resnet\\_18 | 900 | 10 |  |  | +30.00 ahead |  | 51.00 ± 1.41 | 21.00 ± 1.41 |  |"
    )
    assert plots(found)[0].random is None and "dream_plus" in render(found)


@pytest.mark.parametrize("weight", [0.5, 0.25])
def test_scores_run_from_worst_to_best(weight):
    def lrs(full: float, hard: float, soft: float, random: float) -> float:
        return label_robust_score(full_hard=full, distilled_hard=hard, distilled=soft, random=random, weight=weight)

    assert lrs(0, 1, 1, 0) == pytest.approx(1) and lrs(1, 0, 0, 1) == pytest.approx(0)
    middle = (1 - math.exp(-1)) / (math.e - math.exp(-1))
    assert lrs(0.6, 0.6, 0.4, 0.4) == pytest.approx(middle)
    assert augmentation_robust_score(gain=1, gain_without=1, weight=weight) == pytest.approx(1)
    assert augmentation_robust_score(gain=0, gain_without=0, weight=weight) == pytest.approx(middle)
    a = weight * 0.2 + (1 - weight) * 0.1
    expected = (math.exp(a) - math.exp(-1)) / (math.e - math.exp(-1))
    assert augmentation_robust_score(gain=0.2, gain_without=0.1, weight=weight) == pytest.approx(expected)


def test_plots_stand_over_updates_and_seconds_with_no_updates_at_the_left_edge():
    by_updates, by_seconds = plots(three())
    assert (by_updates.cost, by_seconds.cost) == ("image-updates", "seconds")
    rded, e2d, sre2l = by_updates.spots
    assert rded.x == comparison.LEFT < e2d.x < sre2l.x < comparison.RIGHT
    assert e2d.y < rded.y < sre2l.y  # higher is better
    assert e2d.error and e2d.error[1] < e2d.y < e2d.error[0]
    assert by_updates.random is not None and rded.y < by_updates.random < sre2l.y
    assert by_updates.note and not by_seconds.note


def test_long_names_are_numbers_of_the_table_and_no_label_covers_another():
    long = [f"clom(e2d, convnet3_w32@epoch=1 seeds=0..{i})" for i in range(9)]
    manifests = [made(name, 1500, [0.5, 0.52]) for name in ["e2d", *long, long[0]]]
    found = compared(manifests, [str(i) for i in range(11)], None, "", ["none"] * 11)
    spots = plots(found)[0].spots
    assert [spot.name for spot in spots] == ["e2d", *(f"#{i}" for i in range(2, 11))]
    heights = sorted(spot.label_y for spot in spots)
    assert all(after - before >= comparison.LABEL_HEIGHT for before, after in pairwise(heights))
    assert "<h1>10 methods</h1>" in render(found) and "<h1>rded, e2d, sre2l</h1>" in render(three())


def test_the_page_escapes_and_links_to_the_reports():
    page = render(three())
    assert "retort compare &lt;them&gt;" in page and "<them>" not in page
    assert page.count("<figure") == 2 and 'href="e2d-ipc2/assets/report.html"' in page
    assert "+10.00 ahead" in page and "://" not in page
