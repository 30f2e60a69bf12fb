"""Alignment problems as Gymnasium environments, alignment methods as agents that train on any of them.

Importing the package registers every environment id and loads nothing heavy: ``torch``, ``transformers`` and the
simulators are imported when a name or an environment that needs them is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .envs import register

if TYPE_CHECKING:
    from .agents.bc import BC, BCConfig
    from .agents.grpo import GRPO, GRPOConfig
    from .agents.iql import IQL, IQLConfig
    from .agents.pearl import PEARL, PEARLConfig
    from .agents.pebble import PEBBLE, PEBBLEConfig
    from .agents.policies.lm import LMPolicy
    from .agents.ppo import PPO, PPOConfig
    from .agents.preference.dpo import DPO, DPOConfig
    from .agents.rwr import RWR, RWRConfig
    from .rewards import Reward, as_reward
    from .trajectories import Trajectories

__version__ = "0.1.0"

__all__ = [
    "BC",
    "DPO",
    "GRPO",
    "IQL",
    "PEARL",
    "PEBBLE",
    "PPO",
    "RWR",
    "BCConfig",
    "DPOConfig",
    "GRPOConfig",
    "IQLConfig",
    "LMPolicy",
    "PEARLConfig",
    "PEBBLEConfig",
    "PPOConfig",
    "RWRConfig",
    "Reward",
    "Trajectories",
    "__version__",
    "as_reward",
]

_LAZY = {
    "BC": ".agents.bc",
    "BCConfig": ".agents.bc",
    "DPO": ".agents.preference.dpo",
    "DPOConfig": ".agents.preference.dpo",
    "GRPO": ".agents.grpo",
    "GRPOConfig": ".agents.grpo",
    "IQL": ".agents.iql",
    "IQLConfig": ".agents.iql",
    "LMPolicy": ".agents.policies.lm",
    "PEARL": ".agents.pearl",
    "PEARLConfig": ".agents.pearl",
    "PEBBLE": ".agents.pebble",
    "PEBBLEConfig": ".agents.pebble",
    "PPO": ".agents.ppo",
    "PPOConfig": ".agents.ppo",
    "RWR": ".agents.rwr",
    "RWRConfig": ".agents.rwr",
    "Reward": ".rewards",
    "Trajectories": ".trajectories",
    "as_reward": ".rewards",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name], __name__), name)
    return value


def __dir__() -> list[str]:
    """The public names, the lazy ones included."""
    return sorted(__all__)


register()
