"""TransformReward, NormalizeReward and LengthPenalty: the numbers they give, worked out by hand."""

import gymnasium as gym
import numpy as np
import pytest

from aligngym.rewards import Length, Repetition, Sentiment, schedule
from aligngym.wrappers import (
    EpisodeRule,
    Episodes,
    LengthPenalty,
    NormalizeReward,
    TransformReward,
    VectorEpisodeWrapper,
    vector,
)

SEEDS = [1, 2, 3, 4]


def bandit(rewards=((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)), **kwargs):
    return gym.make("TabularBandit-v0", rewards=rewards, **kwargs)


def pull(env, prompt, arm):
    """Reward and info of one episode of a bandit."""
    env.reset(options={"prompt_index": prompt})
    _, reward, terminated, _, info = env.step(arm)
    assert terminated
    return reward, info


def finished(rewards, lengths=None, **info):
    count = len(rewards)
    actions = [np.zeros(n, int) for n in (lengths or [3] * count)]
    return Episodes(np.array(rewards, float), np.ones(count, bool), actions, {}, info)


# -- TransformReward ---------------------------------------------------------------------------------------------------
def test_reward_of_the_algebra_replaces_the_environments(make, play):
    composed = 0.7 * Sentiment() + 0.3 * (1.0 - Repetition())
    episodes = play(vector.TransformReward(make(), composed), SEEDS)
    expected = composed.score(episodes.info["completion"], episodes.info["prompt"])
    np.testing.assert_allclose(episodes.returns, expected.values, rtol=1e-6)
    np.testing.assert_allclose(episodes.terms["repetition"], expected.terms["repetition"], rtol=1e-6)


def test_reward_is_added_with_its_weight(make, play):
    plain = play(make(reward="sentiment"), SEEDS)
    episodes = play(
        vector.TransformReward(make(reward="sentiment"), Repetition(orders=(1,)), add=True, weight=-2.0), SEEDS
    )
    np.testing.assert_allclose(episodes.returns, plain.returns - 2.0 * episodes.terms["repetition"], rtol=1e-6)
    assert set(episodes.terms) == {"sentiment", "repetition"}


def test_columns_and_tokens_reach_the_reward(make, play):
    seen = {}

    def reads(prompts, completions, reference, level, completion_ids):
        seen.update(prompts=prompts, reference=reference, level=level, ids=completion_ids)
        return [float(k) for k in level]

    episodes = play(vector.TransformReward(make(), reads), SEEDS)
    assert episodes.returns.tolist() == seen["level"] and seen["prompts"] == episodes.info["prompt"]
    assert [len(ids) for ids in seen["ids"]] == episodes.lengths.tolist()
    with pytest.raises(ValueError, match="Rouge reads column 'references'"):
        play(vector.TransformReward(make(), "rouge"), SEEDS)


def test_chat_prompts_get_chat_completions(make, policy):
    seen = []

    def reads(prompts, completions, **columns):
        seen.extend(completions)
        return [1.0] * len(completions)

    template = "{{ messages[0]['content'] }}"
    chats = [[{"role": "user", "content": "Once upon a time"}]]
    env = vector.TransformReward(make(1, prompts=chats, chat_template=template), reads)
    env.reset(seed=0)
    while not seen:
        env.step(np.array([5]))
    assert seen[0][0]["role"] == "assistant" and isinstance(seen[0][0]["content"], str)


def test_function_of_the_number_maps_it():
    assert pull(TransformReward(bandit(), np.sqrt), 1, 0)[0] == 2.0
    assert pull(TransformReward(bandit(), lambda r: 10 * r, weight=0.5), 0, 1)[0] == 10.0
    assert pull(TransformReward(bandit(), abs, add=True), 0, 2)[0] == 6.0


@pytest.mark.parametrize("function", [lambda r: 1 / 0, lambda r: r.nothing, lambda r: np.inf, lambda r: "x"])
def test_function_that_fails_makes_the_episode_invalid(function):
    reward, info = pull(TransformReward(bandit(), function), 0, 0)
    assert np.isnan(reward) and isinstance(info["invalid"], str)


def test_failure_is_never_zero_and_a_replacement_heals(make, play):
    broken = make(reward=lambda completions, **_: [np.nan] * len(completions))
    assert not play(broken, SEEDS).valid.any()
    healed = play(vector.TransformReward(broken, "sentiment"), SEEDS)
    assert healed.valid.all() and healed.info["invalid"] == [None] * 4
    env = vector.TransformReward(broken, "sentiment")
    env.reset(seed=SEEDS)
    for _ in range(8):
        *_, infos = env.step(np.full(4, 16))
    assert "invalid" not in infos["final_info"] and "_invalid" not in infos["final_info"]
    added = play(vector.TransformReward(broken, "sentiment", add=True), SEEDS)
    assert not added.valid.any() and all(added.info["invalid"])


def test_reward_that_does_not_apply(make, play):
    absent = lambda completions, **_: [None] * len(completions)  # noqa: E731
    assert play(vector.TransformReward(make(), absent), SEEDS).info["invalid"] == ["the reward does not apply"] * 4
    env = make(reward="sentiment")
    added = play(vector.TransformReward(env, absent, add=True), SEEDS)
    np.testing.assert_array_equal(added.returns, play(make(reward="sentiment"), SEEDS).returns)


def test_schedule_follows_complete_batches(make, play, assert_same):
    def env():
        return vector.TransformReward(make(), schedule(Length(low=0), [(0, 1.0), (8, 3.0)]))

    stepped, whole = env(), env()
    for expected in (1.0, 2.0, 3.0, 3.0):
        episodes = play(whole, SEEDS)
        assert episodes.returns.tolist() == [expected] * 4
        assert_same(episodes, play(stepped, SEEDS, "step"))


def test_environment_without_text_is_scored_on_its_actions():
    env = TransformReward(
        bandit(), lambda completions, prompts: [c[0] + 10 * p for c, p in zip(completions, prompts, strict=True)]
    )
    assert pull(env, 1, 2)[0] == 12.0


def test_transform_refuses_what_it_cannot_use():
    with pytest.raises(ValueError, match="unknown reward 'sentimant'"):
        TransformReward(bandit(), "sentimant")
    with pytest.raises(ValueError, match="weight is nan"):
        TransformReward(bandit(), "sentiment", weight=np.nan)
    with pytest.raises(TypeError, match="must be a registered name"):
        TransformReward(bandit(), 3)


def test_dense_rewards_keep_their_sum():
    env = TransformReward(gym.make("CartPole-v1", max_episode_steps=7), lambda r: r / 7)
    env.reset(seed=0)
    rewards, done = [], False
    while not done:
        _, reward, terminated, truncated, _ = env.step(len(rewards) % 2)
        rewards.append(reward)
        done = terminated or truncated
    assert rewards == [1.0] * 6 + [pytest.approx(1 - 6)] and truncated


# -- NormalizeReward ---------------------------------------------------------------------------------------------------
def test_normalize_is_frozen_within_a_batch_and_counts_first_episodes_only(make, play):
    env = vector.NormalizeReward(make(reward="sentiment"))
    raw = [
        play(make(reward="sentiment"), seeds).returns.numpy() for seeds in ([1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12])
    ]
    assert np.array_equal(play(env, [1, 2, 3, 4], "step").returns, raw[0])
    np.testing.assert_allclose(
        play(env, [5, 6, 7, 8], "step").returns, (raw[1] - raw[0].mean()) / raw[0].std(), rtol=1e-5
    )
    both = np.concatenate(raw[:2])
    episodes = play(env, [9, 10, 11, 12])
    np.testing.assert_allclose(episodes.returns, (raw[2] - both.mean()) / both.std(), rtol=1e-5)
    np.testing.assert_array_equal(episodes.terms["unnormalized"], raw[2])
    assert env.count == 12


def test_normalize_options():
    env = NormalizeReward(bandit(), center=False, scale=True, clip=2.5)
    for arm in range(3):
        pull(env, 0, arm)
    assert env.mean == 2.0 and env.std == pytest.approx(np.sqrt(2 / 3))
    assert pull(env, 0, 0)[0] == pytest.approx(1 / np.sqrt(2 / 3)) and pull(env, 1, 2)[0] == 2.5
    env.update_statistics, count = False, env.count
    pull(env, 0, 0)
    assert env.count == count
    assert pull(NormalizeReward(bandit(), scale=False), 0, 0)[0] == 1.0


def test_normalize_leaves_failures_out_and_equal_rewards_alone():
    env = NormalizeReward(TransformReward(bandit(), lambda r: np.nan if r > 5 else r))
    assert np.isnan(pull(env, 1, 2)[0]) and env.count == 0
    for _ in range(3):
        pull(env, 0, 0)
    assert env.std == 1.0 and pull(env, 0, 0)[0] == 0.0 and env.count == 4


@pytest.mark.parametrize("bad", [{"epsilon": 0.0}, {"clip": -1.0}])
def test_normalize_refuses(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} is"):
        NormalizeReward(bandit(), **bad)


# -- LengthPenalty -----------------------------------------------------------------------------------------------------
def test_dapo_soft_overlong_punishment():
    env = LengthPenalty(bandit(), overlong_buffer=4, max_length=10, overlong_factor=0.5)
    lengths = np.array([1, 6, 7, 8, 10, 12])
    np.testing.assert_allclose(env.penalty(lengths), [0, 0, -0.125, -0.25, -0.5, -0.5])


def test_linear_penalty_beyond_a_target_and_bonus():
    lengths = np.array([1, 5, 8])
    np.testing.assert_allclose(LengthPenalty(bandit(), per_token=0.1, target=5).penalty(lengths), [0, 0, -0.3])
    np.testing.assert_allclose(LengthPenalty(bandit(), per_token=-0.1).penalty(lengths), [0.1, 0.5, 0.8])
    assert pull(LengthPenalty(bandit()), 1, 2)[0] == 6.0


def test_penalty_counts_what_was_decided(make, make_one, play):
    episodes = play(vector.LengthPenalty(make(reward="sentiment"), per_token=0.5), SEEDS)
    np.testing.assert_allclose(episodes.terms["length_penalty"], -0.5 * episodes.lengths)
    assert episodes.info["episode_tokens"] == episodes.lengths.tolist()
    assert vector.LengthPenalty(make(), overlong_buffer=2).max_length == 8
    assert LengthPenalty(make_one(), overlong_buffer=2).max_length == 8


@pytest.mark.parametrize(
    "bad", [{"target": -1}, {"overlong_buffer": -1}, {"per_token": np.inf}, {"overlong_buffer": 5}]
)
def test_length_penalty_refuses(bad):
    with pytest.raises(ValueError, match="expected"):
        LengthPenalty(bandit(), **bad)
    with pytest.raises(ValueError, match="give max_length"):
        LengthPenalty(gym.make("CartPole-v1"), overlong_buffer=1)


# -- an own wrapper, as the docs show it -------------------------------------------------------------------------------
class BonusRule(EpisodeRule):
    def __init__(self, env, amount=1.0):
        super().__init__(env, amount=amount)
        self.amount = amount

    def transform(self, episodes):
        return episodes.with_rewards(episodes.rewards + self.amount, {"bonus": np.full(len(episodes), self.amount)})


class VectorBonus(BonusRule, VectorEpisodeWrapper):
    pass


def test_own_wrapper_acts_alike_on_both_faces(make, play, assert_same):
    one, two = VectorBonus(make(), 0.25), VectorBonus(make(), 0.25)
    assert_same(play(one, SEEDS, "step"), play(two, SEEDS))
    assert play(one, SEEDS).terms["bonus"].tolist() == [0.25] * 4


def test_episodes_survive_records():
    episodes = finished([1.0, np.nan], [2, 3], prompt=["a", None], invalid=[None, "bad"], array=[np.arange(2), None])
    twin = Episodes.from_records(episodes.records())
    np.testing.assert_equal(twin.rewards, episodes.rewards)
    assert twin.lengths.tolist() == [2, 3] and twin.invalid == [None, "bad"] and twin.info["array"] == [[0, 1], None]
