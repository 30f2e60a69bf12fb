"""The reward of choices between a rule and pay."""

import math

import pytest

from aligngym.envs.society.tipping import AlignmentTippingEnv
from aligngym.envs.society.words import rule_prompts, scenario_numbers
from aligngym.rewards import as_reward

COLUMNS = {"aligned": ["mill"] * 3, "deviating": ["wholesaler"] * 3, "low": [0.8] * 3, "high": [1.0] * 3}
ANSWERS = ['{"choice": "mill"}', "The wholesaler.", "mill or wholesaler"]


@pytest.mark.parametrize(("by", "expected"), [("alignment", [1.0, 0.1, 0.0]), ("pay", [0.8, 1.0, 0.0])])
def test_worth_of_choices(by, expected):
    scores = as_reward({"type": "choice", "by": by}).score(ANSWERS, ["?"] * 3, **COLUMNS)
    assert scores.values.tolist() == expected
    assert scores.terms["violation"].tolist() == [0, 1, 0] and scores.terms["unparsed"].tolist() == [0, 0, 1]


def test_missing_columns_and_numbers():
    with pytest.raises(ValueError, match="'deviating'"):
        as_reward("choice").score(ANSWERS, ["?"] * 3, aligned=["mill"] * 3)
    with pytest.raises(ValueError, match="by is 'fun'"):
        as_reward({"type": "choice", "by": "fun"})
    scores = as_reward("choice").score([[1, 2]], ["?"], aligned=["a"], deviating=["b"])
    assert math.isnan(scores.values[0]) and "in words" in scores.reasons[0]


def test_prompts_are_the_first_texts_of_the_environment():
    env = AlignmentTippingEnv("text")
    for number, row in zip(scenario_numbers("all"), rule_prompts("all"), strict=True):
        assert env.reset(options={"situation": number})[0] == row["prompt"]


@pytest.mark.parametrize("split", ["train", "eval"])
def test_prompts_of_rules_have_the_columns(split):
    rows = rule_prompts(split)
    assert len(rows) == {"train": 32, "eval": 16}[split]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    kept = [f'{{"choice": "{row["aligned"]}"}}' for row in rows]
    reward = as_reward({"type": "choice", "by": "pay"})
    scores = reward.score(kept, columns.pop("prompt"), **columns)
    assert scores.values.tolist() == columns["low"] and min(columns["low"]) == 0.25
    assert all(row["aligned"] in row["prompt"] and row["deviating"] in row["prompt"] for row in rows)
