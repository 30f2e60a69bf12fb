"""DiffusionAlign-v0 and FlowAlign-v0: the chain, what is decoded, prompts, rewards that fail, what is refused."""

from __future__ import annotations

import json
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from aligngym.agents.policies.caption_unet import CaptionUNet
from aligngym.agents.policies.policy import RowNoise
from aligngym.rewards import Colourfulness, Symmetry
from aligngym.wrappers import vector

IDS = {"DiffusionAlign-v0": 20, "FlowAlign-v0": 10}
TABLE = [
    {"prompt": p, "colour": c, "size": n} for p, c, n in (("sun", "yellow", 3), ("moon", "white", 1), ("猫", "", 2))
]
both = pytest.mark.parametrize("env_id", IDS)


def brightness(completions, **_):
    return [float(np.mean(image)) for image in completions]


def make(num_envs=2, env_id="FlowAlign-v0", **changes):
    options = {"shape": (3, 4, 6), "num_steps": 3, "prompts": TABLE, "reward": brightness, "max_prompt_bytes": 8}
    return gym.make_vec(env_id, num_envs=num_envs, **{**options, **changes})


def text_of(rows):
    return [bytes(row).rstrip(b"\0").decode() for row in rows]


def finish(env, last):
    """Zeros until the last step: what that step returned, and the facts of the finished episodes."""
    for _ in range(env.unwrapped.max_steps - 1):
        _, rewards, terminated, truncated, infos = env.step(np.zeros((env.num_envs, *env.unwrapped.shape), np.float32))
        assert (rewards == 0).all() and not terminated.any() and not truncated.any() and infos == {}
    outcome = env.step(np.asarray(last, np.float32))
    assert outcome[2].all() and not outcome[3].any()
    return outcome, outcome[4]["final_info"]


@both
def test_defaults(env_id):
    env = gym.make_vec(env_id, num_envs=2)
    space = env.single_observation_space
    assert space["sample"] == gym.spaces.Box(-100, 100, (3, 32, 32), np.float32) == env.single_action_space
    assert space["timestep"] == gym.spaces.Box(0, IDS[env_id], (1,), np.int64)
    assert space["prompt"] == gym.spaces.Box(0, 255, (128,), np.uint8)
    assert env.max_steps == IDS[env_id] and env.terminal_actions == () and env.num_prompts == len(env.table) > 20
    held_out = gym.make_vec(env_id, num_envs=2, split="eval")
    assert not set(held_out.table.prompts) & set(env.table.prompts)


@pytest.mark.parametrize("shape", [(5,), (4, 2, 2), (3, 4, 6)])
@both
def test_gymnasiums_checker_on_points_latents_and_images(env_id, shape):
    decoder = {1: None, 3: "pixels"}[len(shape)] if shape[0] != 4 else lambda x: list(x[:, :3].clip(0, 9).astype("u1"))
    env = gym.make(env_id, shape=shape, decoder=decoder, reward=brightness, num_steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*recommend using a symmetric and normalized space")  # of vectors
        check_env(env.unwrapped, skip_render_check=True)


@both
def test_an_action_is_the_next_state(env_id):
    env = make(3, env_id)
    observation, _ = env.reset(seed=0)
    assert observation["timestep"].tolist() == [[3]] * 3
    assert [text_of(observation["prompt"])[i] for i in range(3)] == env._prompts
    kept = {k: v.copy() for k, v in observation.items()}
    for left in (2, 1):
        actions = env.action_space.sample()
        after, *_ = env.step(actions)
        assert np.array_equal(after["sample"], actions) and after["timestep"].tolist() == [[left]] * 3
        assert np.array_equal(after["prompt"], kept["prompt"])
        actions[:] = 0  # the caller's array is the caller's
        assert (env._samples != 0).any()
    assert all(np.array_equal(observation[k], kept[k]) for k in kept), "an observation changed after it was given"
    last = env.action_space.sample()
    new, rewards, terminated, _, infos = env.step(last)
    for i in range(3):
        final = infos["final_obs"][i]
        assert np.array_equal(final["sample"], last[i]) and final["timestep"] == [0]
    assert terminated.all() and (rewards > 0).all() and new["timestep"].tolist() == [[3]] * 3


@both
def test_first_samples_are_standard_normal_and_the_rows_own(env_id):
    env = make(64, env_id, shape=(3, 16, 16))
    samples = env.reset(seed=5)[0]["sample"]
    assert abs(samples.mean()) < 0.01 and abs(samples.std() - 1) < 0.01
    assert len({s.tobytes() for s in samples}) == 64
    groups, _ = env.reset(seed=[7] * 32 + [8] * 32)
    for part in (slice(0, 32), slice(32, 64)):
        assert len({s.tobytes() for s in groups["sample"][part]}) == len(set(text_of(groups["prompt"][part]))) == 1
    assert groups["sample"][0].tobytes() != groups["sample"][40].tobytes()
    assert set(text_of(env.reset(seed=0)[0]["prompt"])) == {"sun", "moon", "猫"}


def test_pixels_known_answer():
    """-1 and below is 0, 1 and above 255, channels go last; the same images as a denoiser's own."""
    env = make(2, shape=(3, 1, 6))
    env.reset(seed=0)
    values = [-9, -1, -1 + 2 / 255, 0.5, 1, 3]
    last = np.zeros((2, 3, 1, 6))
    last[0, 0] = values
    _, facts = finish(env, last)
    image = facts["image"][0]
    assert image.dtype == np.uint8 and image.shape == (1, 6, 3)
    assert image[0, :, 0].tolist() == [0, 0, 1, 191, 255, 255] and (image[0, :, 1:] == 128).all()
    samples = np.random.default_rng(0).normal(size=(2, 3, 4, 6)).astype(np.float32)
    network = CaptionUNet("flow", ["sun"], size=8, channels=(32,))
    for ours, theirs in zip(make().decode(samples), network.decode(torch.from_numpy(samples)), strict=True):
        assert np.array_equal(ours, theirs)


def test_points_and_latents():
    env = make(2, shape=(2,), decoder=None, reward=lambda completions, **_: [float(x[0]) for x in completions])
    env.reset(seed=0)
    (_, rewards, *_), facts = finish(env, [[1.5, 2], [-3, 4]])
    assert rewards.tolist() == [1.5, -3] and facts["image"].tolist() == [[1.5, 2], [-3, 4]]
    assert facts["image"][0].dtype == np.float32
    seen = []

    def decoder(latents):
        seen.append(latents.copy())
        latents *= 0  # what it is given is its own
        return [np.full((2, 2, 3), 10 * len(seen) + i, np.uint8) for i in range(len(latents))]

    env = make(2, shape=(4,), decoder=decoder, render_mode="rgb_array")
    observation, _ = env.reset(seed=0)
    assert env.render()[1].max() == 20 and np.array_equal(seen[1], observation["sample"][1:])
    before = json.dumps(env.get_state())
    env.render()
    assert json.dumps(env.get_state()) == before
    _, facts = finish(env, [[1, 2, 3, 4], [5, 6, 7, 8]])
    assert seen[-1].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]] and (facts["image"][1] == facts["image"][0] + 1).all()
    bad = make(2, shape=(4,), decoder=lambda latents: [np.zeros((2, 2, 3), np.uint8)])
    bad.reset(seed=0)
    with pytest.raises(ValueError, match="decoder returned 1 arrays for 2 samples, expected one each"):
        finish(bad, np.zeros((2, 4)))


def test_rendering_shows_the_sample_as_it_stands():
    single = gym.make("FlowAlign-v0", shape=(3, 4, 6), num_steps=2, prompts=TABLE, render_mode="rgb_array")
    observation, _ = single.reset(seed=3)
    assert np.array_equal(single.render(), make().decode(observation["sample"][None])[0])
    single.step(np.full((3, 4, 6), 0.5, np.float32))
    assert (single.render() == 191).all()
    _, _, terminated, _, info = single.step(np.ones((3, 4, 6), np.float32))
    assert terminated and np.array_equal(single.render(), info["image"])


def test_rewards_see_images_prompts_and_columns_of_their_rows():
    seen = {}

    def reward(completions, prompts, colour, size, **_):
        seen.update(prompts=prompts, colour=colour, size=size)
        values = brightness(completions)
        for image in completions:
            image[:] = 0  # what it is given is its own
        return values

    env = make(3, reward=reward)
    env.reset(seed=0, options={"prompt_index": [2, 0, 1]})
    (_, rewards, *_), facts = finish(env, np.arange(3)[:, None, None, None] / 2 * np.ones((3, 3, 4, 6)))
    assert seen == {"prompts": ["猫", "sun", "moon"], "colour": ["", "yellow", "white"], "size": [2, 3, 1]}
    assert rewards.tolist() == [128, 191, 255] and [i.max() for i in facts["image"]] == [128, 191, 255]
    assert facts["prompt_index"].tolist() == [2, 0, 1] and facts["prompt"].tolist() == seen["prompts"]
    assert facts["columns"]["colour"].tolist() == seen["colour"] and facts["reward/reward"].tolist() == rewards.tolist()
    env.reset(seed=0, options={"prompt": ["new", "sun", "é"]})
    finish(env, np.zeros((3, 3, 4, 6)))
    assert seen == {"prompts": ["new", "sun", "é"], "colour": [None] * 3, "size": [None] * 3}


def test_terms_of_a_sum_are_told():
    env = make(2, reward=Colourfulness() - 2 * Symmetry())
    env.reset(seed=0)
    (_, rewards, *_), facts = finish(env, np.random.default_rng(0).normal(size=(2, 3, 4, 6)))
    np.testing.assert_allclose(facts["reward/colourfulness"] - 2 * facts["reward/symmetry"], rewards)


@pytest.mark.parametrize("face", ["step", "rollout"])
def test_a_reward_that_fails_is_nan_with_a_reason(face, random_policy):
    def fails(completions, **_):
        raise RuntimeError("no GPU")

    def picky(completions, **_):
        return [None, float("nan"), 2.0][: len(completions)]

    for reward, reasons in (
        (fails, ["RuntimeError: no GPU"] * 3),
        (picky, ["the reward does not apply", "returned nan", None]),
    ):
        env = make(3, reward=reward)
        if face == "step":
            env.reset(seed=0)
            (_, rewards, *_), facts = finish(env, np.zeros((3, 3, 4, 6)))
            found, told = rewards, facts.get("invalid")
        else:
            episodes = env.rollout(random_policy(env), noise=RowNoise(range(3)), seed=0)
            found, told = episodes.returns.numpy(), episodes.info["invalid"]
            assert episodes.valid.tolist() == [r is None for r in reasons]
        assert np.isnan(found).tolist() == [r is not None for r in reasons] and not (found == 0).any()
        for text, reason in zip(told, reasons, strict=True):
            assert text is None if reason is None else reason in text


def test_prompts_of_reset():
    env = make(2)
    assert text_of(env.reset(options={"prompt": "é 猫"})[0]["prompt"]) == ["é 猫"] * 2
    assert text_of(env.reset(options={"prompt": ["", "\ud800"]})[0]["prompt"]) == ["", "\ufffd"]
    first = env.reset(seed=1, options={"prompt_index": 2})[0]
    assert text_of(first["prompt"]) == ["猫", "猫"] and not np.array_equal(*first["sample"])
    env.reset(seed=0)
    only = {"reset_mask": np.array([False, True]), "prompt": ["unused and far too long", "moon"]}
    assert text_of(env.reset(options=only)[0]["prompt"])[1] == "moon"
    for options, message in (
        ({"prompt": "x" * 9}, r"entry 0 takes 9 bytes of UTF-8, expected at most max_prompt_bytes=8"),
        ({"prompt": ["a", "猫猫猫"]}, "entry 1 takes 9 bytes"),
        ({"prompt": "a\0"}, "no NUL character"),
        ({"prompt": ["a"]}, "is 1 prompts, expected one prompt or a list of num_envs=2"),
        ({"prompt": ["a", 3]}, "entry 1 is a int, expected text"),
        ({"prompt": 3}, "is int, expected one prompt"),
        ({"prompt": "a", "prompt_index": 0}, "both 'prompt' and 'prompt_index', expected at most one"),
        ({"prompt_index": [0, 3]}, r"prompt_index'\] is \[0, 3\], expected an integer in 0 ... 2"),
    ):
        with pytest.raises(ValueError, match=message):
            env.reset(options=options)


def test_a_curriculum_says_which_prompts_are_drawn():
    env = make(32)
    env.prompt_weights = np.array([0.0, 3.0, 1.0])
    drawn = text_of(env.reset(seed=0)[0]["prompt"])
    assert set(drawn) == {"moon", "猫"} and 16 <= drawn.count("moon") <= 30
    curriculum = vector.PromptCurriculum(make(4), "uniform", order_by="size", order_start=0.3, order_episodes=10)
    assert text_of(curriculum.reset(seed=0)[0]["prompt"]) == ["moon"] * 4


def test_state_goes_through_json_bit_for_bit():
    env, other = make(2), make(2)
    env.reset(seed=0, options={"prompt": ["é", "sun"]})
    odd = np.float32([1e-38, -0.0, np.pi, 99.999]).repeat(18).reshape(3, 4, 6)
    env.step(np.stack([odd, -odd]))
    other.reset(seed=9)
    other.set_state(json.loads(json.dumps(env.get_state())))
    (one, *_), (two, *_) = (e.step(np.zeros((2, 3, 4, 6), np.float32)) for e in (env, other))
    assert all(one[k].tobytes() == two[k].tobytes() for k in one)
    env.step(np.stack([odd, -odd]))
    assert len(json.dumps(make(2, shape=(3, 32, 32)).get_state())) < 2000, "rows that are over have no sample to keep"
    env.set_state(other.get_state())
    assert env._samples.tobytes() == other._samples.tobytes() and env._prompts == ["é", "sun"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": ()}, r"shape is \(\), expected a list of positive integers"),
        ({"shape": (3, 0, 4)}, r"shape is \(3, 0, 4\), expected a list of positive integers"),
        ({"shape": (3, 4.5, 4)}, "expected a list of positive integers"),
        ({"shape": 3}, "shape is 3, expected a list"),
        ({"shape": (1, 4, 4)}, r"decoder is 'pixels', but shape is \(1, 4, 4\), expected \(3, height, width\)"),
        ({"decoder": "vae"}, "decoder is 'vae', expected 'pixels', None or a function"),
        ({"decoder": 3}, "decoder is 3, expected 'pixels', None or a function"),
        ({"decoder": None, "render_mode": "rgb_array"}, "render_mode is 'rgb_array', but decoder is None"),
        ({"num_steps": 0}, "num_steps is 0, expected an integer of at least 1"),
        ({"num_steps": 2.0}, "num_steps is 2.0, expected an integer"),
        ({"max_prompt_bytes": 2}, r"row 0 of prompts takes 3 bytes of UTF-8, expected at most max_prompt_bytes=2"),
        ({"prompts": []}, "there are no prompts"),
        ({"prompts": [[{"role": "user", "content": "hi"}]]}, "row 0 of prompts is a list, expected text"),
        ({"prompts": [{"prompt": "a", "completions": 1}]}, r"has columns \['completions'\], which rewards are called"),
        ({"reward": "beauty"}, "unknown reward 'beauty'"),
        ({"prompts": None, "split": "test"}, "split must be 'train' or 'eval'"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
