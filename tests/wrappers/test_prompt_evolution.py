"""PromptEvolution: which prompts become which, what stays, what is known of them, and what is refused."""

import json

import gymnasium as gym
import numpy as np
import pytest

from aligngym.wrappers import PromptEvolution, vector
from aligngym.wrappers.prompt_creators import ChangeNumber

ROWS = [{"prompt": f"Count to {n}", "n": n} for n in range(1, 9)]
KNOB = {"type": "number", "column": "n", "prompt": "Count to {n}"}


def first_token(completions, n, completion_ids, **_):
    """Even numbers are mastered or impossible; of odd ones an odd first token is worth 1 / n."""
    return [0.0 if k % 2 == 0 else ids[0] % 2 / k for k, ids in zip(n, completion_ids, strict=True)]


@pytest.fixture
def counting(make):
    """``counting(num_envs, **changes)``: eight prompts, episodes of one token."""
    settings = {"prompts": ROWS, "reward": first_token, "max_new_tokens": 1}
    return lambda num_envs=16, **changes: make(num_envs, **{**settings, **changes})


def play(env, rounds=1, seed=0):
    """Every prompt is answered twice a round, with a 5 and with a 6."""
    for _ in range(rounds):
        count = env.unwrapped.num_prompts
        env.reset(seed=seed, options={"prompt_index": np.repeat(np.arange(count), env.num_envs // count)})
        *_, infos = env.step(np.array([5, 6] * (env.num_envs // 2)))
    return infos["final_info"]


def numbers(env):
    return list(env.unwrapped.table.columns["n"])


def test_only_what_can_be_learned_from_evolves(counting):
    env = vector.PromptEvolution(counting(), KNOB, every=16, share=1.0, variants=1, replay=0.0)
    np.testing.assert_array_equal(np.isfinite(env.informativeness), False)
    play(env)
    # Four prompts are informative, though all eight were to be drawn: four variants, even numbers, and four others.
    assert env.history[-1] | {"informative": 4, "chosen": 4, "evolved": 4, "known": 8} == env.history[-1]
    assert env.history[-1]["informativeness"] == pytest.approx(np.mean([1, 0, 1 / 3, 0, 1 / 5, 0, 1 / 7, 0]))
    assert sum(n % 2 == 0 for n in numbers(env)) >= 4 and len(numbers(env)) == 8
    assert env.unwrapped.table.prompts == [f"Count to {n}" for n in numbers(env)]
    assert not np.isfinite(env.informativeness).any() and env.generation == 1


def test_informativeness_is_of_the_last_answers(counting):
    env = vector.PromptEvolution(counting(), every=10_000, answers=2)
    play(env)
    expected = [1 / n if n % 2 else 0 for n in range(1, 9)]
    np.testing.assert_allclose(env.informativeness, expected, rtol=1e-6)
    env.reset(options={"prompt_index": np.repeat(np.arange(8), 2)})
    env.step(np.full(16, 5))  # now both of the last two answers are right
    assert env.informativeness.tolist() == [0.0] * 8
    kept = vector.PromptEvolution(counting(), every=10_000, answers=4, noise=0.1)
    play(kept)
    assert 0 < kept.informativeness[0] < 1 and kept.informativeness[6] < 1 / 7


def test_replay_stays_and_the_allowed_range_is_kept(counting):
    # The least informative prompt of the four, 7, would become 6 or 8.
    env = vector.PromptEvolution(counting(), KNOB, "uniform", every=16, share=1.0, replay=0.75, allowed={"n": (1, 8)})
    play(env, 6)
    assert all(point["evolved"] == 2 for point in env.history) and set(numbers(env)) <= set(range(1, 9))
    free = vector.PromptEvolution(counting(), KNOB, "uniform", every=16, share=1.0, seed=1)
    play(free, 6)
    assert min(numbers(free)) < 1 or max(numbers(free)) > 8  # without a range it drifts out
    none = vector.PromptEvolution(counting(), KNOB, "uniform", every=16, allowed=lambda prompt, columns: False)
    play(none, 2)
    assert numbers(none) == list(range(1, 9)) and none.history[-1]["evolved"] == 0 < none.history[-1]["rejected"]
    long = vector.PromptEvolution(counting(), lambda prompt, columns, rng: prompt + " more" * 20, "uniform", every=16)
    play(long)
    assert long.history[-1]["evolved"] == 0  # what the environment cannot start from is not taken


def test_equal_histories_and_seeds_give_equal_prompts_and_state_goes_on(counting):
    def build(seed=0):
        return vector.PromptEvolution(counting(), KNOB, every=16, share=0.5, seed=seed)

    one, two, other = build(), build(), build(1)
    for env in (one, two, other):
        play(env, 3)
    assert numbers(one) == numbers(two) != numbers(other)
    fresh = build()
    play(fresh, 1)
    fresh.set_state(json.loads(json.dumps(one.get_state())))
    assert numbers(fresh) == numbers(one)
    for env in (one, fresh):
        play(env, 2)
    assert numbers(fresh) == numbers(one) and fresh.history == one.history and fresh.generation == 5
    with pytest.raises(ValueError, match="the state is of 8 prompts, but there are 2"):
        other = vector.PromptEvolution(counting(prompts=ROWS[:2]), KNOB)
        other._set_state(one._get_state())


def test_frozen_it_neither_learns_nor_evolves(counting):
    env = vector.PromptEvolution(counting(), KNOB, every=16)
    env.update_statistics = False
    play(env, 3)
    assert env.generation == 0 and numbers(env) == list(range(1, 9))


def test_failed_rewards_and_given_prompts_teach_nothing(counting):
    env = vector.PromptEvolution(counting(reward=lambda completions, **_: [np.nan] * len(completions)), KNOB, every=16)
    play(env)
    assert env.history[0]["known"] == 0 and np.isnan(env.history[0]["informativeness"])
    env = vector.PromptEvolution(counting(), every=10_000)
    env.reset(options={"prompt": "something else"})
    env.step(np.full(16, 5))
    assert not any(env._rewards)


def test_episodes_that_began_before_are_not_of_the_new_prompts(counting):
    """In ``step`` a row restarts at once, from the table as it was."""
    env = vector.PromptEvolution(counting(), KNOB, "uniform", every=16, share=1.0, replay=0.0)
    env.reset(seed=0)
    before = list(env.unwrapped._columns)
    env.step(np.array([5, 6] * 8))
    running, table = list(env.unwrapped._columns), numbers(env)
    assert env.generation == 1 and before != running
    *_, infos = env.step(np.array([5, 6] * 8))
    assert infos["final_info"]["columns"]["n"].tolist() == [c["n"] for c in running]
    for index, columns in zip(infos["final_info"]["prompt_index"], running, strict=True):
        assert index == -1 or table[index] == columns["n"]  # the same prompt came to that place again
    assert (infos["final_info"]["prompt_index"] == -1).sum() > 8


def test_what_is_told(counting):
    env = vector.PromptEvolution(counting(), KNOB, every=16)
    assert env.report() == "no evolution yet: 0 of 16 episodes"
    assert play(env)["evolution/generation"].tolist() == [0] * 16
    facts = play(env)
    assert facts["evolution/generation"].tolist() == [1] * 16
    assert {f"evolution/{name}" for name in env.history[0]} <= facts.keys()
    assert "2 generations" in env.report() and "informative" in env.report()


def test_a_creator_of_many_is_asked_for_many(counting):
    class Many:
        """The same knob, as a batch."""

        calls = 0

        def __call__(self, prompt, columns, rng):
            return ChangeNumber("n", "Count to {n}")(prompt, columns, rng)

        def many(self, rows, rngs):
            self.calls += 1
            return [self(*row, rng) for row, rng in zip(rows, rngs, strict=True)]

    creator = Many()
    one = vector.PromptEvolution(counting(), creator, "uniform", every=16)
    two = vector.PromptEvolution(counting(), KNOB, "uniform", every=16)
    for env in (one, two):
        play(env)
    assert one.creator.calls == 1 and numbers(one) == numbers(two)


def test_images_have_prompts_that_evolve_too():
    env = gym.make_vec(
        "FlowAlign-v0", num_envs=2, prompts=["red sun", "red moon"], shape=(3, 4, 4), num_steps=1, reward="symmetry"
    )
    swap = {"type": "in_breadth", "families": [["red", "blue"]]}
    env = vector.PromptEvolution(env, swap, "uniform", every=2, share=1.0, replay=0.0)
    env.reset(seed=0)
    env.step(np.zeros((2, 3, 4, 4), np.float32))
    assert all(prompt.startswith("blue") for prompt in env.unwrapped.table.prompts)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"informativeness": "regret"}, "informativeness is 'regret', expected a function or one of gap"),
        ({"creator": "deeper"}, "creator is 'deeper'"),
        ({"share": 0}, "share=0"),
        ({"replay": 1.5}, "replay=1.5"),
        ({"variants": 0}, "variants is 0"),
        ({"every": 1.5}, "every is 1.5"),
        ({"answers": 1}, "answers is 1, but 'gap' compares 2"),
        ({"epsilon": 0}, "epsilon=0"),
        ({"seed": -1}, "seed=-1"),
        ({"noise": -1.0}, "noise is -1.0"),
        ({"noise": "m"}, "noise is 'm', but the columns are \\['n'\\]"),
        ({"allowed": {"m": (0, 1)}}, "allowed has 'm'"),
        ({"allowed": {"n": (2, 1)}}, "allowed has 'n': \\(2, 1\\)"),
    ],
)
def test_refuses(counting, bad, message):
    with pytest.raises(ValueError, match=message):
        vector.PromptEvolution(counting(), **{"creator": KNOB, **bad})


def test_refuses_other_environments_and_other_choosers(counting, make_one):
    with pytest.raises(ValueError, match="no table of prompts that can be replaced"):
        vector.PromptEvolution(gym.make_vec("TabularBandit-v0", num_envs=2))
    with pytest.raises(ValueError, match="no table of prompts"):
        PromptEvolution(gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="chosen by another wrapper"):
        vector.PromptEvolution(vector.PromptCurriculum(counting()), KNOB)
    with pytest.raises(ValueError, match="chosen by another wrapper"):
        vector.PromptEvolution(vector.NormalizeReward(vector.PromptEvolution(counting(), KNOB)), KNOB)
    with pytest.raises(ValueError, match="use one of them"):
        vector.PromptCurriculum(vector.NormalizeReward(vector.PromptEvolution(counting(), KNOB)))
    assert PromptEvolution(make_one(), "in_depth").generation == 0


def test_a_creator_may_not_change_which_columns_there_are(counting):
    env = vector.PromptEvolution(counting(), lambda prompt, columns, rng: ("new", {}), "uniform", every=16)
    with pytest.raises(ValueError, match="made a prompt with the columns \\[\\]"):
        play(env)
