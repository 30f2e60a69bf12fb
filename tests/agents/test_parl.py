"""PARL: PEBBLE without its weight, fresh segments and what they cost, the implicit part by hand, exact resume."""

import copy
import math

import numpy as np
import pytest
import torch
from stable_baselines3.common.buffers import ReplayBuffer

from aligngym.agents.parl import PARL, PARLConfig
from aligngym.agents.pbrl.reward_model import EnsembleRewardModel
from aligngym.agents.pbrl.reward_training import RewardTrainingConfig, fit_reward_model
from aligngym.agents.pbrl.segments import Segments
from aligngym.agents.pebble import PEBBLE, PEBBLEConfig, joined
from aligngym.cli import main

from .small_pebble import LIMIT, paying
from .small_pebble import SMALL as PEBBLE_SMALL
from .small_sb3 import MODES, Metrics, equal, everything, make_env

BASE = PEBBLE_SMALL | {"steps_between_queries": 40}
SMALL = BASE | {"fresh_queries": 4}
VARIANTS = ["unrolled_actor", "unrolled_critic"]


def pendulum(mode=MODES[0], **options):
    return make_env("Pendulum-v1", 2, mode, **{"max_episode_steps": LIMIT} | options)


def small(env=None, folder=None, **options):
    return PARL(env or pendulum(), config=PARLConfig(**SMALL | options), seed=3, folder=folder)


# PEBBLE, and what is asked when


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_its_weight_it_is_pebble(variant):
    ours, theirs = Metrics(), Metrics()
    pebble = PEBBLE(pendulum(), config=PEBBLEConfig(**BASE), seed=3).learn(240, theirs)
    parl = small(implicit=0.0, variant=variant, fresh_queries=0).learn(240, ours)
    assert equal(parl, pebble) and len(everything(parl)) > 60 and pebble.queries == 20
    assert ours.rows == theirs.rows and parl._state() == pebble._state()
    with_it = small(variant=variant).learn(240)
    assert not equal(with_it, pebble) and with_it.queries == 20


def test_fresh_questions_are_part_of_the_round():
    """The teacher is asked as often as PEBBLE's, at the same times; six, six, six, and two are left: too few."""
    asked, agent = [], small()
    answer, fit = agent._answer, agent._fit_reward

    def noted(segments, truth):
        asked.append((agent.model.num_timesteps, len(truth) // 2))
        return answer(segments, truth)

    def fitted(preferences, further=None):
        asked.append(len(agent._fresh))
        return fit(preferences, further)

    agent._answer, agent._fit_reward = noted, fitted
    agent.learn(300)
    starts = [60, 100, 140, 180]
    counts = [[4, 2], [4, 2], [4, 2], [2]]
    assert [x for x in asked if isinstance(x, int)] == [4, 4, 4, 2]
    found = iter(x for x in asked if not isinstance(x, int))
    for start, parts in zip(starts, counts, strict=True):
        for count in parts:
            step, number = next(found)
            assert number == count and start + 10 * parts[0] - 10 <= step <= start + 50
    assert agent.queries == len(agent.preferences) == 20


def test_fresh_segments_are_the_next_steps_of_an_actor_that_stands_still():
    agent = small().learn(60)
    before = copy.deepcopy(agent.model.policy.state_dict())
    updates, steps, size = agent.model._n_updates, agent.model.num_timesteps, agent.buffer.size()
    segments, truth = agent._play(6)
    assert all(torch.equal(v, before[k]) for k, v in agent.model.policy.state_dict().items())
    assert agent.model._n_updates == updates and agent.model.gradient_steps == 1
    taken = agent.model.num_timesteps - steps
    assert 30 <= taken <= 40 and agent.buffer.size() - size == taken // 2  # they are training steps, and in replay
    buffer = agent.buffer
    fresh = {tuple(x) for x in buffer.observations[size : size + taken // 2].reshape(-1, 3).tolist()}
    assert {tuple(x) for x in segments.observations.reshape(-1, 3).tolist()} <= fresh
    row = next(i for i in range(2) if (buffer.observations[size, i] == segments.observations[0, 0].numpy()).all())
    np.testing.assert_array_equal(buffer.observations[size : size + 5, row], segments.observations[0])
    np.testing.assert_array_equal(buffer.unscaled(buffer.actions[size : size + 5, row]), segments.actions[0])
    cosine, sine, speed = segments.observations.unbind(-1)
    returns = -(torch.atan2(sine, cosine) ** 2 + 0.1 * speed**2 + 0.001 * segments.actions[..., 0] ** 2)
    torch.testing.assert_close(truth, returns, rtol=1e-4, atol=1e-5)
    low, high = segments.actions.min(), segments.actions.max()
    assert low < -1.2 and high > 1.2 and agent._scaled(segments.actions).abs().max() <= 1


@pytest.mark.parametrize(("every", "each"), [(1, 1), (2, 3), (1, -1)])
def test_updates_that_were_due_meanwhile_are_made_up_for(every, each):
    agent = small(train_freq=every, gradient_steps=each, steps_between_queries=60).learn(160)
    trained = agent.model.num_timesteps - 20
    assert agent.queries == 12 and agent.model.num_timesteps == 160
    rounds = trained // (2 * every)
    assert agent.model._n_updates == 3 + (trained if each < 0 else rounds * each)


def test_episodes_shorter_than_a_segment_are_reported():
    agent = small(pendulum(max_episode_steps=4)).learn(60)
    with pytest.raises(ValueError, match="=5: 500 steps gave 0 segments; the longest episode has 4 steps"):
        agent.ask()
    assert agent.model.gradient_steps == 1


def test_skipped_fresh_pairs_leave_pebbles_loss():
    """Of a teacher who skips everything: there is nothing to fit, and no gradient."""
    agent = small(paying(float, lambda r: 1.0), teacher_skip=10.0).learn(120)
    assert agent.queries == 12 and agent.preferences is None and not agent._fit


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_reward_of_the_environment_does_not_matter(variant):
    honest = small(paying(float), variant=variant).learn(160)
    garbage = small(paying(lambda r: 1e6 * math.sin(1e3 * r)), variant=variant).learn(160)
    assert equal(honest, garbage) and honest.queries >= 12


# The implicit part


def prepared(variant, **options):
    """An agent of double precision where a round is due, and fresh answers."""
    agent = small(variant=variant, **options).learn(60)
    fresh = agent._answer(*agent._play(8))
    for module in (agent.reward_model, agent.model.actor, agent.model.critic, agent.model.critic_target):
        module.double()
    for network in (agent.model.actor, agent.model.critic, agent.model.critic_target):
        network.extract_features = lambda observations, _: observations.double()  # their own is of single precision
    s = fresh.segments
    object.__setattr__(s, "observations", s.observations.double())
    object.__setattr__(s, "actions", s.actions.double())
    object.__setattr__(fresh, "labels", fresh.labels.double())
    return agent, fresh


def likelihoods(scores, labels):
    likely = torch.sigmoid(scores[0::2] - scores[1::2])
    return labels * likely.log() + (1 - labels) * (1 - likely).log()


@pytest.mark.parametrize("steps", [1, 3])
def test_the_actors_part_by_hand(steps):
    """Move Stable-Baselines3's actor for real on half of the fresh actions, for rewards a little to either side, and
    score the other half."""
    agent, fresh = prepared("unrolled_actor", inner_steps=steps, learning_rate=0.01, gamma=0.9)
    model, segments = agent.reward_model, fresh.segments
    parameters = list(model.parameters())
    found = torch.autograd.grad(agent._through_actor(fresh)(), parameters)
    along = [
        torch.randn(p.shape, generator=torch.Generator().manual_seed(i)).double() for i, p in enumerate(parameters)
    ]
    taken = (segments.actions / 2).flatten(0, 1).clamp(-1 + 1e-7, 1 - 1e-7)  # Pendulum's torque is in [-2, 2]

    def log_probs(actor):
        mean, log_std, _ = actor.get_action_dist_params(segments.observations.flatten(0, 1))
        return torch.distributions.Normal(mean, log_std.exp()).log_prob(taken.atanh()).reshape(8, 5)

    def outcome(half, other):
        mask = torch.ones(8, 5, dtype=torch.bool)
        rewards = torch.stack([model.member(i, segments.observations, segments.actions, mask).mean for i in (0, 1)])
        rewards = rewards.mean(0).detach()
        togo = torch.stack([rewards[half, t:] @ 0.9 ** torch.arange(5 - t).double() for t in range(5)], 1)
        advantages = togo - (togo.sum(0) - togo) / 3
        actor = copy.deepcopy(agent.model.actor)
        before = log_probs(actor).detach()
        for _ in range(steps):
            actor.zero_grad()
            ((log_probs(actor) - before)[half].exp() * advantages).sum(1).mean().backward()
            with torch.no_grad():
                for p in actor.parameters():
                    p += 0.01 * p.grad
        return log_probs(actor)[other].detach().sum(1).reshape(2, 2).sum(1)

    held = likelihoods(
        torch.stack([model.nets[i](torch.cat([segments.observations, segments.actions], 2))[..., 0] for i in (0, 1)])
        .mean(0).sum(1).detach(), fresh.labels,
    )  # fmt: skip
    first, second = slice(0, 4), slice(4, 8)
    weights, ends = held - held.reshape(2, 2).flip(1).flatten(), []
    for sign in (1, -2):
        with torch.no_grad():
            for p, a in zip(parameters, along, strict=True):
                p += sign * 1e-5 * a
        ends.append((weights * torch.cat([outcome(second, first), outcome(first, second)])).mean())
    expected = float(ends[0] - ends[1]) / 2e-5
    assert abs(expected) > 1e-4
    assert sum(float((g * a).sum()) for g, a in zip(found, along, strict=True)) == pytest.approx(expected, rel=1e-4)


def test_the_critics_part_by_hand():
    """Take Stable-Baselines3's own step on the same transitions, whose rewards are the model's."""
    agent, fresh = prepared("unrolled_critic")
    state = agent.randomness.get_state()
    objective = agent._through_critic(fresh)
    agent.randomness.set_state(state)
    model, c = agent.model, agent.config
    critic = copy.deepcopy(model.critic)
    with agent.at_work(), torch.no_grad():
        replay = ReplayBuffer.sample(agent.buffer, c.batch_size)
        chosen, log_probs = model.actor.action_log_prob(replay.next_observations)
        values = torch.min(*model.critic_target(replay.next_observations, chosen))
        values -= model.log_ent_coef.exp() * log_probs[:, None]
        paid = [
            net(torch.cat([replay.observations, 2 * replay.actions], 1).double()) for net in agent.reward_model.nets
        ]
        targets = torch.stack(paid).mean(0) + c.gamma * (1 - replay.dones) * values
    critic.optimizer = torch.optim.Adam(critic.parameters(), lr=c.learning_rate)
    critic.optimizer.load_state_dict(copy.deepcopy(model.critic.optimizer.state_dict()))
    critic.optimizer.zero_grad()
    sum(0.5 * torch.nn.functional.mse_loss(q, targets) for q in critic(replay.observations, replay.actions)).backward()
    critic.optimizer.step()
    firsts = critic(fresh.segments.observations[:, 0], fresh.segments.actions[:, 0] / 2)
    expected = sum(likelihoods(q[:, 0], fresh.labels).mean() for q in firsts)
    before = sum(
        likelihoods(q[:, 0], fresh.labels).mean()
        for q in model.critic(fresh.segments.observations[:, 0], fresh.segments.actions[:, 0] / 2)
    )
    assert objective().item() == pytest.approx(expected.item(), rel=1e-6) and abs(expected - before) > 1e-6
    slopes = torch.autograd.grad(objective(), list(agent.reward_model.parameters()))
    assert all(s.isfinite().all() for s in slopes) and any(s.any() for s in slopes)


def test_it_is_added_to_the_loss_of_every_update():
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(8, 5, 3, generator=generator)
    mask, numbers = torch.ones(8, 5, dtype=torch.bool), torch.arange(8)
    answers = joined(None, Segments(steps[..., :2], steps[..., 2:], mask, numbers, numbers), torch.ones(4))
    config = RewardTrainingConfig(updates=6, batch_size=2, learning_rate=0.01, schedule="constant", standardize=False)
    fitted, calls = [], []
    for weight in (None, 0.0, 1e3):
        model = EnsembleRewardModel(2, 1, size=2, hidden=(4,))
        bias = model.nets[1][-2].bias

        def further(bias=bias, weight=weight):
            calls.append(weight)
            return weight * (bias - 1).square().sum()

        fit_reward_model(
            model, answers, config, rng=np.random.default_rng(0), further=further if weight is not None else None
        )
        fitted.append(model)
    assert calls == [0.0] * 6 + [1e3] * 6
    plain, zero, pulled = (m.state_dict() for m in fitted)
    assert all(torch.equal(v, zero[k]) for k, v in plain.items())
    assert pulled["nets.1.2.bias"] > plain["nets.1.2.bias"] + 0.03
    assert torch.equal(pulled["nets.0.2.bias"], plain["nets.0.2.bias"])


def test_it_is_taken_off_the_loss_by_its_weight_for_every_member(monkeypatch):
    seen = []
    agent = small(implicit=2.0).learn(60)
    fresh = agent._fresh = agent._answer(*agent._play(8))
    monkeypatch.setattr(PEBBLE, "_fit_reward", lambda self, preferences, further=None: seen.append(further()) or {})
    agent._fit_reward(agent.preferences)
    value = agent._through_actor(fresh)().item()
    assert seen[0].item() == pytest.approx(-2.0 * 2 * value, rel=1e-6) and value != 0 and agent._fresh is None


def test_its_size_grows_with_its_weight_and_rewards_say_when_they_saturate():
    found = [small(implicit=x).learn(100)._fit for x in (0.5, 5.0)]
    assert found[1]["preferences/implicit"] == pytest.approx(10 * found[0]["preferences/implicit"], rel=1e-4)
    assert found[0]["preferences/implicit"] > 0 and 0 < found[0]["preferences/reward_size"] < 0.5
    agent = small().learn(60)
    with torch.no_grad():
        for net in agent.reward_model.nets:
            net[-2].bias.fill_(5.0)
    agent.ask()
    assert agent._fit["preferences/reward_size"] > 0.99


# Resume, options, command line


@pytest.mark.parametrize(
    ("variant", "mode", "first"),
    [
        (VARIANTS[0], MODES[0], 60),
        (VARIANTS[0], MODES[1], 110),
        (VARIANTS[0], MODES[2], 110),
        (VARIANTS[1], MODES[0], 110),
    ],
)
def test_resume_is_exact(variant, mode, first, tmp_path):
    """From where a round is due, and from in the middle of an episode after one."""
    straight, half = (small(pendulum(mode), variant=variant) for _ in range(2))
    whole, one, two = Metrics(), Metrics(), Metrics()
    straight.learn(160, whole)
    half.learn(first, one)
    half.save(tmp_path / "saved")
    resumed = PARL.load(tmp_path / "saved", pendulum(mode))
    resumed.learn(straight.episodes - resumed.episodes, two)
    assert equal(resumed, straight) and resumed._state() == straight._state()
    assert one.rows + two.rows == whole.rows and resumed.queries >= 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"implicit": -1.0}, "implicit=-1.0: must be at least 0"),
        ({"implicit": math.nan}, "implicit=nan"),
        ({"variant": "both"}, "must be one of unrolled_actor, unrolled_critic"),
        ({"fresh_queries": 3}, r"fresh_queries=3: must be in \[4, 99\]"),
        ({"fresh_queries": 100}, "fresh_queries=100"),
        ({"inner_steps": 0}, "inner_steps=0"),
    ],
)
def test_bad_configs_are_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        PARLConfig(**options)
    assert PARLConfig.from_dict(PARLConfig(implicit=0.1).to_dict()) == PARLConfig(implicit=0.1)


def test_the_command_line_trains_and_evaluates(tmp_path, capsys):
    args = ["Pendulum-v1", "--agent", "parl", "--eval-episodes", "2", "--variant", "unrolled_critic"]
    for key, value in SMALL.items():
        args += ["--" + key.replace("_", "-"), *map(str, value if isinstance(value, tuple) else (value,))]
    args += [
        "--learning-starts",
        "190",
        "--unsupervised-steps",
        "20",
        "--episodes",
        "260",
        "--out",
        str(tmp_path / "r"),
    ]
    assert main(["train", *args]) == 0
    agent = PARL.load(tmp_path / "r" / "last")
    assert agent.queries >= 6 and agent.config.variant == "unrolled_critic"
    action, _ = agent.predict(np.zeros(3, np.float32))
    assert action.shape == (1,) and "unrolled" not in capsys.readouterr().err
