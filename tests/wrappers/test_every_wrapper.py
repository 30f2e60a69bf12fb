"""What every wrapper promises, and a stack of them: both faces alike, exact resume, Gymnasium's own contracts."""

import copy
import json
import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import aligngym.wrappers as single
from aligngym.agents.policies.policy import RowNoise
from aligngym.wrappers import vector

ROUNDS = [[7, 7, 8, 9], [3, 3, 3, 4], [11, 12, 13, 13]]


def plain(value):
    """Nested arrays, of objects too, as lists."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, list | tuple | np.ndarray) else value


def same_numbers(a, b):
    np.testing.assert_equal(json.loads(json.dumps(a)), json.loads(json.dumps(b)))


def test_vector_module_holds_a_twin_of_every_wrapper():
    twins = {name for name in vector.__all__ if issubclass(getattr(vector, name), gym.vector.VectorWrapper)}
    singles = {
        n
        for n in single.__all__
        if isinstance(getattr(single, n), type) and issubclass(getattr(single, n), gym.Wrapper)
    }
    drawn = {"DistractingBackground"}  # within each simulator, of which Gymnasium makes the batch
    assert twins == singles - {"EpisodeWrapper"} - drawn == set(vector.__all__)


def test_both_faces_give_the_same_over_several_batches(make, wrap, play, assert_same, wrapper_name):
    stepped, whole = wrap(make(), wrapper_name), wrap(make(), wrapper_name)
    lengths, valid, ends = set(), set(), set()
    for seeds in ROUNDS:
        one, two = play(stepped, seeds, "step"), play(whole, seeds, "rollout")
        assert_same(one, two)
        lengths |= set(two.lengths.tolist())
        valid |= set(two.valid.tolist())
        ends |= set(two.terminated.tolist())
        if wrapper_name != "record":  # it keeps the second episodes, too
            same_numbers(learned(stepped), learned(whole))
    assert len(lengths) > 2 and ends == {True, False}
    assert valid == ({True} if wrapper_name == "transform" else {True, False})


def learned(env):
    """What each layer has learned, from the outermost in; not the episodes that only the step face has begun."""
    state, layers = env.get_state(), []
    while state is not None and "wrapper" in state:
        layers += [(name, own["rule"], own["episodes"], own["batch"]) for name, own in state["wrapper"].items()]
        state = state["env"]
    return layers


def test_equal_seeds_start_from_equal_prompts_and_repeat(make, wrap, play, assert_same, wrapper_name):
    one, two = wrap(make(), wrapper_name), wrap(make(), wrapper_name)
    for seeds in ROUNDS[:2]:
        episodes = play(one, seeds)
        assert_same(episodes, play(two, seeds))
        prompts = dict(zip(seeds, episodes.info["prompt"], strict=True))
        assert episodes.info["prompt"] == [prompts[seed] for seed in seeds]


def step_alone(env, policy, seed):
    """One episode of a single environment: its return and its last info."""
    noise, (observation, _) = RowNoise([seed * 100]), env.reset(seed=seed)
    done, total = False, 0.0
    while not done:
        decision = policy.act({key: value[None] for key, value in observation.items()}, noise)
        observation, reward, terminated, truncated, info = env.step(int(decision.actions[0]))
        assert isinstance(reward, float)
        done, total = terminated or truncated, total + reward
    return total, info


def test_single_is_a_batch_of_one(make, make_one, wrap, policy, play, assert_same, wrapper_name):
    stepped, whole, batch = wrap(make_one(), wrapper_name), wrap(make_one(), wrapper_name), wrap(make(1), wrapper_name)
    for seed in (1, 2, 3, 5, 8):
        expected = play(batch, [seed])
        assert_same(whole.rollout(policy, noise=RowNoise([seed * 100]), seed=seed), expected)
        total, info = step_alone(stepped, policy, seed)
        np.testing.assert_equal(np.float32(total), expected.returns[0].numpy())
        terms = {key.removeprefix("reward/"): info[key] for key in info if key.startswith("reward/")}
        np.testing.assert_equal(np.float32([*terms.values()]), [expected.terms[name][0].numpy() for name in terms])
        facts = {key: values[0] for key, values in expected.info.items() if values[0] is not None}
        np.testing.assert_equal({key: info[key] for key in info if not key.startswith("reward/")}, facts)
    same_numbers(learned(stepped), learned(whole))


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_every_autoreset_mode_gives_the_same_episodes(make, make_sync, wrap, play, assert_same, mode, wrapper_name):
    if wrapper_name in ("curriculum", "evolution", "stack"):
        pytest.skip("what chooses prompts wraps environments that draw them, one by one")
    native, packed = wrap(make(), wrapper_name), wrap(make_sync(mode, lambda env: env), wrapper_name)
    for seeds in ROUNDS[:2]:
        assert_same(play(packed, seeds, "step"), play(native, seeds, "rollout"))


def test_state_in_the_middle_of_episodes(make, wrap, wrapper_name):
    def run(env, actions):
        return [copy.deepcopy(env.step(step)) for step in actions]

    rng = np.random.default_rng(0)
    env = wrap(make(), wrapper_name)
    env.reset(seed=[1, 1, 2, 3])
    stops = env.unwrapped.terminal_actions[0]
    actions = np.where(rng.random((50, 4)) < 0.15, stops, rng.integers(1000, size=(50, 4)))
    run(env, actions[:23])
    state = json.loads(json.dumps(env.get_state()))
    after = run(env, actions[23:])
    fresh = wrap(make(), wrapper_name)
    fresh.reset(seed=0)
    fresh.set_state(state)
    for one, two in zip(after, run(fresh, actions[23:]), strict=True):
        np.testing.assert_equal(plain(one), plain(two))
    same_numbers(env.get_state(), fresh.get_state())


def test_state_of_another_stack_is_refused(make, wrap, wrapper_name):
    env = wrap(make(), wrapper_name)
    other = vector.NormalizeReward(make(2)) if wrapper_name != "normalize" else vector.LengthPenalty(make(4))
    with pytest.raises(ValueError, match="same wrappers in the same order"):
        other.set_state(env.get_state())


def test_pickles_and_goes_on(make, wrap, play, assert_same, wrapper_name):
    env = wrap(make(), wrapper_name)
    play(env, ROUNDS[0])
    twin = pickle.loads(pickle.dumps(env))
    assert_same(play(twin, ROUNDS[1]), play(env, ROUNDS[1]))


def test_spec_rebuilds_single_wrappers(make_one, wrap, wrapper_name):
    env = wrap(make_one(tokenizer="stories"), wrapper_name)
    env.reset(seed=3)
    spec = env.spec if wrapper_name == "transform_map" else EnvSpec.from_json(env.spec.to_json())
    twin = gym.make(spec)
    assert str(twin) == str(env) and type(twin) is type(env)
    for _ in range(2):
        np.testing.assert_equal(env.reset(seed=3), twin.reset(seed=3))
        np.testing.assert_equal(env.step(4), twin.step(4))


def test_passes_gymnasiums_checker(make_one, wrap, wrapper_name):
    env = wrap(make_one(reward="sentiment"), wrapper_name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*different from the unwrapped version.*")
        warnings.filterwarnings("ignore", message=".*(low|high) is.*|.*render.*")
        check_env(env)


def test_layers_keep_spec_metadata_and_spaces(make, make_one, wrap, wrapper_name):
    batch, env = make(), make_one()
    outer, one = wrap(batch, wrapper_name), wrap(env, wrapper_name)
    assert outer.spec is batch.spec and outer.metadata is batch.metadata and outer.num_envs == 4
    assert outer.unwrapped is batch and outer.single_action_space == one.action_space
    assert outer.observation_space == batch.observation_space and one.metadata == env.metadata
    assert one.spec.id == "LLMAlign-v0" and len(one.spec.additional_wrappers) in (1, 5)
    outer.close()


def test_wraps_each_environment_in_sync_mode(arguments, tmp_path):
    with pytest.raises(gym.error.Error, match="vector_entry_point"):
        gym.make_vec("LLMAlign-v0", num_envs=2, wrappers=[single.NormalizeReward], **arguments)
    env = gym.make_vec(
        "LLMAlign-v0", num_envs=2, vectorization_mode="sync", wrappers=[single.PromptCurriculum], **arguments
    )
    env.reset(seed=0)
    env.step(np.array([5, 5]))
    assert env.envs[0].statistics.visits.shape == (5,)


def test_torch_observations_and_actions(make, wrap, play, assert_same, wrapper_name):
    env = wrap(make(device="cpu"), wrapper_name)
    assert_same(play(env, ROUNDS[0], "step"), play(wrap(make(), wrapper_name), ROUNDS[0], "rollout"))
    assert isinstance(env.reset()[0]["input_ids"], torch.Tensor)
