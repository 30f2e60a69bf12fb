"""Rewards: what is good. Importing this package loads numpy only; lexicons and models are loaded on first use."""

from .algebra import Clip, Gate, LogSigmoid, Product, Schedule, Sum, gate, schedule
from .function import FunctionReward, call_with_timeout
from .image import ImageReward
from .isolate import Isolated
from .judge import JudgeReward
from .match import ExactMatch, Format, MathAnswer, Regex
from .models import SequenceClassifierReward
from .normalize import Normalize, group_z_scores
from .references import Bleu, Rouge
from .registry import as_reward, from_dict, register_reward, reward_names
from .reward import Completion, Reward, RewardScores, SampleReward, Text, text_of
from .text import Length, Repetition, Sentiment, SentimentDensity, story_sentiment
from .trl import TrlReward, to_trl

__all__ = [
    "Bleu",
    "Clip",
    "Completion",
    "ExactMatch",
    "Format",
    "FunctionReward",
    "Gate",
    "ImageReward",
    "Isolated",
    "JudgeReward",
    "Length",
    "LogSigmoid",
    "MathAnswer",
    "Normalize",
    "Product",
    "Regex",
    "Repetition",
    "Reward",
    "RewardScores",
    "Rouge",
    "SampleReward",
    "Schedule",
    "Sentiment",
    "SentimentDensity",
    "SequenceClassifierReward",
    "Sum",
    "Text",
    "TrlReward",
    "as_reward",
    "call_with_timeout",
    "from_dict",
    "gate",
    "group_z_scores",
    "register_reward",
    "reward_names",
    "schedule",
    "story_sentiment",
    "text_of",
    "to_trl",
]
