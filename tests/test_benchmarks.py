"""What the README says was measured is what the benchmarks wrote."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from test_learners import pool

from benchmarks import matching, noise, tables
from dd_tasks.learners import Learner, Learners
from dd_tasks.presets import dream_plus, preset
from dd_tasks.terms import GradientMatching

README = Path(tables.ROOT) / "README.md"


def test_the_readme_shows_the_committed_results() -> None:
    text = README.read_text()
    assert tables.MARKS.search(text) and tables.FAULTS.search(text)
    assert tables.rewritten(text) == text


def test_a_result_that_changes_changes_the_table(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    for path in (tables.ROOT / "benchmarks" / "results").glob("*.json"):
        (folder / path.name).write_text(path.read_text().replace('"mean": 0.', '"mean": 0.0'))
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    assert tables.rewritten(README.read_text()) != README.read_text()


def test_a_level_is_reached_at_the_first_iteration_that_has_it() -> None:
    def row(preset: str, iterations: int, mean: float) -> dict[str, object]:
        return {"preset": preset, "iterations": iterations, "claims": [{"row": "distilled_hard", "mean": mean}]}

    at_random = [row(matching.RANDOM, 0, 0.2), row(matching.RANDOM, 50, 0.3)]
    ours = [row(matching.OURS, n, mean) for n, mean in ((0, 0.25), (5, 0.29), (10, 0.3), (50, 0.28))]
    assert matching.reached(at_random + ours) == {"level": 0.3, "iterations": 10}
    assert matching.reached(at_random + ours[:2]) == {"level": 0.3, "iterations": None}


def test_random_sampling_is_dream_plus_without_what_it_adds(monkeypatch) -> None:
    monkeypatch.chdir(tables.ROOT)
    plain, ours = preset(matching.RANDOM, side=32), dream_plus(side=32)
    assert plain.initialiser.demand(10) == 40 == plain.initialiser.least(10)
    assert plain.ballots[0].voters.choose == "random" and plain.ballots[0].terms == ours.ballots[0].terms[1:]
    assert (plain.schedule, plain.labeller) == (ours.schedule, ours.labeller)


def test_a_batch_of_all_images_has_no_noise_and_other_draws_have_some(monkeypatch) -> None:
    studio = replace(tiny.studio(), real=pool(12))
    monkeypatch.setattr(noise, "REPEATS", 2)
    monkeypatch.setattr(noise, "BATCHES", (2, 12))
    learner = Learner(Learners("convnet2_w8"), studio, studio.real)
    made = noise.measured(learner, GradientMatching(), tiny.pixels(3), tiny.labels(3))
    few, every = made["batches"]
    for chosen in ("random", "representative"):
        assert every[chosen] == pytest.approx(1, abs=1e-4) and few[chosen] < 0.999
    assert made["other_draws"] < 0.999
