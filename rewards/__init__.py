"""Rewards: what is good. Importing this package loads numpy only; lexicons and models are loaded on first use."""

from .algebra import Clip, Gate, LogSigmoid, Product, Schedule, Sum, gate, schedule
from .answer import AnswerReward
from .boxes import VisionR1
from .choice import Choice
from .frechet import frechet_distance
from .function import FunctionReward, call_with_timeout
from .image import Colourfulness, Compressibility, ImageReward, Incompressibility, Symmetry
from .image_classifier import ImageClassifier
from .image_models import Aesthetic, ClipScore, PickScore
from .image_quality import ImageQuality
from .isolate import Isolated
from .jigsaw import Jigsaw
from .judge import JudgeReward
from .match import ExactMatch, Format, MathAnswer, Regex
from .models import SequenceClassifierReward
from .normalize import Normalize, group_z_scores
from .ocr import Ocr
from .points import AdaptiveExploration, PointDistance, PointFormat, PointInBox
from .references import Bleu, Rouge
from .registry import as_reward, from_dict, register_reward, reward_names
from .reward import Completion, Reward, RewardScores, SampleReward, Text, text_of
from .text import Length, Repetition, Sentiment, SentimentDensity, story_sentiment
from .trl import TrlReward, to_trl

__all__ = [
    "AdaptiveExploration",
    "Aesthetic",
    "AnswerReward",
    "Bleu",
    "Choice",
    "Clip",
    "ClipScore",
    "Colourfulness",
    "Completion",
    "Compressibility",
    "ExactMatch",
    "Format",
    "FunctionReward",
    "Gate",
    "ImageClassifier",
    "ImageQuality",
    "ImageReward",
    "Incompressibility",
    "Isolated",
    "Jigsaw",
    "JudgeReward",
    "Length",
    "LogSigmoid",
    "MathAnswer",
    "Normalize",
    "Ocr",
    "PickScore",
    "PointDistance",
    "PointFormat",
    "PointInBox",
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
    "Symmetry",
    "Text",
    "TrlReward",
    "VisionR1",
    "as_reward",
    "call_with_timeout",
    "frechet_distance",
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
