"""Agents whose prompts evolve: GRPO and DPO, exact resume, the policy as its own creator, no evolution."""

import numpy as np
import pytest
import torch

from aligngym.agents.grpo import GRPO, GRPOConfig
from aligngym.agents.preference.dpo import DPO, DPOConfig
from aligngym.agents.prompt_creator import EVOLUTIONS, PolicyCreator
from aligngym.wrappers import vector

OPTIONS = {"episodes_per_iteration": 16, "group_size": 4, "minibatch_size": 8, "learning_rate": 1e-3}
AGENTS = {"grpo": (GRPO, GRPOConfig(**OPTIONS)), "dpo": (DPO, DPOConfig(**OPTIONS))}
SWAP = {"type": "in_breadth", "families": [[f"w{i}" for i in range(13)]]}


@pytest.fixture
def build(tiny_env, tiny_policy):
    """``build(name, wrapper arguments)``: an agent; None as arguments: without the wrapper."""

    def make(name, evolution, policy=None):
        env, policy = tiny_env(16), policy or tiny_policy()
        if evolution is not None:
            evolution = dict(evolution)
            if evolution.get("creator") == "policy":
                evolution["creator"] = PolicyCreator(policy, env.unwrapped.tokenizer, ["{prompt}"], max_new_tokens=3)
            env = vector.PromptEvolution(env, **evolution)
        cls, config = AGENTS[name]
        return cls(env, policy, config, seed=3)

    return make


def weights(agent):
    return {name: value.clone() for name, value in agent.policy.state_dict().items()}


def assert_equal(one, two):
    for name, value in weights(one).items():
        assert torch.equal(value, weights(two)[name]), name
    assert one.rng.bit_generator.state == two.rng.bit_generator.state
    assert one.env.unwrapped.get_state() == two.env.unwrapped.get_state()


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize(
    "evolution", [{}, {"creator": lambda prompt, columns, rng: prompt, "share": 1.0, "replay": 0.0}]
)
def test_without_evolution_a_run_is_the_run_without_the_wrapper(build, name, evolution):
    plain, wrapped = build(name, None), build(name, {"every": 16, **evolution})
    for agent in (plain, wrapped):
        agent.learn(64)
    assert wrapped.env.generation == 4
    assert_equal(plain, wrapped)


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("creator", [SWAP, "policy"], ids=["words", "policy"])
def test_resume_is_exact(build, name, creator, tmp_path):
    evolution = {"creator": creator, "every": 32, "share": 1.0, "answers": 4}
    straight, first = build(name, evolution), build(name, evolution)
    straight.learn(128)
    first.learn(64)
    first.save(tmp_path)
    fresh = build(name, evolution)
    resumed = AGENTS[name][0].load(tmp_path, env=fresh.env, policy=fresh.policy)
    assert resumed.env.unwrapped.table.prompts != build(name, None).env.unwrapped.table.prompts
    resumed.learn(64)
    assert_equal(resumed, straight)
    assert resumed.env.history == straight.env.history and len(straight.env.history) == 4
    assert sum(point["evolved"] for point in straight.env.history) > 0


def test_evaluation_leaves_the_prompts_as_they_are(build):
    agent = build("grpo", {"creator": SWAP, "every": 16, "share": 1.0})
    agent.learn(32)
    before = agent.env.get_state()
    agent.evaluate(episodes=48)  # on the training environment, long enough for generations of its own
    assert agent.env.get_state() == before


def test_a_policy_writes_prompts_alone_as_among_others(tiny_env, tiny_policy):
    tokenizer = tiny_env(1).unwrapped.tokenizer
    creator = PolicyCreator(tiny_policy(), tokenizer, ["w1 {prompt}", "{prompt} w2 w3"], max_new_tokens=5)
    rows = [("w4", {"n": 1}), ("w5 w6 w7", {"n": 2}), ([{"role": "user", "content": "w8"}], {})]
    many = creator.many(rows, [np.random.default_rng(i) for i in range(3)])
    assert many == [creator(*row, np.random.default_rng(i)) for i, row in enumerate(rows)]
    assert isinstance(many[0], str) and many[0] and many[2][0]["content"] != "w8"
    assert many != creator.many(rows, [np.random.default_rng(i + 9) for i in range(3)])
    again = PolicyCreator(tiny_policy(), tokenizer, ["{prompt}"], max_new_tokens=3, continued=True)
    found = [again("w4 w5", {}, np.random.default_rng(i)) for i in range(9)]
    assert any(found) and all(text is None or text.startswith("w4 w5 w") for text in found)


def test_a_creator_follows_its_policy(tiny_env, tiny_policy):
    policy = tiny_policy()
    creator = PolicyCreator(policy, tiny_env(1).unwrapped.tokenizer, ["{prompt}"], max_new_tokens=1)
    env = vector.PromptEvolution(tiny_env(4), creator)
    assert env.creator.player.policy is policy
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()  # all tokens are equally likely now
    found = {creator("w1", {}, np.random.default_rng(i)) for i in range(60)}
    assert len(found) > 8 and None in found  # special tokens are no text


def test_unusable_creators(tiny_env, tiny_policy):
    assert len(EVOLUTIONS) == 6 and all(text.count("{prompt}") == 1 for text in EVOLUTIONS)
    for templates in ([], "{prompt}", ["no place"]):
        with pytest.raises(ValueError, match="templates is"):
            PolicyCreator(tiny_policy(), None, templates)
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        PolicyCreator(tiny_policy(), None, max_new_tokens=0)
