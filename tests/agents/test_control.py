"""Control policies: what they draw is what they score, the same numbers in every batch, no global generator."""

import json
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from aligngym.agents.policies.control import ControlPolicy, TabularPolicy
from aligngym.agents.policies.policy import RowNoise
from aligngym.trajectories import Trajectories

VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)
SPACES = {
    "box to discrete": (VECTOR, spaces.Discrete(4)),
    "box to shifted discrete": (VECTOR, spaces.Discrete(3, start=2)),
    "image to box": (spaces.Box(0, 255, (2, 3), np.uint8), spaces.Box(-2.0, 2.0, (2,), np.float32)),
    "discrete to matrix": (spaces.Discrete(5, start=1), spaces.Box(-1.0, 1.0, (2, 2), np.float32)),
    "scalar to discrete": (spaces.Box(-1.0, 1.0, (), np.float32), spaces.Discrete(2)),
}


def observations(space, *leading, seed=0):
    generator = np.random.default_rng(seed)
    if isinstance(space, spaces.Discrete):
        return generator.integers(space.start, space.start + space.n, leading)
    return generator.uniform(space.low, space.high, (*leading, *space.shape)).astype(space.dtype)


def played(policy, space, batch=6, steps=4, lengths=(4, 1, 2, 4, 3, 1)):
    """Episodes of a policy over made-up observations, recorded as a rollout does."""
    seen = torch.as_tensor(observations(space, batch, steps + 1))
    noise = RowNoise(range(batch))
    decisions = [policy.act(seen[:, t], noise) for t in range(steps)]
    mask = torch.arange(steps) < torch.tensor(lengths)[:, None]
    actions = torch.stack([d.actions for d in decisions], 1).detach()
    actions[~mask] = 0
    ends = torch.zeros(batch, dtype=torch.bool)
    return Trajectories(
        observations=seen,
        actions=actions,
        log_probs=torch.stack([d.log_probs for d in decisions], 1).detach() * mask,
        mask=mask,
        rewards=torch.zeros(batch, steps),
        terminated=~ends,
        truncated=ends,
        valid=~ends,
        group=torch.arange(batch),
    )


@pytest.mark.parametrize("name", SPACES)
def test_evaluating_gives_the_recorded_log_probs_and_zero_at_padding(name):
    observation_space, action_space = SPACES[name]
    policy = ControlPolicy(observation_space, action_space, (8,))
    episodes = played(policy, observation_space)
    now = policy.evaluate_actions(episodes)
    torch.testing.assert_close(now.log_probs, episodes.log_probs, atol=1e-6, rtol=0)
    assert (now.log_probs[~episodes.mask] == 0).all() and (now.entropy[~episodes.mask] == 0).all()
    assert (now.entropy[episodes.mask] != 0).all() and now.values.shape == (6, 5)
    (now.log_probs.sum() + now.entropy.sum() + now.values.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.parameters())


@pytest.mark.parametrize("name", SPACES)
def test_a_row_acts_alike_in_every_batch(name):
    observation_space, action_space = SPACES[name]
    policy = ControlPolicy(observation_space, action_space, (8,))
    seen, order = observations(observation_space, 6), [4, 0, 2]
    full = policy.act(seen, RowNoise(range(6)))
    part = policy.act(seen[order], RowNoise(order))
    torch.testing.assert_close(part.actions, full.actions[order])
    torch.testing.assert_close(part.log_probs, full.log_probs[order])
    assert full.actions.shape == (6, *action_space.shape)
    assert not full.actions.requires_grad and not full.log_probs.requires_grad
    if isinstance(action_space, spaces.Discrete):
        assert all(action in action_space for action in full.actions.numpy())


def test_distributions_are_those_of_torch():
    seen = torch.as_tensor(observations(VECTOR, 5))
    discrete = ControlPolicy(VECTOR, spaces.Discrete(4))
    decision = discrete.act(seen, RowNoise(range(5)))
    reference = torch.distributions.Categorical(logits=discrete.actor(seen))
    torch.testing.assert_close(decision.log_probs, reference.log_prob(decision.actions))
    box = ControlPolicy(VECTOR, spaces.Box(-1.0, 1.0, (2,), np.float32))
    box.log_std.data = torch.tensor([-0.5, 0.3])
    decision = box.act(seen, RowNoise(range(5)))
    reference = torch.distributions.Normal(box.actor(seen), box.log_std.exp())
    torch.testing.assert_close(decision.log_probs, reference.log_prob(decision.actions).sum(-1))
    episodes = played(box, VECTOR)
    entropy = box.evaluate_actions(episodes).entropy[episodes.mask]
    torch.testing.assert_close(entropy, reference.entropy().sum(-1)[:1].expand_as(entropy))


def test_frequencies_of_draws_are_the_probabilities():
    policy = TabularPolicy(1, 4)
    policy.logits.data = torch.tensor([[0.5, 0.25, 0.2, 0.05]]).log()
    drawn = policy.act(torch.zeros(20000), RowNoise(range(20000))).actions
    frequencies = drawn.bincount(minlength=4) / 20000
    assert (frequencies - policy.logits.exp()[0]).abs().max() < 4 * math.sqrt(0.25 / 20000)


def test_gaussian_actions_are_not_clipped_in_the_record():
    policy = ControlPolicy(VECTOR, spaces.Box(-0.01, 0.01, (1,), np.float32))
    assert policy.act(observations(VECTOR, 50), RowNoise(range(50))).actions.abs().max() > 0.1


@pytest.mark.parametrize("name", SPACES)
def test_deterministic_takes_the_mode_and_draws_nothing(name):
    observation_space, action_space = SPACES[name]
    policy = ControlPolicy(observation_space, action_space)
    noise, seen = RowNoise([3, 4]), observations(observation_space, 2)
    first = policy.act(seen, noise, deterministic=True)
    assert torch.equal(first.actions, policy.act(seen, noise, deterministic=True).actions)
    assert torch.equal(noise.uniform(1), RowNoise([3, 4]).uniform(1))
    assert (first.log_probs >= policy.act(seen, noise).log_probs - 1e-6).all()


def test_initial_weights_are_orthogonal_seeded_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    one, two = (ControlPolicy(VECTOR, spaces.Discrete(2), generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    again = ControlPolicy(VECTOR, spaces.Discrete(2), generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(one.actor[0].weight, two.actor[0].weight)
    assert not torch.equal(one.actor[0].weight, one.critic[0].weight)
    for layer, gain in ((one.actor[2], math.sqrt(2)), (one.actor[4], 0.01), (one.critic[4], 1.0)):
        rows = layer.weight @ layer.weight.T
        torch.testing.assert_close(rows, gain**2 * torch.eye(len(rows)), atol=1e-5, rtol=0)
        assert (layer.bias == 0).all()


def test_options():
    policy = ControlPolicy(VECTOR, spaces.Discrete(2), hidden=(16, 8), activation="relu", value=False)
    assert [tuple(p.shape) for p in policy.parameters()] == [(16, 3), (16,), (8, 16), (8,), (2, 8), (2,)]
    assert isinstance(policy.actor[1], torch.nn.ReLU)
    assert policy.evaluate_actions(played(policy, VECTOR)).values is None
    with pytest.raises(TypeError, match=r"observation_space is MultiBinary\(3\), but ControlPolicy handles Box"):
        ControlPolicy(spaces.MultiBinary(3), spaces.Discrete(2))
    with pytest.raises(ValueError, match="activation is 'gelu', expected one of tanh, relu"):
        ControlPolicy(VECTOR, spaces.Discrete(2), activation="gelu")
    with pytest.raises(TypeError, match="does not implement generate"):
        policy.generate(observations(VECTOR, 2), RowNoise([0, 1]), max_steps=1)


def test_observations_past_the_mask_are_not_read_and_missing_ones_are_refused():
    policy = ControlPolicy(VECTOR, spaces.Discrete(4))
    episodes = played(policy, VECTOR, lengths=(2, 1, 2, 2, 1, 1))
    short = Trajectories(
        **{**vars(episodes), **{n: getattr(episodes, n)[:, :2] for n in ("actions", "log_probs", "mask", "rewards")}}
    )
    full, cut = policy.evaluate_actions(episodes), policy.evaluate_actions(short)
    torch.testing.assert_close(cut.log_probs, full.log_probs[:, :2])
    torch.testing.assert_close(cut.values, full.values[:, :3])
    episodes.observations = episodes.observations[:, :4]
    with pytest.raises(ValueError, match="observations have 4 columns, expected at least 5"):
        policy.evaluate_actions(episodes)
    episodes.observations = {"a": episodes.observations}
    with pytest.raises(TypeError, match=r"observations are a dict with \['a'\]"):
        policy.evaluate_actions(episodes)


@pytest.mark.parametrize("name", SPACES)
def test_a_spec_rebuilds_the_policy_around_its_weights(name):
    observation_space, action_space = SPACES[name]
    made = ControlPolicy(observation_space, action_space, (8, 4), "relu", value=False)
    again = ControlPolicy.from_spec(json.loads(json.dumps(made.spec(), allow_nan=False)))
    assert (again.observation_space, again.action_space) == (observation_space, action_space)
    again.load_state_dict(made.state_dict())
    assert again.spec() == made.spec() and again.has_critic is made.has_critic is False
    bounds = spaces.Box(np.array([-np.inf, 0], np.float64), np.array([1, np.inf], np.float64), dtype=np.float64)
    open_ended = ControlPolicy(bounds, action_space)
    assert (
        ControlPolicy.from_spec(json.loads(json.dumps(open_ended.spec(), allow_nan=False))).observation_space == bounds
    )
    assert TabularPolicy.from_spec(TabularPolicy(3, 2).spec()).spec() == {
        "num_states": 3,
        "num_actions": 2,
        "value": True,
    }


# The table


def test_a_table_generates_what_it_plays_step_by_step():
    policy = TabularPolicy(3, 5)
    policy.logits.data = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    states = np.array([0, 2, 2, 1])
    decision = policy.act(states, RowNoise(range(4)))
    episodes = policy.generate(states, RowNoise(range(4)), max_steps=1, terminal_actions=range(5))
    assert torch.equal(episodes.actions[:, 0], decision.actions)
    assert torch.equal(episodes.log_probs[:, 0], decision.log_probs.detach())
    assert episodes.terminated.all() and not episodes.truncated.any()
    assert policy.generate(states, RowNoise(range(4)), max_steps=1).truncated.all()
    best = policy.generate(states, RowNoise(range(4)), max_steps=1, deterministic=True)
    assert torch.equal(best.actions[:, 0], policy.logits[states].argmax(-1))
    with pytest.raises(ValueError, match="max_steps is 2"):
        policy.generate(states, RowNoise(range(4)), max_steps=2)


def test_a_table_scores_its_states():
    policy = TabularPolicy(3, 2)
    policy.logits.data, policy.values.data = torch.randn(3, 2), torch.tensor([1.0, 2.0, 3.0])
    episodes = policy.generate(np.array([2, 0]), RowNoise([0, 1]), max_steps=1, terminal_actions=(0, 1))
    now = policy.evaluate_actions(episodes)
    torch.testing.assert_close(now.log_probs, episodes.log_probs)
    torch.testing.assert_close(
        now.entropy[:, 0], torch.distributions.Categorical(logits=policy.logits[[2, 0]]).entropy()
    )
    assert now.values.tolist() == [[3.0, 3.0], [1.0, 1.0]]
    assert TabularPolicy(3, 2, value=False).evaluate_actions(episodes).values is None
    with pytest.raises(ValueError, match="got 0 and 2"):
        TabularPolicy(0, 2)


def test_squashed_means_fill_the_box_and_the_density_is_the_gaussians():
    box = spaces.Box(np.float32([-1, 0]), np.float32([1, 4]), dtype=np.float32)
    policy = ControlPolicy(VECTOR, box, value=False, squash=True)
    policy.actor[-1].weight.data *= 1000
    policy.log_std.data = torch.tensor([-9.0, 5.0])
    seen = torch.as_tensor(observations(VECTOR, 40))
    means = policy.act(seen, RowNoise(range(40)), deterministic=True).actions
    assert all(mean in box for mean in means.numpy())
    assert means.amin(0)[1] < 0.5 and means.amax(0)[1] > 3.5
    reference = torch.distributions.Normal(
        torch.tensor([0.0, 2.0]) + torch.tensor([1.0, 2.0]) * policy.actor(seen).tanh(), torch.tensor([-5.0, 2.0]).exp()
    )
    drawn = policy.act(seen, RowNoise(range(40)))
    torch.testing.assert_close(drawn.log_probs, reference.log_prob(drawn.actions).sum(-1))
    scored = policy.log_prob(policy.outputs(policy.features(seen)), drawn.actions)
    torch.testing.assert_close(scored, drawn.log_probs)
    episodes = played(policy, VECTOR)
    again = policy.evaluate_actions(episodes)
    torch.testing.assert_close(again.log_probs, episodes.log_probs)
    torch.testing.assert_close(
        again.entropy[episodes.mask], reference.entropy().sum(-1)[:1].expand(int(episodes.mask.sum()))
    )


@pytest.mark.parametrize("actions", [spaces.Discrete(3), spaces.Box(-np.inf, np.inf, (2,), np.float32)])
def test_only_bounded_actions_are_squashed(actions):
    with pytest.raises(ValueError, match="squash=True needs a Box with bounds"):
        ControlPolicy(VECTOR, actions, squash=True)


def test_standardisation_and_squashing_are_in_the_spec():
    policy = ControlPolicy(VECTOR, VECTOR, squash=True)
    policy.standardize([0.1, 0.2, 0.3], [1.0, 2.0, 1 / 3])
    seen = torch.as_tensor(observations(VECTOR, 5))
    torch.testing.assert_close(
        policy.features(seen), (seen - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([1, 2, 1 / 3])
    )
    again = ControlPolicy.from_spec(json.loads(json.dumps(policy.spec())))
    again.load_state_dict(policy.state_dict())
    one, two = (p.act(seen, RowNoise(range(5))) for p in (policy, again))
    assert torch.equal(one.actions, two.actions) and torch.equal(one.log_probs, two.log_probs)
    policy.standardize(None, None)
    assert torch.equal(policy.features(seen), seen)
