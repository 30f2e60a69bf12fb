"""Replay without the environment's rewards: relabelling in place, state entropy, and the teacher's record."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch

from aligngym.agents.pbrl.replay import EpisodeRecord, RewardlessReplayBuffer, RunningDeviation, neighbor_distances
from aligngym.agents.pbrl.reward_model import EnsembleRewardModel

ARRAYS = ("observations", "next_observations", "actions", "dones", "timeouts")
LOW, HIGH = np.array([-2, 0], np.float32), np.array([2, 1], np.float32)


def buffer_of(steps, size=20, rows=2, exploring=False):
    """A buffer that holds ``steps`` steps of two rows, each the next of random numbers, episodes of seven steps."""
    model = EnsembleRewardModel(3, 2, size=2, hidden=(8,), generator=torch.Generator().manual_seed(1)).eval()
    observation, action = gym.spaces.Box(-np.inf, np.inf, (3,)), gym.spaces.Box(LOW, HIGH)
    record = EpisodeRecord(rows, 100)
    buffer = RewardlessReplayBuffer(
        size * rows, observation, action, "cpu", rows, reward_model=model, record=record, neighbors=2
    )
    buffer.exploring = exploring
    rng = np.random.default_rng(0)
    for t in range(steps):
        states, following = rng.normal(size=(2, rows, 3)).astype(np.float32)
        taken = rng.uniform(-1, 1, (rows, 2)).astype(np.float32)
        done = np.full(rows, t % 7 == 6)
        infos = [{"TimeLimit.truncated": bool(done[i]) and i == 0, "true_reward": t + i / 10} for i in range(rows)]
        buffer.add(states, following, taken, np.full(rows, 1e6), done, infos)
    return buffer


def by_the_model(buffer):
    """Rewards ``[size, rows]`` of the members' own networks, actions scaled by hand."""
    taken = torch.from_numpy(LOW + (buffer.actions[: buffer.size()] + 1) / 2 * (HIGH - LOW))
    inputs = torch.cat([torch.from_numpy(buffer.observations[: buffer.size()]), taken], -1)
    with torch.no_grad():
        return torch.stack([net(inputs)[..., 0] for net in buffer.reward_model.nets]).mean(0).numpy()


@pytest.mark.parametrize("steps", [13, 20, 33])
def test_relabelling_changes_exactly_the_rewards(steps):
    """Partly filled, just full, and wrapped: all that is stored is relabelled, nothing else moves."""
    buffer = buffer_of(steps)
    np.testing.assert_allclose(buffer.rewards[: buffer.size()], by_the_model(buffer), atol=1e-6)
    before = {name: getattr(buffer, name).copy() for name in (*ARRAYS, "rewards")}
    place = buffer.pos, buffer.full
    with torch.no_grad():
        for parameter in buffer.reward_model.parameters():
            parameter.mul_(1.5)
    buffer.relabel()
    assert (buffer.pos, buffer.full) == place and buffer.size() == min(steps, 20)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(buffer, name), before[name])
    np.testing.assert_allclose(buffer.rewards[: buffer.size()], by_the_model(buffer), atol=1e-6)
    assert (buffer.rewards[: buffer.size()] != before["rewards"][: buffer.size()]).all()
    assert (buffer.rewards[buffer.size() :] == 0).all()


def test_relabelling_goes_on_where_a_chunk_ends(monkeypatch):
    monkeypatch.setattr("aligngym.agents.pbrl.replay.CHUNK", 6)
    buffer = buffer_of(33)
    buffer.rewards[:] = 7
    buffer.relabel()
    np.testing.assert_allclose(buffer.rewards, by_the_model(buffer), atol=1e-6)


def test_samples_have_learned_rewards_or_the_entropy_of_states():
    buffer = buffer_of(33, exploring=True)
    assert (buffer.rewards == 0).all()
    rows = np.arange(20)
    np.random.seed(0)  # noqa: NPY002, which row of the environment
    samples = buffer._get_samples(rows)
    np.random.seed(0)  # noqa: NPY002
    row = np.random.randint(0, 2, size=20)  # noqa: NPY002
    seen, every = buffer.observations[rows, row], buffer.observations.reshape(-1, 3)
    distances = np.sort(np.linalg.norm(seen[:, None].astype(float) - every[None], axis=-1), 1)[:, 2]
    np.testing.assert_allclose(samples.rewards[:, 0].numpy(), distances / distances.std(), rtol=1e-3)
    # Everything else is Stable-Baselines3's sample.
    np.testing.assert_array_equal(samples.next_observations.numpy(), buffer.next_observations[rows, row])
    ended = buffer.dones * (1 - buffer.timeouts)
    np.testing.assert_array_equal(samples.dones[:, 0].numpy(), ended[rows, row])
    buffer.exploring = False
    buffer.relabel()
    np.random.seed(0)  # noqa: NPY002
    np.testing.assert_allclose(buffer._get_samples(rows).rewards[:, 0].numpy(), buffer.rewards[rows, row])


def test_the_kth_neighbour_is_not_the_point_itself():
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0], [100.0]])
    assert neighbor_distances(line, line, 1).tolist() == pytest.approx([1, 1, 2, 4, 93], rel=1e-4)
    assert neighbor_distances(line, line, 2).tolist() == pytest.approx([3, 2, 3, 6, 97], rel=1e-4)
    assert neighbor_distances(line, line, 9).tolist() == pytest.approx([100, 99, 97, 93, 100], rel=1e-4)
    far = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) + 50  # away from 0, where rounding tells
    exact = (far.double()[:, None] - far.double()[None]).norm(dim=-1).sort(1).values[:, 5]
    torch.testing.assert_close(neighbor_distances(far, far, 5).double(), exact, rtol=1e-3, atol=1e-3)


def test_the_running_deviation_is_that_of_all_numbers():
    values = np.random.default_rng(0).gamma(2.0, 3.0, 500)
    running = RunningDeviation()
    for part in np.split(values, [3, 100, 101, 400]):
        running.update(torch.from_numpy(part))
    assert running.std == pytest.approx(values.std(), rel=1e-4)
    assert running.mean == pytest.approx(values.mean(), rel=1e-4)


def test_the_record_has_whole_episodes_with_true_rewards():
    buffer = buffer_of(20)
    episodes = list(buffer.record.episodes)
    assert len(episodes) == 4 and [e.terminated for e in episodes] == [False, True] * 2
    np.testing.assert_allclose(episodes[2].rewards, np.arange(7, 14))
    np.testing.assert_allclose(episodes[3].rewards, np.arange(7, 14) + 0.1)
    np.testing.assert_array_equal(episodes[2].observations[:7], buffer.observations[7:14, 0])
    np.testing.assert_array_equal(episodes[2].observations[7], buffer.next_observations[13, 0])
    np.testing.assert_allclose(episodes[2].actions, buffer.unscaled(buffer.actions[7:14, 0]), atol=1e-6)
    assert episodes[2].actions.min() < -1 and episodes[2].actions[:, 1].min() >= 0
    assert buffer.record.mean_step_reward(2) == pytest.approx(10.05)


def test_the_record_keeps_the_newest_and_survives_saving():
    buffer = buffer_of(20)
    record = buffer.record
    again = EpisodeRecord(2, 3)
    again.set_state(*record.get_state())
    assert len(again.episodes) == 3
    whole = EpisodeRecord(2, 100)
    whole.set_state(*record.get_state())
    one, two = whole.get_state(), record.get_state()
    assert one[1] == two[1] and one[0].keys() == two[0].keys()
    assert "open.0.rewards" in one[0] and one[0]["open.0.rewards"].tolist() == list(range(14, 20))
    assert all(torch.equal(v, two[0][k]) for k, v in one[0].items())
    other = copy.deepcopy(record)
    other.set_state(*EpisodeRecord(2, 100).get_state())
    assert not other.episodes and other.get_state()[0] == {}


def test_the_usual_reward_is_the_mean_of_ten_episodes_whatever_their_lengths():
    record = EpisodeRecord(1, 100)
    assert record.mean_step_reward() == 0
    state = np.zeros((1, 3), np.float32)
    for number in range(12):
        for step in range(number + 1):
            done = np.array([step == number])
            record.add(state, state, state, np.array([1e6]), done, [{"true_reward": float(number)}])
    assert record.mean_step_reward() == pytest.approx(np.mean(range(2, 12)))


def test_the_record_keeps_copies():
    """Environments may write into the arrays that they handed out."""
    record = EpisodeRecord(1, 2)
    state, taken = np.zeros((1, 3), np.float32), np.zeros((1, 2), np.float32)
    for step in range(3):
        state[:], taken[:] = step, step
        record.add(state, state + 1, taken, np.ones(1), np.array([step == 2]), [{}])
    assert record.episodes[0].observations[:, 0].tolist() == [0, 1, 2, 3]
    assert record.episodes[0].actions[:, 0].tolist() == [0, 1, 2]


def test_a_step_without_a_true_reward_counts_with_its_own():
    record = EpisodeRecord(1, 2)
    state = np.zeros((1, 3), np.float32)
    for done in (False, True):
        record.add(state, state, state, np.array([4.0]), np.array([done]), [{"TimeLimit.truncated": done}])
    assert record.episodes[0].rewards.tolist() == [4.0, 4.0] and not record.episodes[0].terminated


@pytest.mark.parametrize("end", [{"invalid": "diverged", "true_reward": 1.0}, {"true_reward": float("nan")}])
def test_episodes_of_simulations_that_diverged_are_left_out(end):
    record = EpisodeRecord(1, 2)
    state = np.zeros((1, 3), np.float32)
    for info in (end, {"true_reward": 2.0, "invalid": None}):
        record.add(state, state, state, np.ones(1), np.array([False]), [{"true_reward": 1.0}])
        record.add(state, state, state, np.ones(1), np.array([True]), [info])
    assert [e.rewards.tolist() for e in record.episodes] == [[1.0, 2.0]]
