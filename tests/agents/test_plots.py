"""Best-of-N against brute force and closed forms; figures against the files that they are drawn from."""

import math
from itertools import combinations

import numpy as np
import pytest
from matplotlib.image import imread

from aligngym.agents.callbacks import write_table
from aligngym.agents.plots import (
    BestOfN,
    best_of_n,
    plot_frontier,
    plot_learning,
    read_best_of_n,
    read_evaluations,
    read_progress,
    write_best_of_n,
)


def make_run(folder, scale=1.0, kl=True, evaluation=True):
    folder.mkdir(parents=True)
    times = range(32, 321, 32)
    rows = [{"time/episodes": float(t), "rollout/reward_mean": scale * t / 320} for t in times]
    points = [{"episodes": float(t), "reward_mean": scale * t / 320, "reward_se": 0.05} for t in range(0, 321, 80)]
    if kl:
        rows = [row | {"train/kl": row["time/episodes"] / 100} for row in rows]
        points = [row | {"kl": row["episodes"] / 100 - 1e-3} for row in points]
    write_table(folder / "progress.csv", rows)
    if evaluation:
        write_table(folder / "eval.csv", points)
    return folder


def colors(path):
    """Share of pixels that are coloured, neither white nor grey."""
    image = imread(path)[..., :3]
    return float((image.max(-1) - image.min(-1) > 0.2).mean())


def test_best_of_n_is_the_mean_over_all_subsets():
    returns = np.random.default_rng(0).normal(size=(3, 6))
    for point in best_of_n(returns, range(1, 7)):
        brute = [np.mean([max(subset) for subset in combinations(row, point.n)]) for row in returns]
        assert point.reward == pytest.approx(np.mean(brute))
        assert point.standard_error == pytest.approx(np.std(brute, ddof=1) / math.sqrt(3))


def test_best_of_n_is_unbiased_for_uniform_rewards():
    returns = np.random.default_rng(1).random((4000, 8))
    for point in best_of_n(returns):
        assert abs(point.reward - point.n / (point.n + 1)) < 4 * point.standard_error


def test_divergence_of_best_of_n():
    points = best_of_n(np.random.default_rng(2).random((4, 10)))
    assert [p.n for p in points] == [1, 2, 4, 8]
    assert points[0].kl == 0
    assert points[2].kl == pytest.approx(math.log(4) - 3 / 4)
    assert [p.reward for p in points] == sorted(p.reward for p in points)


def test_failed_rewards_are_left_out_of_best_of_n():
    returns = np.array([[1.0, 2.0, math.nan], [3.0, math.nan, 5.0]])
    one, two = best_of_n(returns, [1, 2])
    assert (one.reward, two.reward) == (pytest.approx(2.75), pytest.approx(3.5))
    (alone,) = best_of_n([[1.0, 2.0, 3.0], [9.0, math.nan, math.nan]], [3])  # the second prompt has no subset of 3
    assert alone.reward == 3.0 and math.isnan(alone.standard_error)


@pytest.mark.parametrize(
    ("returns", "sizes", "message"),
    [
        ([1.0, 2.0], None, "expected"),
        ([[math.nan]], None, "finite"),
        ([[1.0, 2.0]], [3], "N must"),
        ([[1.0]], [0], "N must"),
    ],
)
def test_impossible_best_of_n_is_refused(returns, sizes, message):
    with pytest.raises(ValueError, match=message):
        best_of_n(returns, sizes)


def test_best_of_n_survives_a_round_trip(tmp_path):
    points = best_of_n(np.random.default_rng(3).random((4, 4)))
    write_best_of_n(tmp_path / "b.csv", points)
    assert read_best_of_n(tmp_path / "b.csv") == points
    assert read_best_of_n(tmp_path / "none.csv") == []


def test_a_resumed_runs_files_are_one_curve(tmp_path):
    write_table(tmp_path / "progress.csv", [{"time/episodes": float(t), "x": float(t)} for t in (8, 16, 24)])
    write_table(tmp_path / "progress-16.csv", [{"time/episodes": float(t), "x": float(t)} for t in (24, 32)])
    curve = read_progress(tmp_path)
    assert curve["time/episodes"].tolist() == curve["x"].tolist() == [8, 16, 24, 32]


def test_what_was_not_logged_is_nan(tmp_path):
    write_table(tmp_path / "eval.csv", [{"episodes": 0.0, "reward_mean": 1.0}, {"episodes": 8.0, "kl": 2.0}])
    curve = read_evaluations(tmp_path)
    assert np.isnan(curve["reward_mean"]).tolist() == [False, True]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"progress\.csv"):
        plot_learning([tmp_path], tmp_path / "x.png")
    with pytest.raises(FileNotFoundError, match=r"eval\.csv"):
        plot_frontier([tmp_path], tmp_path / "x.png")


def test_the_learning_curve_is_drawn_with_and_without_divergence_and_evaluation(tmp_path):
    tall = plot_learning([make_run(tmp_path / "a")], tmp_path / "figures" / "a.png", "A title")
    flat = plot_learning([make_run(tmp_path / "b", kl=False, evaluation=False)], tmp_path / "b.png")
    assert imread(tall).shape[0] > imread(flat).shape[0]  # a second panel
    assert colors(tall) > 0.005 and colors(flat) > 0.001


def test_runs_that_differ_in_their_seed_share_a_label(tmp_path, monkeypatch):
    from aligngym.agents import plots

    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    runs = [make_run(tmp_path / f"{agent}-seed{i}") for agent in ("grpo", "ppo") for i in range(2)]
    plots.plot_learning(runs, "unused")
    plots.plot_frontier(runs, "unused", [BestOfN(2, 0.3, 0.1, 0.2)])
    plots.plot_learning({"both": runs[:2], "one": str(runs[2])}, "unused")
    labels = [[text.get_text() for text in figure.axes[0].get_legend().get_texts()] for figure in figures]
    assert labels[0] == ["grpo", "ppo", "evaluation ± 1 s.e.", "training"]
    assert labels[1] == ["grpo", "ppo", "best of N"]
    assert labels[2][:2] == ["both", "one"]
    assert len({line.get_color() for line in figures[1].axes[0].lines}) == 3
    for figure in figures:
        assert all(axis.get_ylabel() for axis in figure.axes)
        assert figure.axes[0].get_title() and "episode" in figure.axes[-1].get_xlabel()


def test_many_runs_have_different_colours(tmp_path):
    from aligngym.agents.plots import _colors

    assert len(set(_colors(12))) == 12
    runs = [make_run(tmp_path / str(i) / "run", scale=i + 1) for i in range(10)]
    assert colors(plot_frontier(runs, tmp_path / "f.png")) > 0.005


def test_the_frontier_needs_a_divergence(tmp_path):
    run = make_run(tmp_path / "a", kl=False)
    with pytest.raises(ValueError, match="reference policy"):
        plot_frontier([run], tmp_path / "f.png")
    points = best_of_n(np.random.default_rng(3).random((4, 4)))
    assert plot_frontier([run], tmp_path / "f.png", points).exists()
