"""Wrappers: rewards changed, prompts chosen, episodes recorded and watched, pictures distracted.

Named and placed as Gymnasium does: the wrappers of one environment are here, those of a batch under the same names in
:mod:`aligngym.wrappers.vector`. What is drawn in a simulator (:class:`DistractingBackground`) is changed in each one by
itself: ``gym.make_vec(..., wrappers=[...])``.
"""

from . import vector
from .base import EpisodeRule, EpisodeWrapper, VectorEpisodeWrapper
from .designed_reward import DesignedReward
from .distraction import DistractingBackground
from .episodes import Episodes
from .length_penalty import LengthPenalty
from .normalize_reward import NormalizeReward
from .prompt_curriculum import PromptCurriculum, PromptStatistics
from .prompt_evolution import PromptEvolution
from .record_trajectories import RecordTrajectories
from .reward_monitor import RewardMonitor
from .transform_reward import TransformReward

__all__ = [
    "DesignedReward",
    "DistractingBackground",
    "EpisodeRule",
    "EpisodeWrapper",
    "Episodes",
    "LengthPenalty",
    "NormalizeReward",
    "PromptCurriculum",
    "PromptEvolution",
    "PromptStatistics",
    "RecordTrajectories",
    "RewardMonitor",
    "TransformReward",
    "VectorEpisodeWrapper",
    "vector",
]
