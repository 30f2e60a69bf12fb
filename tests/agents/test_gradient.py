"""What DPO and reward-weighted regression share: resume bit for bit, batching, failures, configurations."""

import dataclasses
import math

import gymnasium as gym
import numpy as np
import pytest
import torch

from aligngym.agents.callbacks import Callback
from aligngym.agents.gradient import GradientConfig, without_padding
from aligngym.agents.policies.control import ControlPolicy, TabularPolicy
from aligngym.agents.policies.decoding import Sampling
from aligngym.agents.policies.lm import LoRA
from aligngym.agents.preference.dpo import DPO, DPOConfig
from aligngym.agents.registry import agent_class
from aligngym.agents.rwr import RWR, RWRConfig
from aligngym.cli import main
from aligngym.rewards import as_reward
from aligngym.wrappers import vector

AGENTS = {"dpo": (DPO, DPOConfig), "rwr": (RWR, RWRConfig)}
N = 48  # episodes: three iterations
COMMON = {"episodes_per_iteration": 16, "group_size": 4, "learning_rate": 1e-3}
BUSY = COMMON | {"epochs": 2, "minibatch_size": 3, "warmup_iterations": 5}


class Logged(Callback):
    """Everything that is logged, but for the clock."""

    def __init__(self):
        self.rows = []

    def on_iteration(self, agent, episodes, metrics):
        self.rows.append({k: v for k, v in metrics.items() if not k.startswith("time/")})
        return True


@pytest.fixture
def make(tiny_policy, tiny_env):
    """``make("dpo", beta=1.0, ...)``: an agent over sixteen words; ``env`` and ``policy`` are settings of those."""

    def build(name, env=None, policy=None, seed=0, folder=None, **options):
        cls, config = AGENTS[name]
        model = tiny_policy(**policy or {})
        return cls(tiny_env(16, **env or {}), model, config(**COMMON | options), seed=seed, folder=folder)

    return build


def weights(agent):
    return {k: v.clone() for k, v in agent.policy.state_dict().items()}


def unchanged(agent, before):
    return all(torch.equal(v, before[k]) for k, v in agent.policy.state_dict().items())


def everything(agent):
    """All that decides how training goes on."""
    state = weights(agent)
    for i, values in agent.optimizer.state_dict()["state"].items():
        state |= {f"adam.{i}.{k}": v.clone() for k, v in values.items()}
    state |= {f"reference.{k}": v.clone() for k, v in agent.reference.tensors().items()}
    return state, (agent.rng.bit_generator.state, agent.episodes, agent.iteration, agent.policy.version)


def check_resume(build, cls, folder, **given):
    straight, first = build(), build()
    whole, half, second = Logged(), Logged(), Logged()
    straight.learn(2 * N, whole)
    first.learn(N, half)
    first.save(folder)
    first.learn(N)  # what the first agent does after saving must not matter
    resumed = cls.load(folder, **given)
    resumed.learn(N, second)
    assert half.rows + second.rows == whole.rows and "train/loss" in whole.rows[-1]
    for other in (first, resumed):
        (tensors, rest), (expected, expected_rest) = everything(other), everything(straight)
        assert tensors.keys() == expected.keys() and rest == expected_rest
        for key, value in tensors.items():
            assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("env_id", ["LLMAlign-v0", "CartPole-v1", "TabularBandit-v0"])
@pytest.mark.parametrize("name", AGENTS)
def test_resume_is_exact(name, env_id, tiny_folder, tmp_path):
    """Nothing is handed to load: environment and policy come from the checkpoint."""
    cls, config = AGENTS[name]

    def build():
        policy, env = None, env_id
        if env_id == "LLMAlign-v0":
            kwargs = {"prompts": ["w0 w1", "w2"], "tokenizer": tiny_folder, "max_new_tokens": 8}
            env = gym.make_vec(env_id, num_envs=16, reward={"type": "length", "low": 1, "high": 6}, **kwargs)
            policy = tiny_folder
        return cls(env, policy, config(**BUSY), seed=3)

    check_resume(build, cls, tmp_path / "saved")


@pytest.mark.parametrize("adapted", [True, False])
@pytest.mark.parametrize("name", AGENTS)
def test_resume_with_adapters_a_moving_reference_and_a_wrapper(name, adapted, tiny_env, tiny_policy, tmp_path):
    cls, config = AGENTS[name]
    moving = {"reference": "moving", "reference_every": 2, "reference_mix": 0.5}

    def env():
        return vector.NormalizeReward(tiny_env(16, reward=as_reward({"type": "length", "low": 1, "high": 6})))

    def build():
        return cls(env(), tiny_policy(lora=LoRA(rank=2) if adapted else None), config(**BUSY | moving), seed=3)

    check_resume(build, cls, tmp_path / "saved", env=env())


def gradient(agent, **changes):
    """The gradient of one minibatch of the next iteration and its metrics; the agent stays as it is."""
    original, before, generator = agent.config, weights(agent), agent.rng.bit_generator.state
    agent.config = dataclasses.replace(original, max_grad_norm=0.0, **changes)
    step, agent.optimizer.step = agent.optimizer.step, lambda *_: None
    _, metrics = agent.iterate()
    agent.config, agent.rng.bit_generator.state, agent.optimizer.step = original, generator, step
    assert unchanged(agent, before)
    return torch.cat([p.grad.flatten() for p in agent.parameters if p.grad is not None]), metrics


@pytest.mark.parametrize("name", AGENTS)
def test_the_gradient_depends_on_no_batching(make, name):
    agent = make(name, minibatch_size=0).learn(32)
    agent.policy.double()
    for parameter in agent.reference._frozen.parameters():
        parameter.data = parameter.data.double()
    episodes = agent.collect()
    agent.collect = lambda *_: episodes
    whole, metrics = gradient(agent)
    assert whole.norm() > 0
    for size in (1, 3):
        pieces, same = gradient(agent, micro_batch_size=size)
        assert (whole - pieces).norm() / whole.norm() < 2e-7
        assert same == pytest.approx(metrics, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", AGENTS)
def test_every_parameter_is_trained_and_updates_are_counted(make, name):
    agent = make(name, epochs=3, minibatch_size=4)
    before = weights(agent)
    agent.learn(16)
    assert agent.policy.version == {"dpo": 3, "rwr": 12}[name]  # 4 pairs; 16 episodes
    for key, value in agent.policy.state_dict().items():
        assert not torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", AGENTS)
def test_equal_seeds_are_bit_equal_and_others_differ(make, name):
    generator = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    one, two, other = (make(name, seed=s, epochs=2, minibatch_size=3).learn(N) for s in (3, 3, 4))
    assert unchanged(one, weights(two)) and not unchanged(other, weights(two))
    assert torch.equal(torch.get_rng_state(), generator[0]), "the global generator was used"
    assert np.random.get_state()[1].tolist() == generator[1]  # noqa: NPY002


@pytest.mark.parametrize("name", AGENTS)
def test_learning_rate_warms_up(make, name):
    agent, logged = make(name, warmup_iterations=4), Logged()
    agent.learn(16 * 5, logged)
    rates = [row["train/learning_rate"] for row in logged.rows]
    assert rates == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3])


def some_fail(completions, **_):
    return [None if len(c.split()) % 2 == 0 else len(set(c.split())) + 0.3 * c.count("w1") for c in completions]


@pytest.mark.parametrize("name", AGENTS)
def test_invalid_rows_are_counted_and_otherwise_left_out(make, name):
    agent, seen = make(name, env={"reward": some_fail}), []
    score = agent.policy.log_likelihood
    agent.policy.log_likelihood = lambda episodes, noise: seen.append(episodes) or score(episodes, noise)
    logged = Logged()
    agent.learn(16, logged)
    assert 0 < logged.rows[0]["rollout/invalid_fraction"] < 1 and all(e.valid.all() for e in seen) and seen
    assert all(math.isfinite(v) for v in logged.rows[0].values())


@pytest.mark.parametrize("name", AGENTS)
def test_nothing_valid_means_no_update_and_no_crash(make, name, tmp_path):
    agent = make(name, env={"reward": lambda completions, **_: [None] * len(completions)}, folder=tmp_path)
    before, logged = weights(agent), Logged()
    agent.learn(32, logged)
    assert unchanged(agent, before) and agent.episodes == 32 and agent.policy.version == 0
    assert not any(math.isnan(v) for v in logged.rows[0].values()) and "train/loss" not in logged.rows[0]


@pytest.mark.parametrize("name", AGENTS)
def test_a_gradient_that_is_not_finite_stops_before_any_change(make, name):
    agent = make(name)
    with torch.no_grad():
        next(iter(agent.policy.parameters()))[3] = math.inf
    episodes = make(name).collect()
    agent.collect = lambda *_: episodes
    before = {k: v.nan_to_num() for k, v in weights(agent).items()}
    with pytest.raises(FloatingPointError, match=r"gradient norm is .*nothing was updated"):
        agent.iterate()
    assert all(torch.equal(v.nan_to_num(), before[k]) for k, v in agent.policy.state_dict().items())
    assert agent.policy.version == 0


@pytest.mark.parametrize("name", AGENTS)
def test_truncated_sampling_is_refused_and_temperature_is_not(make, name):
    for changes in ({"top_k": 5}, {"top_p": 0.9}):
        with pytest.raises(ValueError, match="cannot train with"):
            make(name, policy={"sampling": Sampling(**changes)})
    make(name, policy={"sampling": Sampling(temperature=0.7)}).learn(16)


@pytest.mark.parametrize("name", AGENTS)
def test_divergence_from_the_reference(make, name):
    agent = make(name, learning_rate=1e-2)
    assert abs(agent.evaluate(episodes=16).kl) < 1e-5
    agent.learn(N)
    agent.config = dataclasses.replace(agent.config, micro_batch_size=5)
    assert agent.evaluate(episodes=64).kl > 0.05
    free = make(name, reference="none").learn(16)
    assert free.reference.tensors() == {} and free.divergences(free.collect()) is None


@pytest.mark.parametrize("name", AGENTS)
def test_control_takes_the_same_loop(name):
    """Episodes of different lengths, every observation recorded, continuous actions."""
    env = gym.make_vec("Pendulum-v1", num_envs=4, vectorization_mode="sync", max_episode_steps=5)
    cls, config = AGENTS[name]
    agent = cls(env, None, config(**COMMON), seed=1)
    assert isinstance(agent.policy, ControlPolicy)
    before = weights(agent)
    agent.learn(32)
    assert not unchanged(agent, before)


def test_padding_is_cut_and_nothing_else(make):
    episodes = make("rwr").collect()
    short = episodes.lengths == episodes.lengths.min()
    part = without_padding(episodes.select(short))
    assert part.mask.shape[1] == episodes.lengths.min() < episodes.mask.shape[1]
    assert torch.equal(part.mask.sum(1), episodes.lengths[short])
    policy = make("rwr").policy
    torch.testing.assert_close(
        policy.log_likelihood(part), policy.log_likelihood(episodes.select(short)), atol=1e-5, rtol=0
    )


def test_likelihood_is_the_sum_of_the_decisions(make):
    agent = make("rwr")
    episodes = agent.collect()
    torch.testing.assert_close(agent.policy.log_likelihood(episodes), episodes.log_probs.sum(1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("cls", [DPOConfig, RWRConfig])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes_per_iteration": 10, "group_size": 4}, "episodes_per_iteration=10"),
        ({"epochs": 0}, "epochs=0"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
        ({"minibatch_size": -1}, "minibatch_size=-1"),
        ({"micro_batch_size": -1}, "micro_batch_size=-1"),
        ({"max_grad_norm": -1.0}, "max_grad_norm=-1.0"),
        ({"reference_mix": 1.5}, "reference_mix=1.5"),
        ({"reference_every": 0}, "reference_every=0"),
        ({"reference": "soup"}, "soup needs folders"),
        ({"reference": "first"}, "reference='first'"),
    ],
)
def test_bad_configs_are_one_sentence(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**options)


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (DPOConfig, {"group_size": 1}, "a pair is two episodes"),
        (DPOConfig, {"beta": 0.0}, "beta=0"),
        (DPOConfig, {"loss": "hinge"}, "loss='hinge'"),
        (DPOConfig, {"label_smoothing": 0.5}, "label_smoothing=0.5"),
        (DPOConfig, {"sample_from": "reference", "reference": "none"}, "needs a reference"),
        (DPOConfig, {"sample_from": "file"}, "sample_from='file'"),
        (RWRConfig, {"reward_temperature": 0.0}, "reward_temperature=0.0"),
        (RWRConfig, {"weight_clip": -1.0}, "weight_clip=-1.0"),
        (RWRConfig, {"weights_over": "group", "group_size": 1}, "compares a group"),
        (RWRConfig, {"weights_over": "rows"}, "weights_over='rows'"),
    ],
)
def test_bad_configs_of_one_algorithm(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**options)


@pytest.mark.parametrize("cls", [DPOConfig, RWRConfig])
def test_configs_are_json_and_documented(cls):
    config = cls(adam_betas=(0.8, 0.9), reference="soup", reference_soup=("a", "b"))
    assert cls.from_dict(config.to_dict()) == config
    documented = cls.__doc__ + GradientConfig.__doc__
    for field in dataclasses.fields(cls):
        assert f"        {field.name}: " in documented, f"{field.name} has no sentence"


@pytest.mark.parametrize("name", AGENTS)
def test_the_command_line_trains_and_resumes(name, tmp_path, capsys):
    assert agent_class(name) is AGENTS[name][0]
    args = ["TabularBandit-v0", "--agent", name, "--eval-episodes", "8", "--threads", "1", "--group-size", "4"]
    run = ["--episodes-per-iteration", "16", "--out", str(tmp_path / "run")]
    assert main(["train", *args, *run, "--episodes", "32"]) == 0
    assert main(["train", "TabularBandit-v0", "--resume", str(tmp_path / "run"), "--episodes", "48"]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--episodes", "8"]) == 0
    assert capsys.readouterr().out


def test_tables_can_be_read_from_both_sides():
    """A policy with a critic has likelihoods too; the critic is left alone."""
    agent = DPO("TabularBandit-v0", TabularPolicy(4, 8, value=True), DPOConfig(**COMMON)).learn(16)
    assert (agent.policy.values == 0).all() and (agent.policy.logits != 0).any()


@pytest.mark.parametrize("name", AGENTS)
def test_a_moving_reference_follows_every_so_many_iterations(name):
    cls, config = AGENTS[name]
    options = COMMON | {"reference": "moving", "reference_every": 2}
    agent = cls("TabularBandit-v0", TabularPolicy(4, 8, value=False), config(**options))
    for iteration in range(1, 4):
        before = agent.reference.tensors()["logits"].clone()
        agent.learn(16)
        moved = agent.reference.tensors()["logits"]
        assert (
            torch.equal(moved, agent.policy.logits if iteration == 2 else before) and (agent.policy.logits != 0).any()
        )
