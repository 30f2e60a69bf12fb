"""The agent around the loss: what it starts at, which pairs it learns from, the reference, and pairs in checkpoints."""

import json
import math

import gymnasium as gym
import pytest
import torch

from aligngym.agents.callbacks import Callback
from aligngym.agents.policies.control import TabularPolicy
from aligngym.agents.policies.policy import RowNoise
from aligngym.agents.preference.dpo import DPO, DPOConfig
from aligngym.agents.preference.pairs import Preferences, best_and_worst, text_preferences

COMMON = {"episodes_per_iteration": 16, "group_size": 4, "learning_rate": 1e-2}
TEXTS = [{"prompt": f"w{i}", "chosen": f"w1 w{i}", "rejected": f"w2 w{i} w3"} for i in range(13)]


class Logged(Callback):
    """What is logged, but for the clock."""

    def __init__(self):
        self.rows = []

    def on_iteration(self, agent, episodes, metrics):
        self.rows.append({k: v for k, v in metrics.items() if not k.startswith("time/")})
        return True


def bandit(pairs=None, seed=0, **options):
    return DPO(
        "TabularBandit-v0", TabularPolicy(4, 8, value=False), DPOConfig(**COMMON | options), pairs=pairs, seed=seed
    )


@pytest.fixture
def lm(tiny_env, tiny_policy):
    def build(pairs=None, seed=0, folder=None, **options):
        return DPO(tiny_env(16), tiny_policy(), DPOConfig(**COMMON | options), pairs=pairs, seed=seed, folder=folder)

    return build


def logged(agent, episodes):
    callback = Logged()
    agent.learn(episodes, callback)
    return callback.rows


@pytest.mark.parametrize("micro", [0, 1])
@pytest.mark.parametrize("env_id", ["LLMAlign-v0", "TabularBandit-v0", "CartPole-v1"])
def test_the_first_step_is_at_the_reference_exactly(env_id, micro, lm):
    options = COMMON | {"micro_batch_size": micro}
    agent = lm(**options) if env_id == "LLMAlign-v0" else DPO(env_id, config=DPOConfig(**options))
    first, second = logged(agent, 32)
    assert first["train/pairs"] == 4 and first["train/grad_norm"] > 0
    assert first["train/loss"] == pytest.approx(math.log(2), abs=1e-7)
    zero = ("margin", "accuracy", "chosen_log_likelihood", "rejected_log_likelihood")
    assert [first[f"train/{name}"] for name in zero] == [0.0] * 4
    assert second["train/margin"] != 0


def test_metrics_are_those_of_the_definition(lm):
    agent = lm(beta=0.3).learn(48)
    pairs = best_and_worst(agent.collect())
    with torch.no_grad(), agent.reference.policy(agent.policy) as reference:
        ratios = [
            agent.policy.log_likelihood(side) - reference.log_likelihood(side)
            for side in (pairs.chosen, pairs.rejected)
        ]
    margin = 0.3 * (ratios[0] - ratios[1])
    expected = {
        "loss": -torch.sigmoid(margin).log(), "margin": margin, "accuracy": (margin > 0).float(),
        "chosen_log_likelihood": ratios[0], "rejected_log_likelihood": ratios[1],
    }  # fmt: skip
    found = agent.compare(pairs)
    assert found == pytest.approx({k: v.mean().item() for k, v in expected.items()}, abs=1e-4)
    assert found["margin"] != 0 and agent.compare(pairs) == found
    swapped = agent.compare(Preferences(pairs.rejected, pairs.chosen))
    assert swapped["margin"] == pytest.approx(-found["margin"], abs=1e-4)


def test_without_reference_its_likelihood_counts_as_zero():
    agent = bandit(reference="none").learn(32)
    pairs = best_and_worst(agent.collect())
    found = agent.compare(pairs)
    assert found["chosen_log_likelihood"] == pytest.approx(agent.policy.log_likelihood(pairs.chosen).mean().item())
    assert found["chosen_log_likelihood"] < -1


def test_the_reference_is_frozen_and_trained_by_nothing(lm):
    agent = lm()
    before = {k: v.clone() for k, v in agent.reference.tensors().items()}
    agent.learn(32)
    after = agent.reference.tensors()
    assert all(torch.equal(v, before[k]) for k, v in after.items()) and len(after)
    with agent.reference.policy(agent.policy) as policy:
        assert policy is not agent.policy and all(p.grad is None for p in policy.parameters())


def test_the_noise_of_a_pair_is_the_same_in_all_four_likelihoods(lm):
    """Chosen and rejected, policy and reference get equal streams; other pairs and other steps get others."""
    agent, seen = lm(epochs=2), []
    with agent.reference.policy(agent.policy) as reference:
        for policy in (agent.policy, reference):
            original = type(policy).log_likelihood

            def spy(episodes, noise, policy=policy, original=original):
                assert isinstance(noise, RowNoise) and len(noise) == len(episodes)
                seen.append((noise.seeds, noise.uniform(1)[:, 0].tolist()))
                return original(policy, episodes, noise)

            policy.log_likelihood = spy
        agent.iterate()
    assert len(seen) == 4 and seen[0] == seen[1] and seen[2] == seen[3] and seen[0] != seen[2]
    for seeds, drawn in seen:
        assert seeds[:4] == seeds[4:] and len(set(seeds)) == 4 and drawn[:4] == drawn[4:]


def test_pairs_come_from_the_policy_or_from_the_reference():
    for source in ("policy", "reference"):
        agent = bandit(sample_from=source, learning_rate=0.5).learn(64)
        episodes, _ = agent.iterate()
        uniform = torch.full_like(episodes.log_probs, -math.log(8))
        assert torch.allclose(episodes.log_probs, uniform) == (source == "reference")
        assert episodes.version == (4 if source == "policy" else 0)


def test_equal_rewards_teach_nothing():
    env = gym.make_vec("TabularBandit-v0", num_envs=16, rewards=[[1.0] * 8] * 4)
    agent = DPO(env, TabularPolicy(4, 8, value=False), DPOConfig(**COMMON))
    rows = logged(agent, 32)
    assert (agent.policy.logits == 0).all() and agent.policy.version == 0
    assert [row["train/pairs"] for row in rows] == [0, 0] and "train/loss" not in rows[0]


def test_given_pairs_are_each_taken_once_a_pass(lm, tiny_env):
    pairs, seen = text_preferences(tiny_env(4), TEXTS), []
    agent = lm(pairs, episodes_per_iteration=8, learning_rate=1e-4)
    for _ in range(13):  # 13 iterations of 4 pairs are 4 passes over 13 pairs
        episodes, metrics = agent.iterate()
        agent.iteration += 1
        assert metrics["train/pairs"] == 4 and episodes.returns.tolist() == [1.0] * 4 + [0.0] * 4
        assert episodes.info["prompt"][:4] == episodes.info["prompt"][4:]
        seen += episodes.info["prompt"][:4]
    passes = [seen[i : i + 13] for i in range(0, 52, 13)]
    assert all(sorted(p) == sorted(row["prompt"] for row in TEXTS) for p in passes)
    assert passes[0] != passes[1]


def test_given_pairs_are_logged_without_nonsense(lm, tiny_env):
    rows = logged(lm(text_preferences(tiny_env(4), TEXTS), episodes_per_iteration=8), 16)
    assert rows[0]["rollout/invalid_fraction"] == 0 and rows[0]["rollout/equal_groups_fraction"] == 0
    assert math.isnan(rows[0]["rollout/entropy"]), "nobody knows what texts of a file were drawn from"
    assert not [k for k, v in rows[0].items() if math.isnan(v) and k != "rollout/entropy"]


def state_of(agent):
    return {k: v.clone() for k, v in agent.policy.state_dict().items()}, agent.rng.bit_generator.state


def check_same(one, two):
    (tensors, rest), (others, other_rest) = state_of(one), state_of(two)
    assert rest == other_rest and all(torch.equal(v, others[k]) for k, v in tensors.items())


def test_resume_with_pairs_is_exact(lm, tiny_env, tmp_path):
    pairs = text_preferences(tiny_env(4), TEXTS)
    options = {"episodes_per_iteration": 10, "group_size": 2, "epochs": 2, "minibatch_size": 2}
    straight, first = lm(pairs, **options).learn(60), lm(pairs, **options).learn(30)
    first.save(tmp_path / "saved")
    resumed = DPO.load(tmp_path / "saved", tiny_env(16), pairs=pairs)
    check_same(resumed.learn(30), straight)
    other = pairs.select(torch.arange(12))
    for given, message in ((None, "other pairs: pass those"), (other, "other pairs")):
        with pytest.raises(ValueError, match=message):
            DPO.load(tmp_path / "saved", tiny_env(16), pairs=given)
    lm(**options).save(tmp_path / "sampled")
    with pytest.raises(ValueError, match="no pairs"):
        DPO.load(tmp_path / "sampled", tiny_env(16), pairs=pairs)


def test_resume_with_a_file_of_pairs_needs_nothing_and_notices_changes(tiny_folder, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, TEXTS)))
    options = {"max_prompt_tokens": 4, "max_new_tokens": 8, "prompts": ["w1"], "reward": "repetition"}

    def build():
        env = gym.make_vec("LLMAlign-v0", num_envs=8, tokenizer=tiny_folder, **options)
        return DPO(env, tiny_folder, DPOConfig(**COMMON | {"pairs": str(file), "episodes_per_iteration": 8}))

    straight, first = build().learn(32), build().learn(16)
    first.save(tmp_path / "saved")
    check_same(DPO.load(tmp_path / "saved").learn(16), straight)
    file.write_text("\n".join(map(json.dumps, TEXTS[:5])))
    with pytest.raises(ValueError, match="other pairs"):
        DPO.load(tmp_path / "saved")


def test_pairs_are_given_once_and_not_empty(lm, tiny_env, tmp_path):
    pairs = text_preferences(tiny_env(4), TEXTS)
    (tmp_path / "pairs.jsonl").write_text(json.dumps(TEXTS[0]))
    config = DPOConfig(pairs=str(tmp_path / "pairs.jsonl"))
    with pytest.raises(ValueError, match="given twice"):
        DPO(tiny_env(16), lm().policy, config, pairs=pairs)
    with pytest.raises(ValueError, match="pairs is empty"):
        lm(pairs.select(torch.arange(0)))
    with pytest.raises(ValueError, match="has no tokenizer"):
        DPO("TabularBandit-v0", config=config)
