"""Denoising as a policy: the state is x_t, the action x_{t-1}, drawn from a Gaussian around the sampler's mean."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from ...trajectories import Trajectories
from .denoiser import Condition, Critic, Denoiser, denoiser_classes, load_denoiser
from .policy import Decision, Evaluation, Gaussian, Policy, RowNoise
from .samplers import DETERMINISTIC, SamplerName, SamplerTable, gaussian_log_prob, make_table, noised


class DenoiserPolicy(Policy):
    r"""Gaussian decisions :math:`x_{t-1} \sim N(a_k x_t + b_k\, out(x_t, t, c), S_k^2 I)`; see ``samplers.py``.

    With ``guidance`` :math:`w \neq 1` the output is :math:`u + w (c - u)` of the conditional and the unconditional
    network, in sampling and in scoring alike (classifier-free guidance, arXiv 2207.12598).

    ``deterministic`` decisions take the step of the ODE, the distribution's own deterministic sampler, rather than the
    mean of the noisy step; flow models are evaluated so.

    Args:
        denoiser: the network.
        num_steps: steps of an episode, as in the environment.
        sampler: see :func:`~aligngym.agents.policies.samplers.make_table`; None: ``ddim`` or ``flow_sde``, by kind.
        noise_level: of the sampler; None takes its default.
        stochastic_steps: the steps that draw noise; None: all.
        guidance: w, above 0; 1 costs half as much as any other.
        log_prob: ``sum`` over dimensions is the log-probability; ``mean`` over them reproduces the clip ranges of DDPO
            and Flow-GRPO (1e-4), whose ratio is the d-th root of the true one.
        value_head: a critic of state, time and prompt, for PPO and DPOK.
        autocast: run the network in bfloat16 where that is faster. Re-scored log-probabilities then agree to rounding
            only: use ``old_log_probs="recomputed"``.
        batch_size: rows a network evaluation without gradient, for memory alone.
        critic_seed: of the critic's initial weights.

    Raises:
        ValueError: for a number out of range, or a sampler that does not fit the network.
    """

    first_observation_only = True
    scores_apart = True
    gaussian = True

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        num_steps: int,
        sampler: SamplerName | None = None,
        noise_level: float | None = None,
        stochastic_steps: Collection[int] | None = None,
        guidance: float = 1.0,
        log_prob: Literal["sum", "mean"] = "sum",
        value_head: bool = False,
        autocast: bool = False,
        batch_size: int = 128,
        critic_seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in {"num_steps": num_steps, "batch_size": batch_size}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        if not guidance > 0:
            raise ValueError(f"guidance is {guidance}, expected a number above 0")
        if log_prob not in ("sum", "mean"):
            raise ValueError(f"log_prob is {log_prob!r}, expected 'sum' or 'mean'")
        self.denoiser, self.num_steps, self.guidance, self.log_prob = denoiser, num_steps, guidance, log_prob
        self.autocast, self.batch_size = autocast, batch_size
        self.grid = denoiser.grid(num_steps)
        self.set_sampler(
            sampler or ("ddim" if denoiser.kind == "diffusion" else "flow_sde"), noise_level, stochastic_steps
        )
        self.critic = Critic(denoiser.shape, critic_seed) if value_head else None
        self._encoded: dict[str, Condition] = {}

    def set_sampler(
        self, sampler: SamplerName, noise_level: float | None = None, stochastic_steps: Collection[int] | None = None
    ) -> None:
        """Sample and score by another table from now on; arguments as in the constructor."""
        steps = None if stochastic_steps is None else tuple(sorted(stochastic_steps))
        self.sampler, self.noise_level, self.stochastic_steps = sampler, noise_level, steps
        self.table = make_table(self.grid, self.denoiser.prediction, sampler, noise_level, steps)
        self._ode = make_table(self.grid, self.denoiser.prediction, DETERMINISTIC)
        # Over all steps of the sampler, whichever of them draw noise.
        std = make_table(self.grid, self.denoiser.prediction, sampler, noise_level).std
        self._noise_weight = std / std.mean().clamp(min=1e-12)

    @classmethod
    def from_pretrained(cls, name: str | Path, *, num_steps: int | None = None, **options: Any) -> DenoiserPolicy:
        """An embedded model (``emoji-diffusion``, ``emoji-flow``), a folder of that format, or a diffusers pipeline.

        Args:
            name: the model's name, a folder, or a hub name.
            num_steps: steps of an episode; None: 20 for diffusion, 10 for flow.
            **options: of the constructor.
        """
        denoiser = load_denoiser(name)
        steps = num_steps if num_steps is not None else {"diffusion": 20, "flow": 10}[denoiser.kind]
        return cls(denoiser, num_steps=steps, **options)

    @property
    def sampling(self) -> dict[str, Any]:
        """Sampler, noise level, stochastic steps, number of steps and guidance."""
        return {
            "sampler": self.sampler, "noise_level": self.noise_level, "guidance": self.guidance,
            "stochastic_steps": None if self.stochastic_steps is None else list(self.stochastic_steps),
            "num_steps": self.num_steps,
        }  # fmt: skip

    @property
    def divisor(self) -> float:
        """What sums over dimensions are divided by: 1, or their number where ``log_prob`` is ``mean``."""
        return float(math.prod(self.denoiser.shape)) if self.log_prob == "mean" else 1.0

    @property
    def deterministic_evaluation(self) -> bool:  # type: ignore[override]
        """Flow models are evaluated with the ODE that they were trained for."""
        return self.denoiser.kind == "flow"

    @property
    def has_critic(self) -> bool:
        return self.critic is not None

    @property
    def has_adapters(self) -> bool:
        return self.denoiser.has_adapters

    @contextmanager
    def adapters_off(self) -> Iterator[Policy]:
        """This policy around the initial network."""
        with self.denoiser.adapters_off():
            yield self

    @torch.no_grad()
    def act(self, observation: Any, noise: RowNoise, deterministic: bool = False) -> Decision:
        """One denoising step in every row; draws ``shape`` normal numbers a row unless the step is deterministic.

        Args:
            observation: ``sample [B, *shape]``, ``timestep [B, 1]`` steps still to take, ``prompt [B, L]`` bytes.
            noise: one stream a row.
            deterministic: take the ODE's step.

        Raises:
            ValueError: if an episode has more steps than this policy's sampler.
        """
        x = torch.as_tensor(observation["sample"], device=self.device)
        step = self.num_steps - torch.as_tensor(observation["timestep"]).reshape(-1)
        if not ((step >= 0) & (step < self.num_steps)).all():
            raise ValueError(
                f"timestep is {(self.num_steps - step).tolist()[:8]}, expected 1 to num_steps={self.num_steps}: "
                "give environment and policy the same num_steps"
            )
        table = self._ode if deterministic else self.table
        return self._decide(x, step.to(x.device), self._condition(observation["prompt"]), table, noise)

    @torch.no_grad()
    def generate(
        self,
        observation: Any,
        noise: RowNoise,
        *,
        max_steps: int,
        terminal_actions: Collection[int] = (),
        deterministic: bool = False,
    ) -> Trajectories:
        """Denoise every row to the end; ``extras`` hold each step's ``mean`` and ``std``.

        Raises:
            ValueError: if ``max_steps`` is not this policy's ``num_steps``.
        """
        if max_steps != self.num_steps:
            raise ValueError(
                f"the environment has num_steps={max_steps}, the policy num_steps={self.num_steps}: give both the same"
            )
        first = {k: torch.as_tensor(v, device=self.device) for k, v in observation.items()}
        x, condition = first["sample"], self._condition(observation["prompt"])
        table, decisions = self._ode if deterministic else self.table, []
        for k in range(max_steps):
            step = torch.full((len(x),), k, device=x.device)
            decisions.append(self._decide(x, step, condition, table, noise))
            x = decisions[-1].actions
        mask = torch.ones(len(x), max_steps, dtype=torch.bool, device=x.device)
        return Trajectories(
            observations=first,
            actions=torch.stack([d.actions for d in decisions], 1),
            log_probs=torch.stack([d.log_probs for d in decisions], 1),
            mask=mask,
            rewards=torch.zeros(mask.shape, device=x.device),
            terminated=mask[:, 0].clone(),
            truncated=~mask[:, 0],
            valid=mask[:, 0].clone(),
            group=torch.arange(len(x), device=x.device),
            sampling=self.sampling,
            version=self.version,
            extras={k: torch.stack([d.extras[k] for d in decisions], 1) for k in decisions[0].extras},
        )

    def evaluate_actions(self, trajectories: Trajectories, *, entropy: bool = False) -> Evaluation:
        """Score the decisions of the mask that drew noise, all in one batch; the others score 0.

        Raises:
            ValueError: if the episodes were sampled with other settings, or none of their decisions drew noise.
        """
        if trajectories.sampling != self.sampling:
            raise ValueError(
                f"episodes were sampled with {trajectories.sampling}, not with this policy's {self.sampling}"
            )
        mask = self.drawn(trajectories)
        if not mask.any():
            raise ValueError(
                f"no decision drew noise (sampler {self.sampler!r}, noise_level={self.noise_level}), so that none has "
                "a log-probability: sample with noise (ddim with noise_level > 0, flow_sde, dance_sde or cps), and "
                "not with deterministic=True"
            )
        rows, steps = mask.nonzero(as_tuple=True)
        states, std = self._states(trajectories), self.table.std.to(mask.device)[steps]
        condition = {k: v[rows] for k, v in self._condition(_observed(trajectories, "prompt")).items()}
        mean = self._mean(states[:, :-1][mask], steps, condition, self.table)
        log_probs = gaussian_log_prob(trajectories.actions[mask], mean, std, self.divisor)
        dimensions = math.prod(self.denoiser.shape) / self.divisor
        means = torch.zeros_like(trajectories.actions).masked_scatter(_expand(mask, trajectories.actions), mean)
        sizes = self.table.step_size
        return Evaluation(
            _scatter(log_probs, mask),
            _scatter(dimensions * (std.log() + 0.5 * math.log(2 * math.pi * math.e)), mask),
            self.state_values(trajectories),
            Gaussian(
                means,
                _scatter(std, mask),
                _scatter((self._noise_weight.to(mask.device))[steps], mask),
                None if sizes is None else _scatter(sizes.to(mask.device)[steps], mask),
                self.divisor,
            ),
        )

    def drawn(self, trajectories: Trajectories) -> Tensor:
        """``[B, T]`` bool, the decisions of a stochastic step."""
        return trajectories.mask & (trajectories.extras["std"] > 0)

    def state_values(self, trajectories: Trajectories) -> Tensor | None:
        """``[B, T + 1]`` value of every state; None without a critic."""
        if self.critic is None:
            return None
        states = self._states(trajectories)
        steps = torch.arange(states.shape[1], device=states.device).expand(states.shape[:2])
        prompts = [p for p in _texts(_observed(trajectories, "prompt")) for _ in range(states.shape[1])]
        values: Tensor = self.critic(states.flatten(0, 1), steps.flatten() / self.num_steps, prompts)
        return values.view(states.shape[:2])

    def log_likelihood(self, trajectories: Trajectories, noise: RowNoise | None = None) -> Tensor:
        r"""Minus the denoising error :math:`\mathrm{mean}_d (out - target)^2` of each final state, ``[B]``.

        One random step of the sampling grid and one noise a row, drawn from ``noise``: equal streams give equal steps
        and noises, as Diffusion-DPO needs for the winner and the loser, the policy and the reference. Guidance is off.

        Deviation: the level is one of the sampling grid's, not of all training levels.

        Raises:
            ValueError: without ``noise``.
        """
        if noise is None:
            raise ValueError(
                "noise is None, expected one stream a row: the likelihood of a denoiser is a random estimate"
            )
        step = (noise.uniform(1)[:, 0] * self.num_steps).long().to(self.device)
        e = noise.normal(self.denoiser.shape).to(self.device)
        last = (trajectories.lengths - 1).to(self.device)
        x_0 = trajectories.actions.to(self.device)[torch.arange(len(trajectories), device=self.device), last]
        level = _rows(self.grid.levels[:-1].to(self.device)[step], x_0)
        x_t, target = noised(x_0, e, level, self.denoiser.prediction)
        condition = self._condition(_observed(trajectories, "prompt"))
        out = self._network(x_t, self.grid.times.to(self.device)[step], condition)
        return -(out - target).square().flatten(1).mean(1)

    def spec(self) -> dict[str, Any]:
        network = self.denoiser
        return {
            "denoiser": {"class": f"{type(network).__module__}:{type(network).__qualname__}", "spec": network.spec()},
            **self.sampling, "log_prob": self.log_prob, "value_head": self.has_critic, "autocast": self.autocast,
            "batch_size": self.batch_size,
        }  # fmt: skip

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Self:
        """Rebuild the policy.

        Raises:
            ValueError: if the network is not one of this package's: pass the policy to ``load`` then.
        """
        options = dict(spec)
        network = options.pop("denoiser")
        classes = {f"{c.__module__}:{c.__qualname__}": c for c in denoiser_classes()}
        if network["class"] not in classes:
            raise ValueError(f"denoiser {network['class']!r} is not one of {sorted(classes)}: load(folder, policy=...)")
        return cls(classes[network["class"]].from_spec(network["spec"]), **options)

    def _decide(self, x: Tensor, step: Tensor, condition: Condition, table: SamplerTable, noise: RowNoise) -> Decision:
        mean = self._mean(x, step, condition, table)
        std = table.std.to(x.device)[step]
        if not (std > 0).any():
            return Decision(mean, torch.zeros_like(std), {"mean": mean, "std": std})
        actions = mean + _rows(std, mean) * noise.normal(self.denoiser.shape).to(mean)
        log_probs = torch.zeros_like(std)
        drawn = std > 0
        log_probs[drawn] = gaussian_log_prob(actions[drawn], mean[drawn], std[drawn], self.divisor)
        return Decision(actions, log_probs, {"mean": mean, "std": std})

    def _mean(self, x: Tensor, step: Tensor, condition: Condition, table: SamplerTable) -> Tensor:
        """The sampler's mean ``[N, *shape]`` at states ``x [N, *shape]`` of steps ``step [N]``."""
        if len(x) > self.batch_size and not torch.is_grad_enabled():
            pieces = _slices(len(x), self.batch_size)
            return torch.cat(
                [self._mean(x[i], step[i], {k: v[i] for k, v in condition.items()}, table) for i in pieces]
            )
        t = self.grid.times.to(x.device)[step]
        out = self._network(x, t, condition)
        if self.guidance != 1.0:
            empty = self._prompts([""])
            plain = self._network(x, t, {k: v.expand(len(x), *v.shape[1:]) for k, v in empty.items()})
            out = plain + self.guidance * (out - plain)
        scale, gain = (_rows(c.to(x.device)[step], x) for c in (table.scale, table.gain))
        return scale * x + gain * out

    def _network(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """One evaluation, padded to ``min_rows``, in float32 at its boundary."""
        count, least = len(x), self.denoiser.min_rows
        if 0 < count < least:
            index = torch.arange(least, device=x.device).clamp(max=count - 1)
            x, t, condition = x[index], t[index], {k: v[index] for k, v in condition.items()}
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
            out: Tensor = self.denoiser(x, t, condition)
        return out[:count].float()

    def _states(self, trajectories: Trajectories) -> Tensor:
        """``[B, T + 1, *shape]``: the first sample, then every action."""
        first = _observed(trajectories, "sample")
        return torch.cat([first[:, None].to(trajectories.actions), trajectories.actions], 1)

    def _condition(self, prompts: Any) -> Condition:
        """The condition of each row of UTF-8 bytes ``[B, L]``, padded with 0."""
        return self._prompts(_texts(prompts))

    def _prompts(self, texts: list[str]) -> Condition:
        """Conditions, encoded once a prompt: encoders do not train."""
        missing = [p for p in dict.fromkeys(texts) if p not in self._encoded]
        if len(self._encoded) + len(missing) > 4096:
            self._encoded.clear()
            missing = list(dict.fromkeys(texts))
        if missing:
            with torch.no_grad():
                encoded = self.denoiser.encode(missing)
            self._encoded |= {p: {k: v[i] for k, v in encoded.items()} for i, p in enumerate(missing)}
        found = [self._encoded[p] for p in texts]
        return {k: torch.stack([f[k] for f in found]).to(self.device) for k in found[0]}


def _texts(prompts: Any) -> list[str]:
    """Rows of UTF-8 bytes ``[B, L]``, padded with 0, as text."""
    rows = prompts.cpu().numpy() if isinstance(prompts, Tensor) else np.asarray(prompts)
    return [bytes(row).rstrip(b"\0").decode("utf-8") for row in rows.astype(np.uint8)]


def _observed(trajectories: Trajectories, key: str) -> Tensor:
    if not isinstance(trajectories.observations, dict):
        raise TypeError("observations are one tensor, but a denoiser reads sample, timestep and prompt of a dict")
    return trajectories.observations[key]


def _slices(count: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


def _rows(values: Tensor, like: Tensor) -> Tensor:
    """``values [N]`` shaped to multiply ``like [N, ...]``, in its dtype."""
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def _expand(mask: Tensor, like: Tensor) -> Tensor:
    return mask.view(*mask.shape, *[1] * (like.ndim - mask.ndim)).expand_as(like)


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    """``values [N]`` at the positions of ``mask [B, T]``, 0 elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)
