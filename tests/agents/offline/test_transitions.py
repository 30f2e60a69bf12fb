"""Flat transitions: which state follows which action, and what ends."""

import numpy as np
import pytest
import torch

from aligngym.agents.offline.transitions import Transitions
from aligngym.trajectories import Trajectories


def test_every_step_with_the_states_around_it(episodes):
    steps = Transitions.of(episodes)
    assert len(steps) == 12 + 7 + 3 + 12
    start = 0
    for row, length in enumerate([12, 7, 3, 12]):
        part = slice(start, start + length)
        assert torch.equal(steps.observations[part], episodes.observations[row, :length])
        assert torch.equal(steps.next_observations[part], episodes.observations[row, 1 : length + 1])
        assert torch.equal(steps.actions[part], episodes.actions[row, :length])
        assert torch.equal(steps.rewards[part], episodes.rewards[row, :length].float())
        start += length


def test_a_time_limit_is_not_terminal(episodes):
    """Only the last steps of the second and the third episode are: the others were cut."""
    assert Transitions.of(episodes).terminal.nonzero()[:, 0].tolist() == [12 + 7 - 1, 12 + 7 + 3 - 1]


def test_an_episode_that_ends_in_the_last_column_is_terminal(episodes):
    rows = episodes.select(torch.tensor([1]))
    for name in ("actions", "log_probs", "mask", "rewards"):
        setattr(rows, name, getattr(rows, name)[:, :7])
    rows.observations, rows.extras = rows.observations[:, :8], {}
    assert Transitions.of(rows).terminal.tolist() == [False] * 6 + [True]


def test_sampling_depends_on_the_generator_alone(episodes):
    steps = Transitions.of(episodes)
    one, two = (steps.sample(100, np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(one.observations, two.observations) and one.fingerprint() == two.fingerprint()
    rng = np.random.default_rng(4)
    drawn = np.random.default_rng(4).integers(len(steps), size=50)
    assert torch.equal(steps.sample(50, rng).rewards, steps.rewards[drawn])
    many = steps.sample(20_000, rng)
    counts = torch.stack([(many.next_observations == row).all(1).sum() for row in steps.next_observations])
    assert (counts.float() / (20_000 / len(steps)) - 1).abs().max() < 0.25  # 4 standard deviations are 0.165


def test_the_fingerprint_sees_everything(episodes):
    steps = Transitions.of(episodes)
    assert steps.fingerprint() == Transitions.of(episodes).fingerprint()
    for name in ("observations", "actions", "rewards", "next_observations"):
        changed = getattr(steps, name).clone()
        changed[5] += 1e-3
        assert Transitions(**{**vars(steps), name: changed}).fingerprint() != steps.fingerprint()
    assert Transitions(**{**vars(steps), "terminal": ~steps.terminal}).fingerprint() != steps.fingerprint()


def test_invalid_episodes_are_left_out(episodes):
    episodes.valid[0] = False
    episodes.rewards[0, 3] = torch.nan
    assert len(Transitions.of(episodes)) == 7 + 3 + 12
    episodes.valid[:] = False
    with pytest.raises(ValueError, match="none of the 4 episodes is valid"):
        Transitions.of(episodes)


def test_dict_observations_are_refused(episodes):
    with pytest.raises(ValueError, match=r"a dict of \['x'\]"):
        Transitions.of(Trajectories(**{**vars(episodes), "observations": {"x": episodes.observations}}))
