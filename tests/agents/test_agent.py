"""The verbs: predict, evaluate, learn; other people's tools, environments and policies."""

import csv
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from aligngym.agents.callbacks import Callback
from aligngym.agents.grpo import GRPO, GRPOConfig
from aligngym.agents.policies.policy import Decision, Evaluation, Policy, sample_categorical
from aligngym.agents.ppo import PPO, PPOConfig

SMALL = {"episodes_per_iteration": 8, "group_size": 4}


@pytest.fixture
def language(tiny_env, tiny_policy):
    return GRPO(tiny_env(8), tiny_policy(), GRPOConfig(**SMALL))


def control(cls=PPO, **options):
    config = {PPO: PPOConfig, GRPO: GRPOConfig}[cls]
    return cls("CartPole-v1", config=config(**SMALL | {"kl_coef": 0, "reference": "none"} | options))


def test_predict_one_and_many_on_a_dict_space(language):
    observation, _ = language.env.reset(seed=list(range(8)))
    actions, state = language.predict(observation)
    assert state is None and actions.shape == (8,) and actions.dtype == np.int64
    one, _ = language.predict({k: v[3] for k, v in observation.items()})
    assert one.shape == () and one == actions[3] and language.env.single_action_space.contains(one)
    tensors = {k: torch.as_tensor(v) for k, v in observation.items()}
    assert (language.predict(tensors)[0] == actions).all()


def test_predict_one_and_many_on_a_box_space():
    agent = control()
    observation, _ = agent.env.reset(seed=list(range(8)))
    actions, _ = agent.predict(observation)
    one, _ = agent.predict(observation[2])
    assert actions.shape == (8,) and one.shape == () and one == actions[2]
    for same in (observation[2].astype(np.float64), observation[2].tolist(), observation[2] * 100):
        assert agent.predict(same)[0].shape == (), "one observation, whatever its dtype and range"
    assert len({int(agent.predict(observation[2], deterministic=False)[0]) for _ in range(20)}) == 2


def test_predict_on_a_discrete_space_and_continuous_actions():
    agent = GRPO("TabularBandit-v0", config=GRPOConfig(**SMALL))
    assert agent.predict(2)[0].shape == () and agent.predict(np.array([2, 3]))[0].shape == (2,)
    pendulum = PPO("Pendulum-v1", config=PPOConfig(**SMALL, kl_coef=0, reference="none"))
    with torch.no_grad():
        pendulum.policy.log_std.fill_(3.0)
    actions, _ = pendulum.predict(np.zeros((64, 3), np.float32), deterministic=False)
    assert actions.shape == (64, 1) and (np.abs(actions) <= 2).all() and (np.abs(actions) == 2).any()


def test_predict_does_not_move_training():
    quiet, asked = control(), control()
    for agent in (quiet, asked):
        agent.learn(8)
        if agent is asked:
            agent.predict(np.zeros(4, np.float32), deterministic=False)
        agent.learn(8)
    assert all(torch.equal(a, b) for a, b in zip(quiet.policy.parameters(), asked.policy.parameters(), strict=True))


@pytest.mark.parametrize("env_id", ["CartPole-v1", "LLMAlign-v0"])
def test_stable_baselines_evaluates_our_agents(env_id, language, tiny_folder):
    from stable_baselines3.common.evaluation import evaluate_policy

    agent, kwargs = control(), {}
    if env_id == "LLMAlign-v0":
        agent, sizes = language, {"max_prompt_tokens": 6, "max_new_tokens": 8}
        kwargs = {"tokenizer": tiny_folder, "prompts": ["w0 w1"], **sizes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mean, std = evaluate_policy(agent, gym.make(env_id, **kwargs), n_eval_episodes=3)
    assert np.isfinite(mean) and np.isfinite(std)


def test_learn_counts_on_and_refuses_nonsense():
    agent = control(GRPO)
    for wrong in (0, -5):
        with pytest.raises(ValueError, match=f"total_episodes={wrong}"):
            agent.learn(wrong)
    assert agent.learn(1) is agent and agent.episodes == 8 and agent.iteration == 1
    agent.learn(9)
    assert agent.episodes == 24 and agent.iteration == 3


def test_a_callback_sees_every_iteration_and_can_stop():
    class Stop(Callback):
        def __init__(self):
            self.seen = []

        def on_start(self, agent, target):
            self.seen.append(("start", target))

        def on_iteration(self, agent, episodes, metrics):
            metrics["mine/number"] = 7.0
            self.seen.append((agent.episodes, len(episodes), sorted(k for k in metrics if k.startswith("rollout/"))[0]))
            return agent.iteration < 2

        def on_end(self, agent):
            self.seen.append("end")

    callback = Stop()
    control(GRPO).learn(80, [callback])
    assert [s[0] if s != "end" else s for s in callback.seen] == ["start", 8, 16, "end"]


def test_logs_go_to_the_folder(tmp_path):
    class Add(Callback):
        def on_iteration(self, agent, episodes, metrics):
            if agent.iteration == 2:
                metrics["late/column"] = 3.0
            return True

    agent = PPO("CartPole-v1", config=PPOConfig(**SMALL), folder=tmp_path / "run")
    agent.learn(16, Add())
    rows = list(csv.DictReader((tmp_path / "run" / "progress.csv").open()))
    assert [int(float(r["time/episodes"])) for r in rows] == [8, 16] and float(rows[1]["late/column"]) == 3
    assert {"rollout/reward_mean", "train/policy_loss", "train/value_loss", "train/kl"} <= set(rows[0])
    assert list((tmp_path / "run").glob("events.out*")) and (tmp_path / "run" / "last" / "manifest.json").exists()
    quiet = PPO("CartPole-v1", config=PPOConfig(**SMALL))
    quiet.learn(8)
    assert quiet.folder is None


class Corridor(gym.Env):
    """Walk right along five cells; a goal is only sometimes reported."""

    observation_space = spaces.Box(0, 1, (5,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell, self.steps = int(self.np_random.integers(0, 2)), 0
        return self._seen(), {}

    def step(self, action):
        self.cell, self.steps = min(4, max(0, self.cell + (1 if action else -1))), self.steps + 1
        done, info = self.cell == 4, {}
        if done:
            info["goal"] = self.steps
        return self._seen(), float(done), done, False, info

    def _seen(self):
        return np.eye(5, dtype=np.float32)[self.cell]


class Linear(Policy):
    """The least that a policy of one's own needs."""

    def __init__(self, inputs: int = 5, outputs: int = 2) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(inputs, outputs))

    def spec(self) -> dict[str, Any]:
        return {"inputs": self.weight.shape[0], "outputs": self.weight.shape[1]}

    @torch.no_grad()
    def act(self, observation, noise, deterministic=False):
        logits = torch.as_tensor(observation) @ self.weight
        actions = logits.argmax(-1) if deterministic else sample_categorical(logits, noise.uniform(1)[:, 0])
        return Decision(actions, logits.log_softmax(-1).gather(1, actions[:, None])[:, 0])

    def evaluate_actions(self, trajectories, *, entropy=False):
        steps = trajectories.mask.shape[1]
        log_p = (trajectories.observations[:, :steps] @ self.weight).log_softmax(-1)
        chosen = log_p.gather(2, trajectories.actions[..., None])[..., 0]
        return Evaluation(chosen * trajectories.mask, -(log_p.exp() * log_p).sum(-1) * trajectories.mask)


@pytest.fixture
def corridor():
    gym.register("Corridor-v0", entry_point=Corridor, max_episode_steps=12)
    yield "Corridor-v0"
    del gym.registry["Corridor-v0"]


def test_a_policy_and_an_environment_of_ones_own(corridor, tmp_path):
    agent = GRPO(corridor, Linear(), GRPOConfig(episodes_per_iteration=32, group_size=8, learning_rate=0.1))
    assert agent.horizon == 12
    before = agent.evaluate(episodes=64).mean
    agent.learn(32 * 12)
    after = agent.evaluate(episodes=64)
    assert after.mean > before + 0.2 and len(after.info["goal"]) == 64
    agent.save(tmp_path / "saved")
    with pytest.raises(ValueError, match="env="):
        GRPO.load(tmp_path / "saved", policy=Linear())  # a class is no JSON
    loaded = GRPO.load(tmp_path / "saved", env=corridor, policy=Linear())
    assert torch.equal(loaded.policy.weight, agent.policy.weight)
    assert loaded.evaluate(episodes=64).mean == after.mean


def test_what_a_policy_lacks_is_named():
    bare = Policy()
    with pytest.raises(TypeError, match="does not implement act"):
        bare.act(None, None)
    with pytest.raises(TypeError, match="does not implement evaluate_actions"):
        bare.evaluate_actions(None)
    with pytest.raises(TypeError, match="step by step only"):
        bare.generate(None, None, max_steps=1)


def test_a_number_of_environments_that_does_not_fit_is_named():
    env = gym.make_vec("CartPole-v1", num_envs=5, vectorization_mode="sync")
    with pytest.raises(ValueError, match="num_envs = 5"):
        GRPO(env, config=GRPOConfig(**SMALL)).learn(8)


def test_an_id_makes_groups_possible_for_any_environment():
    """CartPole's own batched environment takes one seed for all rows; the agent must not use it."""
    agent = control(GRPO)
    assert isinstance(agent.env, gym.vector.SyncVectorEnv)
    first = agent.collect().observations[:, 0].reshape(2, 4, -1)
    assert (first == first[:, :1]).all() and not torch.equal(first[0, 0], first[1, 0])
    with pytest.raises(gym.error.NameNotFound):
        GRPO("NoSuchThing-v0")
