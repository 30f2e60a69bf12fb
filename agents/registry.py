"""The agents by name. Importing this loads none of them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .agent import Agent


@dataclass(frozen=True)
class Entry:
    """One line of the table.

    Attributes:
        target: ``module:class``, the module relative to this package.
        summary: what the agent is, in one line.
    """

    target: str
    summary: str


AGENTS = {
    "grpo": Entry(
        ".grpo:GRPO", "group-relative policy optimisation: several episodes of a prompt, judged against each other"
    ),
    "ppo": Entry(".ppo:PPO", "proximal policy optimisation with a critic"),
    "dpo": Entry(
        ".preference.dpo:DPO", "direct preference optimisation: pairs from a file, or the best and worst of a group"
    ),
    "rwr": Entry(".rwr:RWR", "reward-weighted regression: imitate one's own episodes, the better ones more"),
    "ddpo": Entry(".ddpo:DDPO", "denoising diffusion policy optimisation: against what a prompt has paid so far"),
    "dpok": Entry(".dpok:DPOK", "denoisers with a learned baseline and a divergence to the pretrained model"),
    "flow-grpo": Entry(".flow_grpo:FlowGRPO", "GRPO with the options of Flow-GRPO, for flow models"),
    "grpo-guard": Entry(".flow_grpo:GRPOGuard", "Flow-GRPO whose ratio is normalised over denoising steps"),
    "tempflow-grpo": Entry(
        ".tempflow_grpo:TempFlowGRPO", "Flow-GRPO whose groups branch at one step, which alone is credited"
    ),
    "aepo": Entry(
        ".aepo:AEPO", "several points an answer, paid for finding the target early: adaptive exploration for grounding"
    ),
    "iql": Entry(".iql:IQL", "implicit Q-learning on recorded episodes"),
    "pearl": Entry(".pearl:PEARL", "IQL on a reward learned from another task's preferences, by Gromov-Wasserstein"),
    "bc": Entry(".bc:BC", "behaviour cloning on recorded episodes"),
    "sac": Entry(".sb3:SAC", "Stable-Baselines3's soft actor-critic, for continuous control"),
    "sb3-ppo": Entry(".sb3:SB3PPO", "Stable-Baselines3's PPO, on segments of fixed length"),
    "pebble": Entry(".pebble:PEBBLE", "soft actor-critic on rewards learned from a teacher's preferences meanwhile"),
    "repo": Entry(".repo:RePo", "a world model that ignores what no reward depends on, and a policy imagined in it"),
    "repo-alignment": Entry(".repo_alignment:RePoAlignment", "RePo's encoder fitted to changed pictures, no rewards"),
    "q-learning": Entry(".q_learning:QLearning", "Q-learning in a table, on rewards that a teacher may design"),
    "reinforce": Entry(".reinforce:Reinforce", "policy gradient on episodes, on rewards that a teacher may design"),
    "parl": Entry(".parl:PARL", "PEBBLE whose rewards are fitted knowing that the policy will answer to them"),
    "self-evolving": Entry(
        ".self_evolving:SelfEvolving", "a population that shifts towards what paid, from an aligned start"
    ),
    "b2-diffurl": Entry(
        ".b2_diffurl:B2DiffuRL", "for sparse rewards: the last denoising steps first, the extremes of branches only"
    ),
}


def agent_class(name: str) -> type[Agent]:
    """The agent class of that name.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in AGENTS:
        raise ValueError(f"unknown agent {name!r}; there are: {', '.join(AGENTS)}")
    module, _, attribute = AGENTS[name].target.partition(":")
    return getattr(import_module(module, __package__), attribute)  # type: ignore[no-any-return]
