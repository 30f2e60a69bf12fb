"""The loop of PPO and GRPO: exact ratios, gradients that no batching changes, penalties, invalid rows, bad configs."""

import dataclasses
import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch

from aligngym.agents.agent import Agent
from aligngym.agents.grpo import GRPO, GRPOConfig
from aligngym.agents.on_policy import Batch
from aligngym.agents.policies.control import ControlPolicy, TabularPolicy
from aligngym.agents.policies.decoding import Sampling
from aligngym.agents.ppo import PPO, PPOConfig

AGENTS = {"ppo": (PPO, PPOConfig), "grpo": (GRPO, GRPOConfig)}
AGGREGATIONS = ["token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum", "constant"]
RATIOS = ["token", "sequence", "normalized"]


def constant(completions, **_):
    return [0.7] * len(completions)


def state(agent):
    return {k: v.clone() for k, v in agent.policy.state_dict().items()}


def unchanged(agent, before):
    return all(torch.equal(v, before[k]) for k, v in agent.policy.state_dict().items())


def prepared(agent):
    """A batch with stale log-probs, so that no ratio is 1 and some are clipped."""
    episodes = agent.collect()
    batch, _ = agent.prepare(episodes.select(episodes.valid))
    noise = torch.randn(batch.old_log_probs.shape, generator=torch.Generator().manual_seed(3))
    return dataclasses.replace(batch, old_log_probs=batch.old_log_probs + 0.3 * noise * batch.episodes.mask)


def gradient(agent, batch, rows=None, **changes):
    """The gradient of one step on ``batch`` under changed options, before clipping; the parameters stay."""
    original, before = agent.config, state(agent)
    agent.config = dataclasses.replace(original, max_grad_norm=0.0, **changes)
    agent.optimizer.step = lambda *_: None
    metrics = agent._step(batch, torch.arange(len(batch.episodes)) if rows is None else rows)
    agent.config = original
    assert unchanged(agent, before)
    return torch.cat([p.grad.flatten() for p in agent.parameters]), metrics


def assert_close(one, two, tolerance=1e-6):
    assert one.norm() > 0
    assert ((one - two).norm() / one.norm()).item() <= tolerance


def widened(batch, steps):
    """The same batch with more padding of time."""
    pad = torch.nn.functional.pad
    time = ("actions", "log_probs", "mask", "rewards")
    episodes = dataclasses.replace(batch.episodes, **{n: pad(getattr(batch.episodes, n), (0, steps)) for n in time})
    names = ("advantages", "old_log_probs", "reference_log_probs", "old_values", "returns")
    parts = {n: None if (v := getattr(batch, n)) is None else pad(v, (0, steps)) for n in names}
    return Batch(episodes, **parts)


@pytest.mark.parametrize("level", RATIOS)
@pytest.mark.parametrize("name", AGENTS)
def test_the_first_step_has_ratio_exactly_one(make, name, level):
    agent = make(name, old_log_probs="recomputed", ratio=level)
    batch, _ = agent.prepare(agent.collect())
    ratios, loss = [], agent.loss

    def spy(part, now, weights, share):
        ratios.append((now.log_probs - part.old_log_probs).exp())
        return loss(part, now, weights, share)

    agent.loss = spy
    metrics = agent._step(batch, torch.arange(16))
    assert (ratios[0] == 1).all()
    assert metrics["train/clip_fraction"] == 0 and metrics["train/approx_kl"] == 0


@pytest.mark.parametrize("name", AGENTS)
def test_recorded_and_recomputed_log_probs_agree(make, name):
    agent = make(name)
    batch, _ = agent.prepare(agent.collect())
    _, metrics = gradient(agent, batch)
    assert metrics["train/clip_fraction"] == 0 and metrics["train/approx_kl"] < 1e-9


@pytest.mark.parametrize("level", RATIOS)
@pytest.mark.parametrize("kind", AGGREGATIONS)
@pytest.mark.parametrize("name", AGENTS)
def test_the_gradient_depends_on_no_batching(make, name, kind, level):
    agent = make(name, aggregation=kind, ratio=level, kl_coef=0.3, kl_estimator="k2", kl_in="loss", entropy_coef=0.1)
    batch = prepared(agent)
    agent.policy.double()  # in float32 rounding alone is up to 2e-6 of this gradient, in which a small error could hide
    whole, metrics = gradient(agent, batch)
    assert 0 < metrics["train/clip_fraction"] < 1
    for size in (1, 3, 5, 16):
        pieces, same = gradient(agent, batch, micro_batch_size=size)
        assert_close(whole, pieces, 2e-7)
        assert same == pytest.approx(metrics, rel=1e-4, abs=1e-6)
    order = torch.from_numpy(np.random.default_rng(0).permutation(16))
    assert_close(whole, gradient(agent, batch, rows=order)[0], 2e-7)
    assert_close(whole, gradient(agent, batch.rows(order))[0], 2e-7)
    if kind != "constant" or agent.horizon:
        assert_close(whole, gradient(agent, widened(batch, 3))[0], 2e-7)


@pytest.mark.parametrize("kind", AGGREGATIONS)
def test_the_gradient_of_control_does_not_depend_on_padding_either(kind):
    env = gym.make_vec("CartPole-v1", num_envs=8, vectorization_mode="sync")
    agent = PPO(env, config=PPOConfig(episodes_per_iteration=8, aggregation=kind, reference="none", kl_coef=0))
    batch = prepared(agent)
    episodes = batch.episodes
    wide = dataclasses.replace(episodes, observations=torch.nn.functional.pad(episodes.observations, (0, 0, 0, 4)))
    whole, _ = gradient(agent, batch)
    assert_close(whole, gradient(agent, widened(dataclasses.replace(batch, episodes=wide), 4))[0])
    assert_close(whole, gradient(agent, batch, micro_batch_size=3)[0])


@pytest.mark.parametrize("name", AGENTS)
def test_advantages_do_not_depend_on_the_order_of_groups_and_rows(make, name):
    agent = make(name)
    episodes = agent.collect()
    batch, _ = agent.prepare(episodes)
    order = torch.from_numpy(np.random.default_rng(1).permutation(16))
    shuffled, _ = agent.prepare(episodes.select(order))
    torch.testing.assert_close(shuffled.advantages, batch.advantages[order], atol=1e-5, rtol=0)


def test_groups_begin_in_the_same_state_and_are_numbered(make):
    agent = make("grpo")
    episodes = agent.collect()
    assert episodes.group.tolist() == np.repeat(np.arange(4), 4).tolist()
    for group in range(4):
        rows = (episodes.group == group).nonzero()[:, 0]
        assert len({episodes.info["prompt"][i] for i in rows.tolist()}) == 1
        assert len({tuple(episodes.actions[i].tolist()) for i in rows.tolist()}) > 1
    returns = episodes.returns.reshape(4, 4)
    z = (returns - returns.mean(1, keepdim=True)) / (returns.std(1, keepdim=True) + 1e-4)
    batch, _ = agent.prepare(episodes)
    first = batch.advantages[:, 0].reshape(4, 4)
    torch.testing.assert_close(first, z, atol=1e-4, rtol=1e-4)
    assert torch.equal(batch.advantages, batch.advantages[:, :1] * episodes.mask)


@pytest.mark.parametrize("advantage", ["zscore", "centered", "leave_one_out"])
def test_equal_rewards_give_exactly_no_gradient(make, advantage):
    agent = make("grpo", env={"reward": constant}, advantage=advantage, kl_coef=0)
    before = state(agent)
    batch, _ = agent.prepare(agent.collect())
    grad, _ = gradient(agent, batch)
    assert (grad == 0).all()
    del agent.optimizer.step
    _, metrics = agent.iterate()
    assert metrics["train/grad_norm"] == 0 and unchanged(agent, before)


@pytest.mark.parametrize("name", AGENTS)
def test_every_parameter_is_trained(make, name):
    agent = make(name)
    before = state(agent)
    agent.learn(48)
    assert all(p.grad is not None for p in agent.parameters)
    for key, value in agent.policy.state_dict().items():
        assert not torch.equal(value, before[key]), key


def test_ppo_of_one_decision_without_critic_is_reinforce():
    env = gym.make_vec("TabularBandit-v0", num_envs=64, num_prompts=3)
    options = {"episodes_per_iteration": 64, "whiten_advantages": False, "epochs": 1, "kl_coef": 0, "value_coef": 0}
    policy = TabularPolicy(3, 8)
    with torch.no_grad():
        policy.logits.normal_(generator=torch.Generator().manual_seed(0))
    agent = PPO(env, policy, PPOConfig(**options))
    batch, _ = agent.prepare(agent.collect())
    grad, _ = gradient(agent, batch)
    logits = policy.logits.detach().clone().requires_grad_()
    states, arms = batch.episodes.observations[:, 0].long(), batch.episodes.actions[:, 0]
    chosen = logits.log_softmax(-1)[states, arms]
    (expected,) = torch.autograd.grad(-(chosen * batch.episodes.returns).mean(), logits)
    assert_close(expected.flatten(), grad[: expected.numel()])
    assert (grad[expected.numel() :] == 0).all(), "the critic is not trained by a coefficient of 0"


@pytest.mark.parametrize("bootstrap", [False, True])
def test_targets_of_ppo_by_hand(bootstrap):
    """Generalised advantages of episodes that fell and of episodes that the time limit cut; whitened afterwards."""
    env = gym.make_vec("CartPole-v1", num_envs=8, vectorization_mode="sync", max_episode_steps=18)
    options = {"gamma": 0.9, "gae_lambda": 0.8, "bootstrap_truncated": bootstrap, "kl_coef": 0, "reference": "none"}
    agent = PPO(env, config=PPOConfig(episodes_per_iteration=16, **options))
    episodes = agent.collect()
    assert episodes.terminated.any() and episodes.truncated.any()
    batch, _ = agent.prepare(episodes)
    values = agent.policy.evaluate_actions(episodes).values.detach()
    plain = torch.zeros(episodes.mask.shape)
    for i, n in enumerate(episodes.lengths.tolist()):
        following, carried = values[i, n] * float(bootstrap and episodes.truncated[i]), 0.0
        for t in reversed(range(n)):
            carried = episodes.rewards[i, t] + 0.9 * following - values[i, t] + 0.72 * carried
            plain[i, t], following = carried, values[i, t]
    mask = episodes.mask
    torch.testing.assert_close(batch.returns, (plain + values[:, :-1]) * mask, atol=1e-5, rtol=1e-5)
    white = (plain - plain[mask].mean()) / plain[mask].std() * mask
    torch.testing.assert_close(batch.advantages, white, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("name", AGENTS)
def test_the_penalty_in_the_reward_is_exact(make, name, estimator):
    options = {"kl_coef": 0.25, "kl_in": "reward", "kl_estimator": estimator}
    agent = make(name, **options)
    agent.learn(32)
    episodes = agent.collect()
    mask = episodes.mask
    with torch.no_grad(), agent.reference.policy(agent.policy) as reference:
        d = (episodes.log_probs - agent.score(reference, episodes).log_probs) * mask
    cost = {"k1": d, "k2": d**2 / 2, "k3": (-d).exp() - 1 + d}[estimator] * mask
    assert d.abs().max() > 1e-3
    seen, targets = {}, agent.targets

    def spy(shaped, values):
        seen["rewards"] = shaped.rewards
        return targets(shaped, values)

    agent.targets = spy
    batch, metrics = agent.prepare(episodes)
    torch.testing.assert_close(episodes.rewards - seen["rewards"], 0.25 * cost, atol=1e-6, rtol=0)
    assert metrics["train/kl"] == pytest.approx(d.sum(1).mean().item(), abs=1e-5)
    if name == "grpo":
        net = (episodes.returns - 0.25 * cost.sum(1)).reshape(4, 4)
        z = (net - net.mean(1, keepdim=True)) / (net.std(1, keepdim=True) + 1e-4)
        torch.testing.assert_close(batch.advantages[:, 0].reshape(4, 4), z, atol=1e-4, rtol=1e-4)
    plain, _ = gradient(agent, batch)
    agent.config = dataclasses.replace(agent.config, kl_coef=0.0)
    assert torch.equal(gradient(agent, batch)[0], plain), "the penalty is in the reward only, not in the loss as well"


@pytest.mark.parametrize("estimator", ["k2", "k3"])
@pytest.mark.parametrize("name", AGENTS)
def test_the_divergence_in_the_loss_has_its_gradient(make, name, estimator):
    agent = make(name, kl_coef=0.5, kl_in="loss", kl_estimator=estimator)
    agent.learn(32)
    batch, _ = agent.prepare(agent.collect())
    with_kl, _ = gradient(agent, batch)
    without, _ = gradient(agent, batch, kl_coef=0.0)
    agent.policy.zero_grad()
    mask = batch.episodes.mask
    d = agent.policy.evaluate_actions(batch.episodes).log_probs - batch.reference_log_probs
    values = d**2 / 2 if estimator == "k2" else (-d).exp() - 1 + d
    weights = mask / mask.sum() if name == "ppo" else mask / mask.sum(1, keepdim=True) / 16
    (0.5 * values * weights).sum().backward()
    zero = torch.zeros_like
    expected = torch.cat([(zero(p) if p.grad is None else p.grad).flatten() for p in agent.parameters])
    assert_close(expected, with_kl - without, 1e-4)


def test_the_divergence_is_zero_at_first_and_grows(make):
    agent, seen = make("grpo", kl_coef=0, learning_rate=1e-2), []
    for _ in range(6):
        seen.append(agent.iterate()[1])
        agent.iteration += 1
    assert abs(seen[0]["train/kl"]) < 1e-5 and abs(seen[0]["train/kl_per_decision"]) < 1e-9
    assert seen[-1]["train/kl"] > 0.05 and all(m["train/kl_per_decision"] >= 0 for m in seen)


def test_the_entropy_bonus_raises_entropy(make):
    def entropy(coefficient):
        agent = make("grpo", kl_coef=0, entropy_coef=coefficient, env={"reward": constant})
        for _ in range(8):
            episodes, _ = agent.iterate()
        now = agent.policy.evaluate_actions(episodes, entropy=True)
        return (now.entropy * episodes.mask).sum() / episodes.mask.sum()

    assert entropy(0.5) > entropy(0.0) + 0.02


def test_dual_clip_changes_only_large_ratios_of_negative_advantages(make):
    agent = make("grpo", kl_coef=0)
    batch = prepared(agent)
    worst = (batch.advantages < 0).float().argmax()
    old = batch.old_log_probs.clone()
    row, column = divmod(int(worst), old.shape[1])
    old[row, column] -= 3.0  # a ratio of about 20
    batch = dataclasses.replace(batch, old_log_probs=old)
    free, _ = gradient(agent, batch)
    capped, _ = gradient(agent, batch, dual_clip=3.0)
    assert (free - capped).norm() > 1e-3
    assert_close(free, gradient(agent, batch, dual_clip=1e6)[0])


@pytest.mark.parametrize("name", AGENTS)
def test_version_counts_optimiser_updates(make, name):
    agent = make(name, epochs=2, minibatch_size=4)
    agent.learn(16)
    assert agent.policy.version == 8
    assert agent.collect().version == 8


def test_minibatches_cover_every_row_once_an_epoch(make):
    agent, seen = make("grpo", epochs=3, minibatch_size=5), []
    agent._step = lambda batch, rows: seen.append(rows.tolist()) or {}
    agent.update(agent.prepare(agent.collect())[0])
    assert [len(rows) for rows in seen] == [5, 5, 5, 1] * 3
    epochs = [list(itertools.chain(*seen[i : i + 4])) for i in (0, 4, 8)]
    assert all(sorted(rows) == list(range(16)) for rows in epochs) and epochs[0] != epochs[1]


def test_learning_rate_warms_up(make):
    agent = make("grpo", warmup_iterations=4, learning_rate=1e-3)
    rates = []
    agent.log = lambda metrics: rates.append(metrics["train/learning_rate"])
    agent.learn(16 * 5)
    assert rates == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3])


@pytest.mark.parametrize("name", AGENTS)
def test_equal_seeds_are_bit_equal_and_others_differ(make, name):
    one, two, other = (make(name, seed=s, epochs=2, minibatch_size=8, kl_coef=0.1).learn(48) for s in (3, 3, 4))
    assert unchanged(one, state(two)) and one.rng.bit_generator.state == two.rng.bit_generator.state
    assert not unchanged(one, state(other))


def test_nothing_draws_from_the_global_generators(make):
    agent = make("ppo")
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    agent.learn(32)
    agent.evaluate(episodes=16)
    assert torch.equal(torch.get_rng_state(), before[0]) and np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


def test_weights_made_by_the_agent_depend_on_its_seed():
    weights = [
        PPO(gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync"), seed=s).policy.actor[0].weight
        for s in (0, 0, 1)
    ]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_agents_refuse_what_they_cannot_train(make, tiny_env):
    with pytest.raises(TypeError, match="PPOConfig, but GRPO takes GRPOConfig"):
        GRPO(tiny_env(), config=PPOConfig())
    with pytest.raises(ValueError, match=r"PPO needs a critic.*value_head=True"):
        make("ppo", policy={"value_head": False})
    for changes in ({"top_k": 5}, {"top_p": 0.9}):
        with pytest.raises(ValueError, match="cannot train with"):
            make("grpo", policy={"sampling": Sampling(**changes)})
    with pytest.raises(TypeError, match="expected an id or a vector environment"):
        GRPO(gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="names a model"):
        GRPO("CartPole-v1", "stories")
    assert issubclass(GRPO, Agent)


def test_temperature_trains_with_the_ratio_of_what_was_sampled(make):
    agent = make("grpo", policy={"sampling": Sampling(temperature=0.7, suppress=(5,))})
    batch, _ = agent.prepare(agent.collect())
    _, metrics = gradient(agent, batch)
    assert metrics["train/approx_kl"] < 1e-9
    agent.learn(16)


def test_rows_cut_a_batch_to_its_longest_episode(make):
    agent = make("ppo")
    batch, _ = agent.prepare(agent.collect())
    lengths = batch.episodes.lengths
    short = (lengths == lengths.min()).nonzero()[:, 0]
    part, steps = batch.rows(short), int(lengths.min())
    assert part.episodes.mask.shape == part.advantages.shape == part.returns.shape == (len(short), steps)
    assert part.old_values.shape == (len(short), steps + 1)
    assert torch.equal(part.advantages, batch.advantages[short, :steps])


def test_control_and_tables_take_the_same_loop():
    env = gym.make_vec("CartPole-v1", num_envs=4, vectorization_mode="sync")
    space, actions = env.single_observation_space, env.single_action_space
    policy = ControlPolicy(space, actions, (8,), value=False)
    agent = GRPO(env, policy, GRPOConfig(episodes_per_iteration=8, group_size=4, kl_coef=0, reference="none"))
    episodes, metrics = agent.iterate()
    assert "train/kl" not in metrics and agent.divergences(episodes) is None
    first = episodes.observations[:, 0].reshape(2, 4, 4)
    assert (first == first[:, :1]).all() and not torch.equal(first[0, 0], first[1, 0])
