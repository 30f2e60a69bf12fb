"""Resuming: ``learn(2N)`` is ``learn(N)``, save, load, ``learn(N)``, bit for bit; what does not fit is refused."""

import csv
import dataclasses
import json
import os
import signal

import gymnasium as gym
import pytest
import torch

from aligngym.agents.callbacks import Callback
from aligngym.agents.checkpoint import CheckpointError
from aligngym.agents.grpo import GRPO, GRPOConfig
from aligngym.agents.policies.control import TabularPolicy
from aligngym.agents.policies.lm import LoRA
from aligngym.agents.ppo import PPO, PPOConfig
from aligngym.rewards import as_reward
from aligngym.wrappers import vector

AGENTS = {"ppo": (PPO, PPOConfig), "grpo": (GRPO, GRPOConfig)}
LENGTH = {"type": "length", "low": 1, "high": 6}
N = 48  # episodes: three iterations, so that Adam, generators and learning rate are under way
COMMON = {
    "episodes_per_iteration": 16, "group_size": 4, "epochs": 2, "minibatch_size": 8, "kl_coef": 0.05,
    "learning_rate": 1e-3, "warmup_iterations": 5,
}  # fmt: skip


class Metrics(Callback):
    """Everything that is logged, but for the clock."""

    def __init__(self, interrupt_at=0):
        self.rows, self.interrupt_at = [], interrupt_at

    def on_iteration(self, agent, episodes, metrics):
        self.rows.append({k: v for k, v in metrics.items() if not k.startswith("time/")})
        if len(self.rows) == self.interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)
        return True


def everything(agent):
    """All that decides how training goes on."""
    state = {f"policy.{k}": v.clone() for k, v in agent.policy.state_dict().items()}
    for i, values in agent.optimizer.state_dict()["state"].items():
        state |= {f"adam.{i}.{k}": v.clone() for k, v in values.items()}
    state |= {f"reference.{k}": v.clone() for k, v in agent.reference.tensors().items()}
    return state, agent.rng.bit_generator.state, agent.episodes, agent.iteration, agent.policy.version


def assert_equal(one, two):
    (tensors, *rest), (others, *other_rest) = everything(one), everything(two)
    assert tensors.keys() == others.keys() and rest == other_rest
    for name, value in tensors.items():
        assert torch.equal(value, others[name]), name


def check_resume(build, cls, folder, env=None):
    """``build()`` makes the agent, ``env()`` the environment where it has to be given."""
    straight, first, second = build(), build(), Metrics()
    whole, half = Metrics(), Metrics()
    straight.learn(2 * N, whole)
    first.learn(N, half)
    first.save(folder)
    first.learn(N)  # what the first agent does after saving must not matter
    resumed = cls.load(folder, env=env() if env else None)
    resumed.learn(N, second)
    assert half.rows + second.rows == whole.rows
    assert_equal(resumed, straight)
    assert_equal(first, straight)
    again = cls.load(folder, env=env() if env else None)
    assert again.episodes == N


@pytest.mark.parametrize("env_id", ["LLMAlign-v0", "CartPole-v1", "TabularBandit-v0"])
@pytest.mark.parametrize("name", AGENTS)
def test_resume_is_exact(name, env_id, tiny_folder, tmp_path):
    """Nothing is handed to load: environment and policy come from the checkpoint."""
    cls, config = AGENTS[name]

    def build():
        policy, env = None, env_id
        if env_id == "LLMAlign-v0":
            kwargs = {"prompts": ["w0 w1", "w2", "w3 w4 w5"], "tokenizer": tiny_folder, "reward": LENGTH}
            env = gym.make_vec(env_id, num_envs=16, max_new_tokens=8, max_prompt_tokens=4, **kwargs)
            policy = tiny_folder
        return cls(env, policy, config(**COMMON), seed=3)

    check_resume(build, cls, tmp_path / "saved")


@pytest.mark.parametrize("wrapped", ["reward.normalize", "schedule", "NormalizeReward", "PromptCurriculum"])
@pytest.mark.parametrize("name", AGENTS)
def test_resume_with_rewards_and_wrappers_that_keep_statistics(name, wrapped, tiny_env, tiny_policy, tmp_path):
    cls, config = AGENTS[name]

    def env():
        reward = as_reward(LENGTH)
        if wrapped == "reward.normalize":
            return tiny_env(16, reward=reward.normalize())
        if wrapped == "schedule":
            return tiny_env(16, reward=reward + as_reward("repetition").schedule([(0, 0.0), (2 * N, 1.0)]))
        made = tiny_env(16)
        if wrapped == "NormalizeReward":
            return vector.NormalizeReward(made)
        return vector.LengthPenalty(vector.PromptCurriculum(made), per_token=0.1)

    def build():
        return cls(env(), tiny_policy(value_head=cls.needs_values), config(**COMMON), seed=3)

    check_resume(build, cls, tmp_path / "saved", env)


@pytest.mark.parametrize("reference", ["moving", "initial"])
@pytest.mark.parametrize("adapted", [True, False])
def test_resume_with_adapters_and_moving_reference(adapted, reference, tiny_env, tiny_policy, tmp_path):
    options = COMMON | {"reference": reference, "reference_every": 2, "reference_mix": 0.5}

    def build():
        policy = tiny_policy(lora=LoRA(rank=2) if adapted else None)
        return GRPO(tiny_env(16), policy, GRPOConfig(**options), seed=3)

    check_resume(build, GRPO, tmp_path / "saved", lambda: tiny_env(16))


def test_evaluations_change_nothing(tiny_env, tiny_policy):
    class Evaluate(Callback):
        def on_iteration(self, agent, episodes, metrics):
            agent.evaluate(episodes=20)
            agent.evaluate(other, episodes=4, deterministic=True)
            agent.predict(other.observation_space.sample(), deterministic=False)
            return True

    def env():
        return vector.NormalizeReward(tiny_env(16, reward=as_reward(LENGTH).normalize()))

    other = tiny_env(4)
    quiet, watched = (PPO(env(), tiny_policy(value_head=True), PPOConfig(**COMMON)) for _ in range(2))
    quiet.learn(2 * N)
    watched.learn(2 * N, Evaluate())
    assert_equal(quiet, watched)
    assert quiet.env.get_state() == watched.env.get_state()


def bandit(folder=None, **options):
    config = GRPOConfig(**{"episodes_per_iteration": 16, "group_size": 4} | options)
    return GRPO("TabularBandit-v0", TabularPolicy(4, 8, value=False), config, folder=folder)


def test_ctrl_c_finishes_the_iteration_saves_and_resumes_exactly(tmp_path):
    straight = bandit().learn(96)
    interrupted, before = bandit(tmp_path), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"stopped after 32 episodes; saved in .*last"):
        interrupted.learn(96, Metrics(interrupt_at=2))
    assert signal.getsignal(signal.SIGINT) is before
    resumed = GRPO.load(tmp_path / "last", run_folder=tmp_path)
    assert resumed.episodes == 32
    resumed.learn(64)
    assert_equal(resumed, straight)


def test_ctrl_c_without_a_folder_says_that_nothing_was_saved():
    with pytest.raises(KeyboardInterrupt, match="has no folder"):
        bandit().learn(96, Metrics(interrupt_at=1))


def test_a_second_ctrl_c_stops_at_once():
    class Twice(Callback):
        def on_iteration(self, agent, episodes, metrics):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("still running")

    with pytest.raises(KeyboardInterrupt):
        bandit().learn(32, Twice())


def test_a_resumed_run_overwrites_no_log(tmp_path):
    bandit(tmp_path).learn(32)
    first = (tmp_path / "progress.csv").read_bytes()
    resumed = GRPO.load(tmp_path / "last", run_folder=tmp_path)
    resumed.learn(32)
    assert (tmp_path / "progress.csv").read_bytes() == first
    assert sorted(f.name for f in tmp_path.glob("progress*.csv")) == ["progress-48.csv", "progress.csv"]
    rows = [row for name in ("progress.csv", "progress-48.csv") for row in csv.DictReader((tmp_path / name).open())]
    assert [int(float(row["time/episodes"])) for row in rows] == [16, 32, 48, 64]
    assert GRPOConfig.from_dict(json.loads((tmp_path / "config.json").read_text())) == resumed.config


def test_callbacks_get_their_state_back(tmp_path):
    class Count(Callback):
        calls = 0

        def on_iteration(self, agent, episodes, metrics):
            self.calls += 1
            return True

        def get_state(self):
            return {"calls": self.calls}

        def set_state(self, state):
            self.calls = state["calls"]

    agent, counter = bandit(tmp_path), Count()
    agent.learn(32, counter)
    for given in (Count(), [Count()], [Metrics(), Count()]):
        GRPO.load(tmp_path / "last").learn(16, given)
        counted = given if isinstance(given, Callback) else given[-1]
        assert counted.calls == 3


@pytest.fixture
def saved(tmp_path):
    agent = bandit()
    agent.learn(16)
    agent.save(tmp_path / "saved")
    return tmp_path / "saved"


def rewrite(folder, change):
    """Change state.json and its hash, as only someone who means to could."""
    import hashlib

    state = json.loads((folder / "state.json").read_text())
    change(state)
    (folder / "state.json").write_text(json.dumps(state))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"]["state.json"] = hashlib.sha256((folder / "state.json").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text and len(text) < 700
    return text


def test_another_class_is_refused(saved):
    with pytest.raises(ValueError, match=r"holds a GRPO, not a PPO: use GRPO\.load") as error:
        PPO.load(saved)
    one_sentence(error)


def test_another_config_is_refused(saved):
    same = GRPO.load(saved).config
    GRPO.load(saved, config=same)
    other = dataclasses.replace(same, learning_rate=0.5, kl_coef=0.3)
    with pytest.raises(ValueError, match="differs from the checkpoint's in") as error:
        GRPO.load(saved, config=other)
    assert f"learning_rate (saved {same.learning_rate}, given 0.5)" in one_sentence(error)
    assert "kl_coef" in str(error.value)


def test_a_config_of_a_version_with_fewer_fields_takes_the_defaults(saved):
    rewrite(saved, lambda state: state["config"].pop("entropy_coef"))
    assert GRPO.load(saved).config.entropy_coef == 0
    with pytest.raises(ValueError, match=r"entropy_coef \(saved 0\.0, given 0\.1\)"):
        GRPO.load(saved, config=dataclasses.replace(GRPO.load(saved).config, entropy_coef=0.1))


def test_a_config_with_an_unknown_field_is_refused(saved):
    rewrite(saved, lambda state: state["config"].update(novelty=1))
    with pytest.raises(ValueError, match=r"has no field \['novelty'\]"):
        GRPO.load(saved)


@pytest.mark.parametrize("name", ["policy.safetensors", "optimizer.safetensors", "reference.safetensors", "state.json"])
def test_damage_is_named(saved, name):
    data = bytearray((saved / name).read_bytes())
    data[len(data) // 2] ^= 1
    (saved / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=name) as error:
        GRPO.load(saved)
    one_sentence(error)
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        GRPO.load(saved)


def test_a_newer_schema_and_no_checkpoint_are_refused(saved, tmp_path):
    manifest = json.loads((saved / "manifest.json").read_text())
    (saved / "manifest.json").write_text(json.dumps(manifest | {"schema": 99}))
    with pytest.raises(CheckpointError, match=r"schema 99.*update aligngym"):
        GRPO.load(saved)
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        GRPO.load(tmp_path / "nothing")


def test_an_environment_of_objects_must_be_given(tiny_env, tiny_policy, tmp_path):
    agent = GRPO(tiny_env(16), tiny_policy(), GRPOConfig(**COMMON))
    agent.save(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"pass it as load\(folder, env=") as error:
        GRPO.load(tmp_path / "saved")
    one_sentence(error)
    GRPO.load(tmp_path / "saved", env=tiny_env(16))


def test_another_environment_is_refused(saved, tiny_env):
    for env in (tiny_env(16), gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")):
        with pytest.raises(ValueError, match="does not fit") as error:
            GRPO.load(saved, env=env)
        one_sentence(error)
    with pytest.raises(ValueError, match="does not fit"):
        GRPO.load(saved, env=gym.make_vec("TabularBandit-v0", num_envs=3))


def test_another_policy_is_refused(saved):
    with pytest.raises(ValueError, match=r"made for actions Discrete\(9\), not Discrete\(8\)"):
        GRPO.load(saved, policy=TabularPolicy(4, 9, value=False))
    with pytest.raises(ValueError, match="parameters differ"):
        GRPO.load(saved, policy=TabularPolicy(4, 8))


def test_a_policy_of_the_users_own_must_be_given(tmp_path):
    class Mine(TabularPolicy):
        pass

    agent = GRPO("TabularBandit-v0", Mine(4, 8, value=False), GRPOConfig(**COMMON))
    agent.learn(16)
    agent.save(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"pass the policy as load\(folder, policy="):
        GRPO.load(tmp_path / "saved")
    loaded = GRPO.load(tmp_path / "saved", policy=Mine(4, 8, value=False))
    assert_equal(loaded.learn(16), agent.learn(16))


@pytest.mark.parametrize("field", ["entry_point", "vector_entry_point"])
def test_a_checkpoint_cannot_name_code_to_run(saved, tmp_path, field):
    def attack(state):
        spec = json.loads(state["env"]["spec"])
        spec[field] = "os:mkdir"
        spec["kwargs"] = {"path": str(tmp_path / "broken-in"), "vectorization_mode": "sync"}
        state["env"]["spec"] = json.dumps(spec)

    rewrite(saved, attack)
    with pytest.raises(ValueError, match="not registered here as it was"):
        GRPO.load(saved)
    assert not (tmp_path / "broken-in").exists()


def test_saving_does_not_change_the_run_and_replaces(tmp_path):
    quiet, saving = bandit(), bandit()
    for _ in range(3):
        quiet.learn(16)
        saving.learn(16)
        saving.save(tmp_path / "saved")
    assert_equal(quiet, saving)
    assert GRPO.load(tmp_path / "saved").episodes == 48
    assert sorted(p.name for p in tmp_path.iterdir()) == ["saved"]
