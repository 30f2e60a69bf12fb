"""Small versions of every environment, and a policy that plays any of them at random weights."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from aligngym.agents.policies.policy import Decision, Policy, sample_categorical
from aligngym.trajectories import Trajectories

torch.set_num_threads(1)

SMALL: dict[str, dict[str, Any]] = {
    "LLMAlign-v0": {
        "prompts": ["Once upon a time", "The cat sat.", "A dog ran home", "She said"],
        "max_prompt_tokens": 12,
        "max_new_tokens": 4,
    },
    "DiffusionAlign-v0": {
        "prompts": [{"prompt": "a dog", "kind": "animal"}, {"prompt": "un café", "kind": "drink"}],
        "shape": [3, 8, 12],
        "num_steps": 3,
        "max_prompt_bytes": 12,
    },
    "FlowAlign-v0": {
        "prompts": ["sun", "moon", "猫"],
        "shape": [3, 4, 4],
        "num_steps": 4,
        "reward": {"type": "sum", "terms": ["colourfulness", "symmetry"], "weights": [0.1, 1.0]},
        "max_prompt_bytes": 8,
    },
    # Hits are rare at random: distances tell answers apart.
    "GUIGrounding-v0": {"split": "validation", "max_points": 2, "reward": "point_distance"},
    "VisualJigsaw-v0": {"split": "validation", "height": 96, "width": 144},
    "TabularBandit-v0": {"noise_std": 0.3},
}


class RandomPolicy(Policy):
    """Random logits of the state; ``likely`` actions are drawn far more often, so that episodes end early too."""

    first_observation_only = True

    def __init__(self, env: Any, likely: tuple[int, ...] = ()) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        actions = int(env.single_action_space.n)
        self.states = max(actions, 64)
        self.table = torch.nn.Parameter(torch.randn(self.states, actions, generator=generator))
        self.bias = torch.zeros(actions)
        self.bias[list(likely)] = 6.0

    def logits(self, observation: Any) -> torch.Tensor:
        if not isinstance(observation, dict):
            return self.table[torch.as_tensor(observation)] + self.bias
        ids, mask = (torch.as_tensor(observation[key]) for key in ("input_ids", "attention_mask"))
        return (self.table[ids] * mask[..., None]).sum(1) + self.bias

    @torch.no_grad()
    def act(self, observation: Any, noise: Any, deterministic: bool = False) -> Decision:
        logits = self.logits(observation)
        actions = logits.argmax(-1) if deterministic else sample_categorical(logits, noise.uniform(1)[:, 0])
        return Decision(actions, logits.log_softmax(-1).gather(1, actions[:, None])[:, 0])

    def generate(
        self, observation: Any, noise: Any, *, max_steps: int, terminal_actions: Any = (), deterministic: bool = False
    ) -> Trajectories:
        first = observation
        batch = len(next(iter(observation.values())) if isinstance(observation, dict) else observation)
        running, terminated = torch.ones(batch, dtype=torch.bool), torch.zeros(batch, dtype=torch.bool)
        actions, log_probs, mask = [], [], []
        for _ in range(max_steps):
            if not running.any():
                break
            decision = self.act(observation, noise, deterministic)
            mask.append(running.clone())
            actions.append(decision.actions * running)
            log_probs.append(decision.log_probs * running)
            if isinstance(observation, dict):
                observation = {key: np.array(value) for key, value in observation.items()}
                rows = running.nonzero()[:, 0].numpy()
                ends = observation["attention_mask"].sum(1)[rows]
                observation["input_ids"][rows, ends] = decision.actions.numpy()[rows]
                observation["attention_mask"][rows, ends] = 1
            stopped = running & torch.isin(decision.actions, torch.tensor(list(terminal_actions)))
            terminated |= stopped
            running &= ~stopped
        columns = [torch.stack(column, 1) for column in (actions, log_probs, mask)]
        tensors = (
            {k: torch.as_tensor(v) for k, v in first.items()} if isinstance(first, dict) else torch.as_tensor(first)
        )
        return Trajectories(
            observations=tensors, actions=columns[0], log_probs=columns[1], mask=columns[2],
            rewards=torch.zeros(columns[1].shape), terminated=terminated, truncated=~terminated,
            valid=torch.ones(batch, dtype=torch.bool), group=torch.arange(batch),
        )  # fmt: skip


class RandomDenoiser(Policy):
    """Gaussian actions around what depends on the sample, the time and the prompt."""

    first_observation_only = True

    def __init__(self, env: Any) -> None:
        super().__init__()
        self.shape, self.num_steps = env.single_action_space.shape, env.unwrapped.max_steps

    def act(self, observation: Any, noise: Any, deterministic: bool = False) -> Decision:
        x, left, prompt = (torch.as_tensor(observation[k]) for k in ("sample", "timestep", "prompt"))
        told = (prompt.float().sum(1) / 1000 + left[:, 0]).view(-1, *[1] * len(self.shape))
        mean = 0.8 * x + 0.1 * told
        actions = mean if deterministic else mean + 0.5 * noise.normal(self.shape)
        return Decision(actions, -2 * (actions - mean).square().flatten(1).sum(1), {"mean": mean})

    def generate(
        self, observation: Any, noise: Any, *, max_steps: int, terminal_actions: Any = (), deterministic: bool = False
    ) -> Trajectories:
        first, decisions = {k: torch.as_tensor(v) for k, v in observation.items()}, []
        x = first
        for _ in range(max_steps):
            decisions.append(self.act(x, noise, deterministic))
            x = {**x, "sample": decisions[-1].actions, "timestep": x["timestep"] - 1}
        log_probs = torch.stack([d.log_probs for d in decisions], 1)
        mask = torch.ones(log_probs.shape, dtype=torch.bool)
        return Trajectories(
            observations=first, actions=torch.stack([d.actions for d in decisions], 1), log_probs=log_probs, mask=mask,
            rewards=torch.zeros(mask.shape), terminated=mask[:, 0], truncated=~mask[:, 0], valid=mask[:, 0],
            group=torch.arange(len(mask)), extras={"mean": torch.stack([d.extras["mean"] for d in decisions], 1)},
        )  # fmt: skip


class RandomAnswer(Policy):
    """Answers of one turn at random: points on a screenshot, orders of pieces; log-probabilities tell them apart."""

    first_observation_only = True

    def __init__(self, env: Any) -> None:
        super().__init__()
        self.space = env.single_action_space

    def act(self, observation: Any, noise: Any, deterministic: bool = False) -> Decision:
        shown = torch.as_tensor(next(iter(observation.values()))).flatten(1).float().mean(1) / 255
        uniform = noise.uniform(int(np.prod(self.space.shape))).float().unflatten(1, self.space.shape)
        if deterministic:
            uniform = torch.linspace(0, 1, uniform[0].numel()).expand(len(shown), -1).view(uniform.shape).flip(1)
        points = isinstance(self.space, gym.spaces.Box)
        return Decision(uniform if points else uniform.argsort(1) + 1, uniform.flatten(1).sum(1) + shown)

    def generate(
        self, observation: Any, noise: Any, *, max_steps: int, terminal_actions: Any = (), deterministic: bool = False
    ) -> Trajectories:
        decision = self.act(observation, noise, deterministic)
        mask = torch.ones(len(decision.actions), 1, dtype=torch.bool)
        return Trajectories(
            observations={k: torch.as_tensor(v) for k, v in observation.items()}, actions=decision.actions[:, None],
            log_probs=decision.log_probs[:, None], mask=mask, rewards=torch.zeros(mask.shape), terminated=mask[:, 0],
            truncated=~mask[:, 0], valid=mask[:, 0], group=torch.arange(len(mask)),
        )  # fmt: skip


@pytest.fixture
def small() -> Any:
    """``small(id, **changes)``: keyword arguments of a quick version of the environment."""
    return lambda env_id, **changes: {**SMALL[env_id], **changes}


@pytest.fixture
def random_policy() -> Any:
    """``random_policy(env, likely=())``: a policy for the environment's actions."""

    def make(env: Any, likely: tuple[int, ...] = ()) -> Policy:
        if isinstance(env.single_action_space, gym.spaces.Discrete):
            return RandomPolicy(env, likely)
        return RandomDenoiser(env) if "sample" in env.single_observation_space.spaces else RandomAnswer(env)

    return make


@pytest.fixture
def make_llm() -> Any:
    """``make_llm(num_envs, **changes)``: a small batched LLMAlign-v0."""

    def make(num_envs: int = 2, **changes: Any) -> Any:
        return gym.make_vec("LLMAlign-v0", num_envs=num_envs, **{**SMALL["LLMAlign-v0"], **changes})

    return make
