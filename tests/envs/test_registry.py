"""What every environment of the table promises, whatever it is about; here those with a batched implementation."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space

import aligngym
from aligngym.agents.policies.policy import RowNoise
from aligngym.envs import ENVIRONMENTS, list_envs, register, registered_ids

IDS = [name for name, entry in ENVIRONMENTS.items() if entry.single and entry.batched]
every_env = pytest.mark.parametrize("env_id", IDS)


def same(a, b) -> bool:
    """Exact equality, NaN equal to itself."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray) and a.dtype == object:
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray | np.generic | float) and np.asarray(a).dtype.kind == "f":
        return np.array_equal(a, b, equal_nan=True)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return data_equivalence(a, b, exact=True) or bool(np.all(np.asarray(a) == np.asarray(b)))


def test_ids_are_registered_plain_and_namespaced() -> None:
    assert list_envs().keys() == ENVIRONMENTS.keys()
    before = dict(gym.registry)
    register()
    assert dict(gym.registry) == before
    for name, entry in ENVIRONMENTS.items():
        for env_id in registered_ids(name):
            spec = gym.spec(env_id)
            assert spec.kwargs == {} and not spec.disable_env_checker
            assert bool(spec.entry_point) == bool(entry.single)
            assert bool(spec.vector_entry_point) == bool(entry.batched)
            assert spec.max_episode_steps is None


def test_importing_the_environments_loads_no_torch() -> None:
    code = (
        "import sys, aligngym, gymnasium as gym; gym.make('TabularBandit-v0').reset(); "
        "env = gym.make('FlowAlign-v0', num_steps=1, reward='colourfulness'); env.reset(); "
        "env.step(env.action_space.sample()); print({'torch', 'transformers', 'diffusers'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


@every_env
def test_check_env_finds_nothing(env_id: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(env_id).unwrapped)


@every_env
def test_made_by_module_and_namespace(env_id: str, small) -> None:
    for name in (f"aligngym:{env_id}", f"aligngym/{env_id}"):
        env = gym.make(name, **small(env_id))
        assert env.reset(seed=0)[0] in env.observation_space


@every_env
def test_vector_spaces_and_metadata(env_id: str, small) -> None:
    env = gym.make_vec(env_id, num_envs=3, **small(env_id))
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert env.observation_space == batch_space(env.single_observation_space, 3)
    assert env.action_space == batch_space(env.single_action_space, 3)
    observation, infos = env.reset(seed=0)
    assert observation in env.observation_space and infos == {}
    assert len(env.np_random) == 3
    env.action_space.seed(0)
    for _ in range(10):
        observation, rewards, terminated, truncated, _ = env.step(env.action_space.sample())
        assert observation in env.observation_space
        assert rewards.shape == terminated.shape == truncated.shape == (3,)
        assert rewards.dtype == np.float64 and terminated.dtype == truncated.dtype == bool
        assert not (terminated & truncated).any()
    env.close()


@every_env
def test_two_environments_of_a_seed_are_equal(env_id: str, small) -> None:
    envs = [gym.make(env_id, **small(env_id)) for _ in range(2)]
    assert same(*(env.reset(seed=7) for env in envs))
    envs[0].action_space.seed(1)
    ends = 0
    for _ in range(30):
        action = envs[0].action_space.sample()
        outcomes = [env.step(action) for env in envs]
        assert same(*outcomes)
        if outcomes[0][2] or outcomes[0][3]:
            ends += 1
            assert same(*(env.reset() for env in envs))
    assert ends >= 3


@every_env
@pytest.mark.parametrize("vectoriser", ["sync", "async"])
def test_batched_equals_gymnasiums_vectorisers_over_the_single_one(env_id: str, vectoriser: str, small) -> None:
    """Row i of vector seed s is the single environment of seed s + i, infos and final observations included."""
    batched = gym.make_vec(env_id, num_envs=3, **small(env_id))
    makers = [lambda: gym.make(env_id, **small(env_id))] * 3
    kind = SyncVectorEnv if vectoriser == "sync" else AsyncVectorEnv
    envs = [batched, kind(makers, autoreset_mode=AutoresetMode.SAME_STEP)]
    try:
        assert same(*(env.reset(seed=11) for env in envs))
        batched.action_space.seed(2)
        for _ in range(12):
            actions = batched.action_space.sample()
            outcomes = [env.step(actions) for env in envs]
            assert same(outcomes[0][:4], outcomes[1][:4])
            assert same(outcomes[0][4], outcomes[1][4])
    finally:
        envs[1].close()


@every_env
def test_next_step_autoreset_of_gymnasium_works_too(env_id: str, small) -> None:
    env = SyncVectorEnv([lambda: gym.make(env_id, **small(env_id))] * 2)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(12):
        env.step(env.action_space.sample())


@every_env
def test_rows_of_equal_seeds_start_alike(env_id: str, small) -> None:
    env = gym.make_vec(env_id, num_envs=6, **small(env_id))
    observation, _ = env.reset(seed=[3, 3, 3, 8, 8, 8])
    rows = list(gym.vector.utils.iterate(env.observation_space, observation))
    assert same(rows[0], rows[1]) and same(rows[1], rows[2]) and same(rows[3], rows[5])
    starts = {str(gym.make(env_id, **small(env_id)).reset(seed=s)[0]) for s in range(20)}
    assert len(starts) > 1, "every seed starts alike"


@every_env
@pytest.mark.parametrize("copier", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_copies_go_on_alike(env_id: str, copier, small) -> None:
    for env in (gym.make(env_id, **small(env_id)), gym.make_vec(env_id, num_envs=2, **small(env_id))):
        env.reset(seed=5)
        twin = copier(env)
        env.action_space.seed(0)
        for _ in range(6):
            action = env.action_space.sample()
            outcomes = [e.step(action) for e in (env, twin)]
            assert same(*outcomes)
            if env.unwrapped is not env and (outcomes[0][2] or outcomes[0][3]):
                assert same(env.reset(), twin.reset())


@every_env
def test_state_restores_an_episode_in_its_middle(env_id: str, small) -> None:
    def play(env, steps):
        outcomes = []
        for action in steps:
            outcomes.append(env.step(action))
            if not isinstance(env, gym.vector.VectorEnv) and (outcomes[-1][2] or outcomes[-1][3]):
                outcomes.append(env.reset())
        return outcomes

    for make in (
        lambda: gym.make(env_id, **small(env_id)).unwrapped,
        lambda: gym.make_vec(env_id, num_envs=3, **small(env_id)),
    ):
        env, other = make(), make()
        env.action_space.seed(3)
        actions = [env.action_space.sample() for _ in range(12)]
        env.reset(seed=4)
        play(env, actions[:5])
        state = json.loads(json.dumps(env.get_state()))
        expected = play(env, actions[5:])
        other.reset(seed=99)
        other.set_state(state)
        assert json.loads(json.dumps(other.get_state())) == state
        assert same(play(other, actions[5:]), expected)
        env.set_state(state)
        assert same(play(env, actions[5:]), expected)


@every_env
def test_state_of_another_size_is_refused(env_id: str, small) -> None:
    env = gym.make_vec(env_id, num_envs=2, **small(env_id))
    with pytest.raises(ValueError, match="3 rows, but num_envs is 2"):
        env.set_state(gym.make_vec(env_id, num_envs=3, **small(env_id)).get_state())


@every_env
def test_spec_survives_json(env_id: str, small) -> None:
    env = gym.make(env_id, **small(env_id))
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert same(env.reset(seed=1), again.reset(seed=1))
    batched = gym.make_vec(env_id, num_envs=2, **small(env_id))
    again = gym.make_vec(EnvSpec.from_json(batched.spec.to_json()))
    assert again.num_envs == 2 and same(batched.reset(seed=1), again.reset(seed=1))


@every_env
def test_final_observations_are_copies(env_id: str, small) -> None:
    env = gym.make_vec(env_id, num_envs=2, **small(env_id))
    env.reset(seed=0)
    env.action_space.seed(0)
    kept = []
    for _ in range(10):
        _, _, terminated, truncated, infos = env.step(env.action_space.sample())
        assert ("final_obs" in infos) == bool((terminated | truncated).any())
        for row in np.flatnonzero(terminated | truncated):
            assert infos["_final_obs"][row] and infos["final_obs"][row] in env.single_observation_space
            kept.append((infos["final_obs"][row], copy.deepcopy(infos["final_obs"][row])))
    assert kept and all(same(now, then) for now, then in kept)


@every_env
def test_reset_mask_leaves_other_rows_alone(env_id: str, small) -> None:
    env = gym.make_vec(env_id, num_envs=4, **small(env_id))
    before, _ = env.reset(seed=0)
    mask = np.array([False, True, False, True])
    options = {"reset_mask": mask}
    after, _ = env.reset(seed=[50, 51, 52, 53], options=options)
    fresh, _ = gym.make_vec(env_id, num_envs=4, **small(env_id)).reset(seed=50)
    rows = [list(gym.vector.utils.iterate(env.observation_space, o)) for o in (before, after, fresh)]
    for i, masked in enumerate(mask):
        assert same(rows[1][i], rows[2 if masked else 0][i])
    assert options == {"reset_mask": mask}, "the caller's options were changed"


@every_env
@pytest.mark.parametrize("deterministic", [False, True])
def test_step_equals_rollout(env_id: str, deterministic: bool, small, random_policy) -> None:
    """The law: one seed, one noise, the same episodes by either face."""
    seeds = [1, 1, 2, 3, 3, 4]
    env = gym.make_vec(env_id, num_envs=6, **small(env_id))
    policy = random_policy(env, likely=env.terminal_actions[:1])
    whole = env.rollout(policy, noise=RowNoise(range(6)), seed=seeds, deterministic=deterministic)
    noise = RowNoise(range(6))
    observation, _ = env.reset(seed=seeds)
    running = np.ones(6, bool)
    for t in range(whole.mask.shape[1]):
        decision = policy.act(observation, noise, deterministic)
        observation, rewards, terminated, truncated, infos = env.step(decision.actions)
        assert np.array_equal(whole.mask[:, t].numpy(), running)
        for i in np.flatnonzero(running):
            assert torch.equal(whole.actions[i, t], decision.actions[i])
            np.testing.assert_allclose(whole.log_probs[i, t], decision.log_probs[i], rtol=1e-5)
            np.testing.assert_allclose(whole.rewards[i, t], rewards[i], rtol=1e-6)
            if terminated[i] or truncated[i]:
                assert (bool(whole.terminated[i]), bool(whole.truncated[i])) == (terminated[i], truncated[i])
                final = {k: v[i] for k, v in infos["final_info"].items() if not k.startswith("_") and k != "columns"}
                for key, value in final.items():
                    name = key.removeprefix("reward/")
                    found = whole.terms[name][i] if key.startswith("reward/") else whole.info[key][i]
                    if isinstance(value, str):
                        assert found == value, key
                    else:
                        np.testing.assert_allclose(found, value, rtol=1e-6, err_msg=key)
        running &= ~(terminated | truncated)
    assert not running.any()
    assert whole.group.tolist() == [0, 0, 1, 2, 2, 3] and whole.valid.all()
    assert (whole.returns != 0).any()


@every_env
def test_single_rollout_equals_batched_rollout(env_id: str, small, random_policy) -> None:
    batched, single = gym.make_vec(env_id, num_envs=2, **small(env_id)), gym.make(env_id, **small(env_id)).unwrapped
    policy = random_policy(batched)
    both = batched.rollout(policy, noise=RowNoise([8, 9]), seed=20)
    one = single.rollout(policy, noise=RowNoise([9]), seed=21)
    assert both.actions[1].tolist() == one.actions[0].tolist() and both.rewards[1].tolist() == one.rewards[0].tolist()
    assert both.group.tolist() == [0, 1]


@every_env
def test_after_a_rollout_a_reset_is_needed(env_id: str, small, random_policy) -> None:
    env = gym.make_vec(env_id, num_envs=2, **small(env_id))
    with pytest.raises(gym.error.ResetNeeded):
        env.step(env.action_space.sample())
    env.rollout(random_policy(env), noise=RowNoise([0, 1]), seed=0)
    with pytest.raises(gym.error.ResetNeeded, match="call reset"):
        env.step(env.action_space.sample())
    env.reset()
    env.step(env.action_space.sample())


@every_env
def test_bad_arguments_are_named(env_id: str, small, random_policy) -> None:
    env = gym.make_vec(env_id, num_envs=2, **small(env_id))
    with pytest.raises(ValueError, match="num_envs is 0"):
        gym.make_vec(env_id, num_envs=0, **small(env_id))
    with pytest.raises(ValueError, match="render_mode is 'braille'"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium says so too
        gym.make(env_id, render_mode="braille", **small(env_id))
    with pytest.raises(ValueError, match="seed has 3 entries"):
        env.reset(seed=[1, 2, 3])
    with pytest.raises(gym.error.Error, match="greater or equal to zero"):
        env.reset(seed=-1)
    with pytest.raises(ValueError, match=r"unknown keys \['promt'\]"):
        env.reset(options={"promt": "x"})
    with pytest.raises(ValueError, match="reset_mask"):
        env.reset(options={"reset_mask": np.zeros(2, bool)})
    with pytest.raises(ValueError, match="prompt_index"):
        env.reset(options={"prompt_index": 10**6})
    with pytest.raises(ValueError, match="prompt_index"):
        env.reset(options={"prompt_index": 0.5})
    with pytest.raises(ValueError, match="leave it out"):
        env.rollout(random_policy(env), noise=RowNoise([0, 1]), options={"reset_mask": np.ones(2, bool)})
    env.reset(seed=0)
    before = json.dumps(env.get_state())
    for actions in refused(env.single_action_space):
        with pytest.raises(gym.error.InvalidAction):
            env.step(actions)
    assert json.dumps(env.get_state()) == before, "a refused action changed the episode"
    single = gym.make(env_id, **small(env_id)).unwrapped
    single.reset(seed=0)
    with pytest.raises(gym.error.InvalidAction, match=r"is not in (Discrete|MultiDiscrete|Box)"):
        single.step(refused(env.single_action_space)[0][1])


def refused(space) -> list[np.ndarray]:
    """Actions of two rows that are not in the space; in the first, only the second row is not."""
    if isinstance(space, gym.spaces.Discrete):
        count = int(space.n)
        wrong = [[0, count], [-1, 0], [0.5, 0], [np.nan, 0], [True, False], [0], [[0, 0]], ["a", "b"]]
        return [np.array(actions) for actions in wrong]
    if isinstance(space, gym.spaces.MultiDiscrete):
        fine = np.tile(space.start, (2, 1))
        wrong = [fine.copy(), fine.copy()]
        wrong[0][1, -1], wrong[1][1, 0] = space.start[-1] + space.nvec[-1], space.start[0] - 1
        return [*wrong, fine[:1], fine[0], fine[:, :-1], fine.astype(float), fine.astype(bool), fine.astype(str)]
    fine = np.zeros((2, *space.shape), np.float32)
    wrong = [fine.copy() for _ in range(4)]
    for actions, value in zip(wrong, (101, np.nan, np.inf, -np.inf), strict=True):
        actions[1].flat[-1] = value
    return [*wrong, fine[:1], fine[0], fine[..., None], fine.astype(bool), fine.astype(str), fine.astype(complex)]


@every_env
def test_rendered(env_id: str, small) -> None:
    mode = gym.make(env_id, **small(env_id)).metadata["render_modes"][0]
    env = gym.make(env_id, render_mode=mode, **small(env_id))
    env.reset(seed=0)
    before = env.render()
    env.step(np.int64(1) if mode == "ansi" else np.abs(env.action_space.sample()))  # no answer without points
    assert not same(env.render(), before)
    if mode == "ansi":
        assert isinstance(before, str)
    else:
        assert before.dtype == np.uint8 and before.ndim == 3 and before.shape[-1] == 3
        shape = getattr(env.unwrapped.batch, "shape", None)  # of the samples of denoising
        assert shape is None or before.shape[:2] == shape[1:]
    batched = gym.make_vec(env_id, num_envs=2, render_mode=mode, **small(env_id))
    batched.reset(seed=0)
    assert same(batched.render()[0], before) and len(batched.render()) == 2
    assert gym.make_vec(env_id, num_envs=2, **small(env_id)).render() is None


@every_env
def test_observations_on_a_device(env_id: str, small) -> None:
    env, plain = (gym.make_vec(env_id, num_envs=2, device=d, **small(env_id)) for d in ("cpu", None))
    (tensors, _), (arrays, _) = env.reset(seed=0), plain.reset(seed=0)
    for key, array in arrays.items() if isinstance(arrays, dict) else [(..., arrays)]:
        assert isinstance(tensors[key], torch.Tensor) and np.array_equal(tensors[key].numpy(), array)
    env.action_space.seed(0)
    actions = torch.from_numpy(env.action_space.sample())
    for _ in range(5):
        (_, *ours, _), (_, *theirs, _) = env.step(actions), plain.step(actions)
        assert same(ours, theirs)


def test_package_is_imported_once() -> None:
    assert gym.spec("LLMAlign-v0").entry_point.startswith(aligngym.__name__ + ".envs.")
