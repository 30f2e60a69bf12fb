"""Options of Stable-Baselines3's agents."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .agent import AgentConfig


@dataclass(frozen=True, kw_only=True)
class SB3Config(AgentConfig):
    """Options that both algorithms have; names and defaults are Stable-Baselines3's.

    Attributes:
        num_envs: environments side by side where they are made from an id: 1, 2, 4, 8 or 16.
        learning_rate: of Adam, for all networks; constant. 1e-4 to 1e-3.
        gamma: discount. 0.9 to 0.999.
        net_arch: widths of the hidden layers of actor and critic. None: (256, 256) for SAC, (64, 64) for PPO, none on
            top of PPO's convolutions.
    """

    num_envs: int = 1
    learning_rate: float = 3e-4
    gamma: float = 0.99
    net_arch: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(["num_envs"], (1, 2, 4, 8, 16).__contains__, "1, 2, 4, 8 or 16")
        self.require(["learning_rate"], lambda v: 0 < v < math.inf, "above 0")
        self.require(["gamma"], lambda v: 0 <= v <= 1, "in [0, 1]")
        self.require(["net_arch"], lambda v: v is None or all(w >= 1 for w in v), "None or widths of at least 1")

    @property
    def rows(self) -> int:
        """Environments side by side in training."""
        return self.num_envs


@dataclass(frozen=True, kw_only=True)
class SACConfig(SB3Config):
    """Options of soft actor-critic; names and defaults are Stable-Baselines3's.

    Attributes:
        steps_per_iteration: environment steps, of all rows together, between two entries of the log; whatever it is,
            training is the same.
        buffer_size: transitions kept for replay.
        learning_starts: steps of uniformly random actions before the first update.
        batch_size: transitions of an update. 64 to 1024.
        tau: share of the critics in each update of the target networks. 0.001 to 0.05.
        train_freq: steps of each row between two rounds of updates.
        gradient_steps: updates of a round; -1: as many as steps were taken in it.
        ent_coef: weight of the entropy: a number, "auto" to learn it, "auto_0.1" to learn it from 0.1 on.
        target_update_interval: updates between two updates of the target networks.
        target_entropy: entropy that is aimed at where its weight is learned, in nats; "auto": minus the number of
            action dimensions.
    """

    steps_per_iteration: int = 1000
    buffer_size: int = 1_000_000
    learning_starts: int = 100
    batch_size: int = 256
    tau: float = 0.005
    train_freq: int = 1
    gradient_steps: int = 1
    ent_coef: float | str = "auto"
    target_update_interval: int = 1
    target_entropy: float | str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        positive = ("steps_per_iteration", "buffer_size", "batch_size", "train_freq", "target_update_interval")
        self.require(positive, lambda v: v >= 1, "at least 1")
        self.require(["learning_starts"], lambda v: v >= 0, "at least 0")
        self.require(["tau"], lambda v: 0 < v <= 1, "in (0, 1]")
        self.require(["gradient_steps"], lambda v: v >= 1 or v == -1, "at least 1, or -1")
        self.require(["ent_coef"], _is_entropy_weight, 'a number that is not negative, "auto", or "auto_0.1"')
        self.require(["target_entropy"], lambda v: v == "auto" or _number(v) is not None, 'a number or "auto"')


@dataclass(frozen=True, kw_only=True)
class SB3PPOConfig(SB3Config):
    """Options of proximal policy optimisation; names and defaults are Stable-Baselines3's.

    Attributes:
        n_steps: steps of each row between two rounds of updates.
        batch_size: transitions of an update. 32 to 4096.
        n_epochs: passes over the collected steps.
        gae_lambda: 1: Monte-Carlo return less the value; 0: one-step error. 0.9 to 1.
        clip_range: the ratio is clipped to 1 plus and minus this. 0.1 to 0.3.
        clip_range_vf: how far the critic moves from its old value in the loss; None: no limit.
        normalize_advantage: advantages of a batch have mean 0 and standard deviation 1.
        ent_coef: weight of an entropy bonus. 0 to 0.01.
        vf_coef: weight of the critic's loss.
        max_grad_norm: gradients are scaled down to this norm.
        target_kl: an iteration's updates stop where the divergence of the updated policy exceeds one and a half times
            this, in nats; None: no limit.
    """

    n_steps: int = 2048
    batch_size: int = 64
    n_epochs: int = 10
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    clip_range_vf: float | None = None
    normalize_advantage: bool = True
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    target_kl: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(["n_steps", "n_epochs"], lambda v: v >= 1, "at least 1")
        self.require(["batch_size"], lambda v: v >= (2 if self.normalize_advantage else 1), "at least 2")
        self.require(["gae_lambda"], lambda v: 0 <= v <= 1, "in [0, 1]")
        self.require(["clip_range", "max_grad_norm"], lambda v: v > 0, "above 0")
        self.require(["clip_range_vf", "target_kl"], lambda v: v is None or v > 0, "None or above 0")
        self.require(["ent_coef", "vf_coef"], lambda v: v >= 0, "at least 0")


def _number(value: float | str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _is_entropy_weight(value: float | str) -> bool:
    number = _number(value)
    if number is None and isinstance(value, str):
        start = _number(value.removeprefix("auto_"))
        return value == "auto" or (value.startswith("auto_") and start is not None and start > 0)
    return number is not None and number >= 0
