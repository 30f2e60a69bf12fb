"""The wrappers of a batch of environments, under the names of those of one: ``vector.TransformReward(envs, ...)``."""

from .designed_reward import VectorDesignedReward as DesignedReward
from .length_penalty import VectorLengthPenalty as LengthPenalty
from .normalize_reward import VectorNormalizeReward as NormalizeReward
from .prompt_curriculum import VectorPromptCurriculum as PromptCurriculum
from .prompt_evolution import VectorPromptEvolution as PromptEvolution
from .record_trajectories import VectorRecordTrajectories as RecordTrajectories
from .reward_monitor import VectorRewardMonitor as RewardMonitor
from .transform_reward import VectorTransformReward as TransformReward

__all__ = [
    "DesignedReward",
    "LengthPenalty",
    "NormalizeReward",
    "PromptCurriculum",
    "PromptEvolution",
    "RecordTrajectories",
    "RewardMonitor",
    "TransformReward",
]
