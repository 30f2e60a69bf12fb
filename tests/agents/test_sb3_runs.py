"""Stable-Baselines3's agents from the command line, and that they learn."""

import warnings

import pytest
import torch

from aligngym.agents.checkpoint import load_checkpoint
from aligngym.agents.experiment import Experiment, train
from aligngym.agents.pebble import PEBBLE, PEBBLEConfig
from aligngym.agents.repo import RePo, RePoConfig
from aligngym.agents.sb3 import SAC, SB3PPO, SACConfig, SB3PPOConfig
from aligngym.cli import main

from .small_pebble import SMALL as PEBBLE_SMALL
from .small_sb3 import HOMES, SMALL, make_env
from .test_repo import SMALL as REPO

# The command line


@pytest.mark.parametrize("name", SMALL)
def test_the_command_line_trains_evaluates_and_resumes(name, tmp_path, capsys):
    common = ["--agent", name, "--eval-episodes", "2", "--seed", "2", "--num-envs", "2"]
    own = {k: v for k, v in SMALL[name][1].items() if k != "net_arch"}
    common += [x for k, v in own.items() for x in (f"--{k.replace('_', '-')}", str(v))] + ["--net-arch", "16", "16"]

    def run(*args):
        assert main(["train", HOMES[name], *args]) == 0
        return capsys.readouterr()

    done = run(*common, "--episodes", "192", "--eval-every", "96", "--out", str(tmp_path / "straight"))
    assert "192/192 steps" in done.err
    run(*common, "--episodes", "96", "--eval-every", "96", "--out", str(tmp_path / "halves"))
    run("--resume", str(tmp_path / "halves"), "--episodes", "192")
    one, two = (load_checkpoint(tmp_path / n / "last")[0] for n in ("straight", "halves"))
    for key, values in one.items():
        for k, v in values.items():
            assert torch.equal(v, two[key][k]), (key, k)
    assert main(["evaluate", str(tmp_path / "halves"), "--episodes", "2", "--samples", "0"]) == 0


def test_a_run_by_name_reports_steps(tmp_path):
    options = {"eval_episodes": 2, "out": str(tmp_path / "run"), "device": "cpu"}
    cls, small_options = SMALL["sac"]
    experiment = Experiment(env="Pendulum-v1", agent="sac", episodes=64, **options)
    report = train(experiment, cls.config_class(**small_options))
    assert (tmp_path / "run" / "last").is_dir() and "after" in str(report)


def test_a_run_stopped_before_its_first_checkpoint_starts_again(tmp_path, capsys):
    args = ["train", "Pendulum-v1", "--agent", "sac", "--learning-starts", "8", "--steps-per-iteration", "16"]
    args += ["--episodes", "16", "--eval-episodes", "2", "--net-arch", "8", "--out", str(tmp_path / "run")]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    assert main(args) == 0
    assert main(args) == 2 and "run is not empty" in capsys.readouterr().err


def lessons(agent, *steps):
    """Whether training that long warns."""
    found = []
    for count in steps:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            agent.learn(count)
        found.append([str(w.message) for w in caught if "nothing is learned" in str(w.message)])
    return found


def test_a_run_too_short_to_learn_says_so():
    few = {"steps_per_iteration": 8}
    sac = SAC("Pendulum-v1", config=SACConfig(learning_starts=16, net_arch=(8,), batch_size=4, **few))
    (short,), *others = lessons(sac, 16, 8)
    assert short.startswith("SAC learns from step 17 on, which these 16 steps do not reach")
    assert "lower learning_starts" in short and others == [[]] and sac.model._n_updates > 0
    repo = RePo("Pendulum-v1", config=RePoConfig(**REPO | {"learning_starts": 16} | few))
    assert [len(found) for found in lessons(repo, 8, 8)] == [1, 0] and repo.policy.version > 0
    options = PEBBLE_SMALL | {"learning_starts": 8, "unsupervised_steps": 16} | few
    pebble = PEBBLE(make_env("Pendulum-v1", max_episode_steps=8), config=PEBBLEConfig(**options))
    first, second, third = lessons(pebble, 8, 16, 8)
    assert len(first) == len(second) == 1 and not third and pebble.queries == 6
    assert "lower learning_starts or unsupervised_steps" in first[0]
    assert lessons(SB3PPO("CartPole-v1", config=SB3PPOConfig(n_steps=8, batch_size=4)), 1) == [[]]


# Learning


@pytest.mark.slow
def test_sac_swings_the_pendulum_up():
    """Of untrained policies the return is about -1200; of ones that hold the pendulum upright about -150."""
    config = SACConfig(learning_rate=1e-3, batch_size=128, net_arch=(64, 64))
    agent = SAC("Pendulum-v1", config=config, seed=0)
    before = agent.evaluate(episodes=10).mean
    agent.learn(5000)
    after = agent.evaluate(episodes=10).mean
    assert before < -900 and after > -350, (before, after)


@pytest.mark.slow
def test_ppo_balances_the_pole():
    config = SB3PPOConfig(num_envs=8, n_steps=32, batch_size=256, n_epochs=20, gae_lambda=0.8, gamma=0.98)
    agent = SB3PPO("CartPole-v1", config=config, seed=0)
    before = agent.evaluate(episodes=16, deterministic=False).mean
    agent.learn(40_000)
    after = agent.evaluate(episodes=16, deterministic=False).mean
    assert before < 100 and after > 400, (before, after)
