"""Configurations: what is refused, in one sentence; frozen, keyword-only, JSON; every field documented."""

import dataclasses
import math

import pytest

import aligngym
from aligngym.agents.grpo import GRPOConfig
from aligngym.agents.ppo import PPOConfig


@pytest.mark.parametrize("cls", [PPOConfig, GRPOConfig])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes_per_iteration": 10, "group_size": 4}, "episodes_per_iteration=10"),
        ({"episodes_per_iteration": 0}, "episodes_per_iteration=0"),
        ({"group_size": 0}, "group_size=0"),
        ({"epochs": 0}, "epochs=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
        ({"reference_every": 0}, "reference_every=0"),
        ({"reference_mix": 1.5}, "reference_mix=1.5"),
        ({"kl_coef": -0.1}, "kl_coef=-0.1"),
        ({"clip_low": -0.1}, "clip_low=-0.1"),
        ({"clip_high": -0.1}, "clip_high=-0.1"),
        ({"dual_clip": 0.5}, "dual_clip=0.5"),
        ({"max_grad_norm": -1.0}, "max_grad_norm=-1.0"),
        ({"minibatch_size": -1}, "minibatch_size=-1"),
        ({"micro_batch_size": -1}, "micro_batch_size=-1"),
        ({"warmup_iterations": -1}, "warmup_iterations=-1"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"kl_coef": 0.1, "kl_in": "loss", "kl_estimator": "k1"}, "zero expected gradient"),
        ({"kl_coef": 0.1, "reference": "none"}, "needs a reference"),
        ({"reference": "soup"}, "soup needs folders"),
        ({"reference_soup": ("x",)}, "only soup takes them"),
        ({"ratio": "tokens"}, "ratio='tokens'.*token.*sequence.*normalized"),
        ({"aggregation": "mean"}, "aggregation='mean'"),
        ({"kl_in": "rewards"}, "kl_in='rewards'.*reward.*loss"),
        ({"kl_estimator": "k4"}, "kl_estimator='k4'"),
        ({"reference": "first"}, "reference='first'"),
        ({"old_log_probs": "record"}, "old_log_probs='record'"),
    ],
)
def test_bad_configs_are_one_sentence(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**options)


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (GRPOConfig, {"group_size": 1}, "compares a group"),
        (GRPOConfig, {"advantage": "z"}, "advantage='z'"),
        (GRPOConfig, {"epsilon": -1.0}, "epsilon=-1.0"),
        (PPOConfig, {"gamma": 1.5}, "gamma=1.5"),
        (PPOConfig, {"gae_lambda": -0.1}, "gae_lambda=-0.1"),
        (PPOConfig, {"value_clip": -1.0}, "value_clip=-1.0"),
        (PPOConfig, {"value_coef": -1.0}, "value_coef=-1.0"),
    ],
)
def test_bad_configs_of_one_algorithm(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**options)


@pytest.mark.parametrize("cls", [PPOConfig, GRPOConfig])
def test_configs_are_frozen_keyword_only_json(cls):
    config = cls(adam_betas=(0.8, 0.9), reference="soup", reference_soup=("a", "b"))
    assert cls.from_dict(config.to_dict()) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.epochs = 2
    with pytest.raises(TypeError):
        cls(64)
    with pytest.raises(ValueError, match=r"has no field.*'epoch'"):
        cls.from_dict({"epoch": 3})
    documented = cls.__doc__ + "".join(base.__doc__ or "" for base in cls.__mro__[1:-1])
    for field in dataclasses.fields(cls):
        assert f"        {field.name}: " in documented, f"{field.name} has no sentence"


@pytest.mark.parametrize("name", ["BC", "DPO", "GRPO", "IQL", "PEARL", "PEBBLE", "PPO", "RWR"])
def test_agents_and_their_configs_are_public_names(name):
    assert getattr(aligngym, name).config_class is getattr(aligngym, f"{name}Config")
    assert {name, f"{name}Config"} <= set(aligngym.__all__)
