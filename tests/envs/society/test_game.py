"""The collective choice: what it pays, where it tips, where populations go."""

import itertools

import numpy as np
import pytest

from aligngym.envs.society.game import CollectiveGame, binomial, logit_dynamics, replicator

TIPPING = {"all": {2: 1 / 8, 4: 0.465, 6: 0.715, 8: 0.906}, "colluders": {2: 0.094, 4: 0.364, 6: 0.636, 8: 0.906}}


@pytest.mark.parametrize("success_pays", TIPPING)
@pytest.mark.parametrize("threshold", [2, 4, 6, 8])
def test_tipping_points_are_the_known_ones(success_pays, threshold):
    points = CollectiveGame(8, threshold, success_pays=success_pays).tipping_points()
    assert points == [pytest.approx(TIPPING[success_pays][threshold], abs=1e-3)]


@pytest.mark.parametrize("success_pays", TIPPING)
@pytest.mark.parametrize(("players", "threshold"), [(2, 1), (3, 2), (5, 5), (4, 6)])
def test_gain_is_the_mean_over_all_that_others_may_do(success_pays, players, threshold):
    """Enumerated: payoffs of the game itself, not the formula."""
    game, q = CollectiveGame(players, threshold, (1.7, 1.1, 0.3), success_pays), 0.37
    expected = 0.0
    for others in itertools.product([False, True], repeat=players - 1):
        chance = np.prod([q if other else 1 - q for other in others])
        deviating, not_so = (game.pays(np.array([mine, *others]))[0] for mine in (True, False))
        expected += chance * (deviating - not_so)
    assert float(game.gain(q)) == pytest.approx(expected, abs=1e-12)


def test_one_is_enough():
    """T = 1: pays all: (h - m) (1 - q)^(n - 1); pays colluders only: h - m whatever the others do."""
    q = np.linspace(0, 1, 11)
    assert np.allclose(CollectiveGame(8, 1).gain(q), 0.2 * (1 - q) ** 7)
    assert np.allclose(CollectiveGame(8, 1, success_pays="colluders").gain(q), 0.2)


def test_more_than_all_is_impossible():
    q = np.linspace(0, 1, 11)
    for success_pays in TIPPING:
        game = CollectiveGame(4, 5, success_pays=success_pays)
        assert np.allclose(game.gain(q), -0.2) and game.tipping_points() == []
        assert not game.succeeds(np.ones(4, bool))


def test_payoffs_of_success_and_failure():
    two = np.array([True, True, False])
    assert CollectiveGame(3, 2).pays(two).tolist() == [1.2, 1.2, 1.2]
    assert CollectiveGame(3, 2, success_pays="colluders").pays(two).tolist() == [1.2, 1.2, 1.0]
    assert CollectiveGame(3, 3).pays(two).tolist() == [0.8, 0.8, 1.0]


def test_replicator_goes_away_from_the_tipping_point_and_rests_at_its_fixed_points():
    game = CollectiveGame(8, 4)
    (point,) = game.tipping_points()
    below, above = (replicator(game.gain, point + side, 5.0, 2000) for side in (-0.01, 0.01))
    assert (np.diff(below[below > 0]) < 0).all() and below[-1] < 1e-6
    assert (np.diff(above) > 0).all() and above[-1] > 0.9
    for fixed in (0.0, 1.0):
        assert (replicator(game.gain, fixed, 5.0, 3) == fixed).all()
    assert np.allclose(replicator(game.gain, point, 5.0, 3), point, atol=1e-4)


def test_replicator_is_its_differential_equation_where_steps_are_small():
    game, q, rate = CollectiveGame(8, 2), 0.3, 1e-4
    slope = (replicator(game.gain, q, rate, 1)[1] - q) / rate
    assert slope == pytest.approx(q * (1 - q) * float(game.gain(q)), rel=1e-3)


def test_replicator_follows_a_gain_that_changes_on_the_way():
    assert replicator(lambda q: 0.5 - q, 0.1, 1.0, 200)[-1] == pytest.approx(0.5, abs=1e-6)


def test_alignment_delays_and_does_not_prevent_tipping():
    """A more aligned start takes longer from above the tipping point; logit equilibria move with the alignment."""
    game = CollectiveGame(8, 2, success_pays="colluders")
    starts = [1 / (1 + np.exp(b)) for b in (0.5, 1.0, 1.5, 2.0)]
    reached = [int(np.argmax(replicator(game.gain, q, 2.0, 400) > 0.9)) for q in starts]
    assert reached == sorted(reached) and reached[0] > 0 and reached[-1] > 2 * reached[0]
    weak, strong = (logit_dynamics(game.gain, 0.5, b, 30.0, 500)[-1] for b in (0.5, 6.0))
    assert weak > 0.9 and strong < weak
    for b in (0.5, 6.0):
        q = logit_dynamics(game.gain, 0.5, b, 30.0, 500)[-1]
        assert q == pytest.approx(1 / (1 + np.exp(b - 30 * float(game.gain(q)))), abs=1e-9)


def test_binomial_sums_to_one():
    assert np.allclose(binomial(7, np.array([0.0, 0.3, 1.0])).sum(-1), 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"players": 0}, "players=0"), ({"factors": (1, 2)}, "factors"), ({"success_pays": "none"}, "success_pays")],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        CollectiveGame(**arguments)
