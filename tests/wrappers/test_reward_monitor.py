"""RewardMonitor: its numbers, that it finds a known hack, and that a healthy run stays without alarm."""

import functools
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch

from aligngym.agents.policies.policy import RowNoise
from aligngym.trajectories import Trajectories
from aligngym.wrappers import Episodes, RewardMonitor, vector
from aligngym.wrappers.reward_monitor import correlation, ranks, shares, slope_t

POINTS, BATCH = 100, 64


def episodes(proxy, gold=None, terms=None, lengths=None):
    count = len(proxy)
    golds = {} if gold is None else {"gold": np.asarray(gold, float)}
    actions = [np.zeros(n, int) for n in (lengths if lengths is not None else [4] * count)]
    return Episodes(np.asarray(proxy, float), np.ones(count, bool), actions, {**(terms or {}), **golds}, {})


def monitor(**kwargs):
    return RewardMonitor(gym.make("TabularBandit-v0"), **kwargs)


@functools.cache
def pool(kind, size=1 << 16):
    """Samples of a policy that is not optimised yet, sorted by proxy: best-of-n is then one index.

    Heavy-tailed errors of the proxy, and a gold reward that saturates and falls, make optimisation hurt; Gaussian
    errors do not (Lambert & Calandra 2023).
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal(size)
    proxy, gold = {
        "heavy tails": (x + rng.standard_t(2, size), x),
        "saturating": (x, x - 0.5 * np.maximum(x - 1, 0) ** 2),
        "healthy": (x + rng.standard_normal(size), x),
        "conflict": (x, -x),
    }[kind]
    order = np.argsort(proxy)
    return proxy[order], gold[order]


def run(kind, seed, optimise=True):
    """A run in which the policy becomes the best of n samples by the proxy, n from 1 to 1024; its monitor."""
    rng, watched = np.random.default_rng(seed), monitor()
    proxy, gold = pool(kind)
    for t in range(POINTS):
        n = 1024 ** (t / (POINTS - 1)) if optimise else 1.0
        drawn = (len(proxy) * rng.random(BATCH) ** (1 / n)).astype(int)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            watched.update(episodes(proxy[drawn], gold[drawn]))
    return watched


@pytest.mark.parametrize("kind", ["heavy tails", "saturating"])
def test_known_hacks_are_found(kind):
    runs = [run(kind, seed) for seed in range(3)]
    assert all(r.alarms for r in runs)
    assert all(r.history[-1]["proxy"] > r.history[0]["proxy"] for r in runs)
    assert all(r.history[-1]["gap"] > 0.3 for r in runs)


@pytest.mark.parametrize(("kind", "optimise"), [("healthy", True), ("healthy", False)])
def test_healthy_runs_stay_quiet(kind, optimise):
    assert not any(run(kind, seed, optimise).alarms for seed in range(3))


def test_false_alarms_are_rare_even_where_gold_is_the_opposite_of_the_reward():
    """The hardest healthy case: the policy does not move, but whatever raises the reward by chance lowers gold."""
    proxy, gold = pool("conflict")
    alarms = []
    for seed in range(60):
        rng, watched = np.random.default_rng(seed), monitor()
        for _ in range(POINTS):
            drawn = (len(proxy) * rng.random(BATCH)).astype(int)
            watched.history.append({"proxy": proxy[drawn].mean(), "gold": gold[drawn].mean()})
            if watched.divergence():
                alarms.append(seed)
                break
    assert len(alarms) <= 6


class Hacker:
    """A policy that writes one happy word over and over, ever more often; else what the language model writes."""

    def __init__(self, policy, word):
        self.policy, self.word, self.share = policy, word, 0.0
        self.rng = np.random.default_rng(0)

    def generate(self, observation, noise, **kwargs) -> Trajectories:
        played = self.policy.generate(observation, noise, **kwargs)
        hacked = torch.from_numpy(self.rng.random(len(played)) < self.share)
        played.actions[hacked], played.mask[hacked] = self.word, True
        played.terminated[hacked], played.truncated[hacked] = False, True
        return played


def play(env, policy, word, rise):
    hacker = Hacker(policy, word)
    for i in range(12):
        hacker.share = i / 12 * rise
        env.rollout(hacker, noise=RowNoise(range(i * 24, i * 24 + 24)), seed=i * 24)
    return env


def test_hacked_sentiment_of_a_real_language_model_is_found(make, policy, tokenizer):
    """One word repeated: the proxy (sentiment) pays for it, the gold reward (repetition, negated) does not."""
    word = tokenizer(" happy", add_special_tokens=False)["input_ids"][-1]
    gold = {"type": "sum", "terms": ["repetition"], "weights": [-1.0]}

    def env():
        return vector.RewardMonitor(make(24, reward="sentiment"), gold, episodes_per_point=24, window=6, threshold=3.0)

    with pytest.warns(UserWarning, match="the reward rose while the gold reward fell"):
        hacked = play(env(), policy, word, 1.0)
    assert "go back to the checkpoint where gold was highest" in hacked.report() and hacked.alarms
    assert hacked.history[-1]["repetition"] > 5 * max(hacked.history[0]["repetition"], 0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        healthy = play(env(), policy, word, 0.0)
    assert "no alarm" in healthy.report()


def test_numbers_of_a_point():
    watched = monitor(episodes_per_point=4, window=4)
    watched.update(episodes([0.0, 2.0, 0.0, 2.0], [1.0, 3.0, 1.0, 3.0], lengths=[2, 2, 4, 4]))
    watched.update(episodes([4.0, 6.0, 4.0, 6.0], [1.0, 1.0, 3.0, 3.0], lengths=[6, 6, 6, 6]))
    first, last = watched.history
    assert first["gap"] == first["length_drift"] == 0.0 and first["correlation"] == pytest.approx(1.0)
    assert (last["proxy"], last["gold"], last["length"], last["length_drift"]) == (5.0, 2.0, 6.0, 1.0)
    assert last["gap"] == 4.0 and last["correlation"] == pytest.approx(0.0)
    assert np.isnan(first["trend_correlation"]) and "gold was highest at point 1" in watched.report()


def test_gap_stays_finite_where_gold_did_not_vary_at_first():
    watched = monitor(episodes_per_point=2, window=4)
    watched.update(episodes([0.0, 1.0], [1.0, 1.0]))
    watched.update(episodes([0.0, 1.0], [0.0, 1.0]))
    watched.update(episodes([0.0, 1.0], [0.0, 0.0]))
    assert [p["gap"] for p in watched.history[:2]] == [0.0, 1.0] and np.isnan(watched.history[2]["gap"])


def test_gold_is_scored_and_never_given(make, play):
    plain = play(make(reward="sentiment"), [1, 2, 3, 4])
    env = vector.RewardMonitor(make(reward="sentiment"), "repetition", episodes_per_point=4, window=4)
    watched = play(env, [1, 2, 3, 4])
    assert torch.equal(watched.rewards, plain.rewards) and set(watched.terms) == {"sentiment", "gold"}
    assert not [key for key in watched.info if key.startswith("monitor/")]
    after = play(env, [1, 2, 3, 4])
    assert after.info["monitor/proxy"] == [pytest.approx(float(plain.returns.mean()))] * 4


def test_invalid_episodes_and_failing_gold_are_left_out(make, play):
    gold = lambda completions, **_: [np.nan, *[1.0] * (len(completions) - 1)]  # noqa: E731
    env = vector.RewardMonitor(make(4), gold, episodes_per_point=2, window=4)
    for seed in range(6):
        played = play(env, [4 * seed + i for i in range(4)])
        assert played.terms["gold"][0].isnan() and played.valid.any()
    assert all(np.isfinite(p["proxy"]) and p.get("gold", 1.0) == 1.0 for p in env.history)


def test_points_gather_small_batches():
    watched = monitor(episodes_per_point=5)
    for i in range(9):
        watched.update(episodes([float(i)]))
    assert len(watched.history) == 1 and watched.history[0]["proxy"] == 2.0
    assert "gold" not in watched.history[0] and "no alarm" in watched.report()
    assert monitor(episodes_per_point=5).report() == "no point yet: 0 of 5 episodes"


def test_share_of_a_term_is_its_part_of_the_variance():
    rng = np.random.default_rng(0)
    a, b, c = rng.standard_normal((3, 4000)) * [[1.0], [3.0], [1.0]]
    found = shares(2 * a + 0.5 * b, {"a": a, "b": b, "c": c, "constant": np.ones(4000), "gaps": np.full(4000, np.nan)})
    assert set(found) == {"a", "b", "c"} and sum(found.values()) == pytest.approx(1.0)
    assert found["a"] == pytest.approx(4 / 6.25, abs=0.03) and found["c"] < 1e-6
    assert shares(np.ones(3), {"a": np.arange(3.0)}) == {} and shares(np.arange(3.0), {}) == {}
    watched = monitor(episodes_per_point=2)
    watched.update(episodes(a[:100], terms={"a": a[:100], "b": b[:100]}))
    assert "the term 'a' alone decides the reward (100%)" in watched.report()


def test_statistics_of_trends():
    line = np.arange(10.0)
    assert slope_t(line) > 1e6 and slope_t(-line) < -1e6 and slope_t(np.ones(10)) == 0.0
    noise = np.random.default_rng(0).standard_normal((2000, 10))
    beyond = np.mean([abs(slope_t(row)) > 2.306 for row in noise])  # 5 % of Student's t with 8 degrees of freedom
    assert beyond == pytest.approx(0.05, abs=0.015)
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0.0, 2.5, 1.0]
    assert correlation(line, line**3) < correlation(ranks(line), ranks(line**3)) == pytest.approx(1.0)
    assert np.isnan(correlation(line, np.ones(10))) and correlation(np.append(line, np.nan), np.append(line, 0)) > 0.99


def test_alarm_is_given_once_until_it_is_over():
    watched = monitor(episodes_per_point=2, window=4)
    with pytest.warns(UserWarning) as caught:
        for t in [*range(8), *[8] * 12, *range(8, 16)]:
            watched.update(episodes([t, t + 0.1], [-t, -t - 0.1]))
    assert len(caught) == len(watched.alarms) >= 1


def test_refuses():
    with pytest.raises(ValueError, match="episodes_per_point=1"):
        monitor(episodes_per_point=1)
    with pytest.raises(ValueError, match="unknown reward 'golden'"):
        monitor(gold="golden")
