"""The reward protocol: columns, the three outcomes, JSON, pickling, names."""

import json
import pickle
import subprocess
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest

import aligngym.rewards as rewards
from aligngym.rewards import Length, Regex, Reward, RewardScores, SampleReward, as_reward, from_dict, register_reward


@register_reward("test_reward_value")
@dataclass
class Value(SampleReward):
    """The number in a column; None does not apply, a word fails."""

    column: str = "value"
    name: str | None = field(default="value", kw_only=True)

    def required_columns(self):
        return (self.column,)

    def sample(self, text, row):
        return None if row[self.column] is None else float(row[self.column])


EXAMPLES = {
    "sum": lambda: 0.7 * rewards.Sentiment() - rewards.Repetition() + 1,
    "product": lambda: rewards.Sentiment() * Length(5, margin=3.0) * rewards.Bleu(),
    "gate": lambda: rewards.gate(Regex("a"), rewards.Sentiment(), 0.5, -1.0),
    "clip": lambda: rewards.Sentiment().clip(-0.5, 0.5),
    "log_sigmoid": lambda: rewards.Rouge().log_sigmoid("reference_reward"),
    "schedule": lambda: rewards.Sentiment().schedule([[0, 0.0], [100, 1.0]]),
    "normalize": lambda: rewards.Bleu().normalize("group", epsilon=0.1, update=False),
    "isolated": lambda: Regex("(a+)+b").isolated(2.0),
    "sentiment": lambda: rewards.Sentiment(window=12),
    "sentiment_density": rewards.SentimentDensity,
    "length": lambda: Length(3, 9, 2.0, "characters", name="short"),
    "repetition": lambda: rewards.Repetition((1, 4)),
    "story_sentiment": rewards.story_sentiment,
    "regex": lambda: Regex("x+", full=True),
    "format": lambda: rewards.Format(("a", "b")),
    "exact_match": lambda: rewards.ExactMatch("target", r"= (\d+)", ignore_case=True),
    "math": lambda: rewards.MathAnswer(timeout=1.5),
    "bleu": lambda: rewards.Bleu(smoothing="exp"),
    "rouge": lambda: rewards.Rouge("rouge2", "recall", stem=True),
    "classifier": lambda: rewards.SequenceClassifierReward("folder", label="good", output="probability"),
    "judge": lambda: rewards.JudgeReward("http://127.0.0.1:1/v1", "m", extra={"response_format": {"type": "text"}}),
    "compressibility": lambda: rewards.Compressibility(80),
    "incompressibility": rewards.Incompressibility,
    "colourfulness": rewards.Colourfulness,
    "symmetry": lambda: rewards.Symmetry("vertical", "correlation", 0.1),
    "ocr": lambda: rewards.Ocr("text", "column", contained=True, resolution=64, threads=2),
    "image_quality": lambda: rewards.ImageQuality("ssim", "references"),
    "clip_score": lambda: rewards.ClipScore("folder", scale=1.0, prefix="a "),
    "pick_score": lambda: rewards.PickScore("folder", processor="other", batch_size=2),
    "aesthetic": lambda: rewards.Aesthetic("folder", weights="head.pth", relu=True),
    "image_classifier": lambda: rewards.ImageClassifier("dog", "logit", batch_size=2),
    "point_in_box": rewards.PointInBox,
    "point_distance": lambda: rewards.PointDistance(name="gap"),
    "point_format": lambda: rewards.PointFormat(3),
    "adaptive_exploration": lambda: rewards.AdaptiveExploration(0.5, collinear_penalty=False, most=8),
    "vision_r1": lambda: rewards.VisionR1("progressive", 100, true_precision=True),
    "jigsaw": lambda: rewards.Jigsaw(partial=False, format_bonus=0.1, credit=0.3, repetition_penalty=0.0),
    "choice": lambda: rewards.Choice("pay"),
    "test_reward_value": lambda: Value("other", name="o"),
}


def test_every_builtin_reward_has_an_example_here():
    assert {name for name in rewards.reward_names() if not name.startswith("test_")} <= set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_json_and_pickle_round_trip(name):
    reward = EXAMPLES[name]()
    assert from_dict(json.loads(json.dumps(reward.to_dict()))) == reward
    assert Reward.from_dict(reward.to_dict()) == reward
    assert as_reward(reward.to_dict()) == reward
    assert pickle.loads(pickle.dumps(reward)) == reward
    assert repr(reward).startswith(type(reward).__name__)


NEED_A_MODEL = ("classifier", "judge", "clip_score", "pick_score", "aesthetic")


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in NEED_A_MODEL])
def test_no_samples_give_no_scores(name):
    keys = ("answer", "target", "references", "reference_reward", "value", "other", "box", "boxes", "order")
    keys += ("aligned", "deviating", "low", "high")
    columns = {key: [] for key in keys}
    scores = EXAMPLES[name]().score([], [], **columns)
    assert scores.values.shape == (0,) and scores.reasons == []


def test_three_outcomes_are_kept_apart():
    scores = Value().score(["a", "b", "c"], value=[2.5, None, "word"])
    np.testing.assert_array_equal(scores.values, [2.5, np.nan, np.nan])
    assert scores.reasons == [None, None, "ValueError: could not convert string to float: 'word'"]
    assert scores.failed.tolist() == [False, False, True]
    assert scores.scored.tolist() == [True, False, False]
    np.testing.assert_array_equal(scores.terms["value"], scores.values)
    listed = Value()(["a", "b", "c"], value=[2.5, None, "word"])
    assert listed[:2] == [2.5, None] and np.isnan(listed[2])


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_a_value_that_is_not_finite_fails(value):
    scores = Value().score(["a"], value=[value])
    assert np.isnan(scores.values[0]) and scores.reasons == [f"returned {float(value)}"]


def test_scores_check_themselves():
    assert RewardScores([np.inf]).reasons == ["the reward is infinite"]
    assert np.isnan(RewardScores([1.0], {}, ["late"]).values[0])
    with pytest.raises(ValueError, match=r"values has shape \(2,\), but there are 1 reasons"):
        RewardScores([1.0, 2.0], {}, [None])


def test_lengths_are_checked():
    with pytest.raises(ValueError, match="prompts has 1 entries, but there are 2 completions"):
        Value().score(["a", "b"], ["p"], value=[1, 2])
    with pytest.raises(ValueError, match="value has 3 entries, but there are 2 completions"):
        Value().score(["a", "b"], value=[1, 2, 3])
    with pytest.raises(ValueError, match="Value reads column 'value'; columns given: other"):
        Value().score(["a"], other=[1])
    with pytest.raises(ValueError, match="columns given: none"):
        Value().score(["a"])


def test_arguments_that_are_no_columns_reach_every_sample():
    assert Value()(["a", "b"], value=3) == [3.0, 3.0]
    assert Value()(["a", "b"], value=np.array([1, 2])) == [1.0, 2.0]
    assert Value()(["a", "b"], value=np.float32(0.5)) == [0.5, 0.5]


def test_chat_messages():
    chat = [
        {"role": "system", "content": "be xxx"},
        {"role": "assistant", "content": [{"type": "text", "text": "aa"}, {"type": "image"}]},
        {"role": "assistant", "content": None},
        {"content": "b"},
    ]
    assert rewards.text_of(chat) == "aa\n\nb"
    assert Regex("xxx")([chat]) == [0.0]
    for wrong in (3, b"bytes", ["text"], None):
        with pytest.raises(TypeError, match="a text must be a str or a list of chat messages"):
            rewards.text_of(wrong)


def test_registry_refuses():
    with pytest.raises(ValueError, match="reward 'length' is already registered"):
        register_reward("length", Length)
    with pytest.raises(ValueError, match="non-empty str, got ''"):
        register_reward("")(Length)
    with pytest.raises(ValueError, match="'module:attribute', got 'module'"):
        register_reward("test_reward_bad_path", "module")
    with pytest.raises(ValueError, match=r"unknown reward 'sentimant'; registered rewards: .*sentiment, "):
        as_reward("sentimant")
    with pytest.raises(ValueError, match="has no argument 'size'; allowed: high, low"):
        from_dict({"type": "length", "size": 3})
    with pytest.raises(ValueError, match="reward 'regex' cannot be built from"):
        as_reward("regex")
    with pytest.raises(ValueError, match="a reward dict needs a 'type', one of: adaptive_exploration, aesthetic"):
        from_dict({"kind": "length"})
    with pytest.raises(ValueError, match="unknown reward 'os:system'"):
        from_dict({"type": "os:system"})
    for wrong, given in ((3, "a int"), (Length, "the class Length"), (None, "a NoneType")):
        with pytest.raises(TypeError, match=f"got {given}"):
            as_reward(wrong)


def test_registered_builders_functions_and_paths():
    @register_reward("test_reward_builder")
    def build(scale=2.0):
        return scale * Value()

    @register_reward("test_reward_function")
    def count_a(completions, **_):
        return [text.count("a") for text in completions]

    register_reward("test_reward_lazy", "aligngym.rewards.text:Repetition")
    assert from_dict({"type": "test_reward_builder", "scale": 3.0})(["x"], value=[1]) == [3.0]
    assert as_reward("test_reward_lazy") == rewards.Repetition()
    function = as_reward("test_reward_function")
    assert function(["banana"]) == [3.0] and function.name == "test_reward_function"
    assert from_dict(json.loads(json.dumps(function.to_dict()))) == function

    register_reward("test_reward_no_reward", lambda: 3)
    with pytest.raises(ValueError, match="builder of reward 'test_reward_no_reward' returned a int"):
        as_reward("test_reward_no_reward")


def test_what_has_no_json_form_says_so():
    @dataclass
    class Unregistered(Value):
        pass

    with pytest.raises(ValueError, match="Unregistered has no JSON form because it is not registered"):
        Unregistered().to_dict()
    with pytest.raises(ValueError, match=r"Value.column holds a set, which has no JSON form"):
        Value({"a"}).to_dict()


def test_state_of_another_shape_is_refused():
    scheduled = Value().schedule([[0, 1.0]])
    with pytest.raises(ValueError, match="the state does not fit this Schedule"):
        scheduled.set_state({})
    with pytest.raises(ValueError, match="it holds \\[\\] and 3 parts, expected \\[\\] and 1 parts"):
        (2 * Value()).set_state({"parts": [{}, {}, {}]})
    assert Value().get_state() == {}
    Value().set_state({})


def test_import_is_light():
    code = (
        "import sys, aligngym.rewards; "
        "print([m for m in ('torch', 'transformers', 'vaderSentiment', 'sympy', 'sacrebleu', 'rouge_score') "
        "if m in sys.modules])"
    )
    path = {"PYTHONPATH": ":".join(sys.path), "PATH": ""}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=path).stdout == "[]\n"
