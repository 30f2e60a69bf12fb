"""Grids, pairs and GIFs of images, and evaluations that leave them, on networks of random weights."""

import math
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from aligngym.agents.callbacks import EvaluationCallback, read_table
from aligngym.agents.grpo import GRPO, GRPOConfig
from aligngym.agents.images import (
    denoising_frames,
    has_images,
    read_grid,
    save_before_after,
    save_gif,
    save_grid,
)
from aligngym.agents.plots import plot_frontier, plot_learning, read_evaluations
from aligngym.agents.policies.caption_unet import CaptionUNet
from aligngym.agents.policies.denoiser_policy import DenoiserPolicy
from aligngym.agents.report import Report, describe

LONG = "a caption that goes on for so long that nobody would ever read it to its end, wherever that may be found"
CAPTIONS = ["dog", "supercalifragilisticexpialidocious", LONG, "Größe Ελληνικά", ""]
IDS = {"diffusion": "DiffusionAlign-v0", "flow": "FlowAlign-v0"}


def pictures(count, height=8, width=8, seed=0):
    return list(np.random.default_rng(seed).integers(256, size=(count, height, width, 3), dtype=np.uint8))


def brightness(completions, **_):
    return [float(image.mean()) / 255 for image in completions]


@pytest.fixture
def make():
    """``make("flow", folder)``: an agent, and an environment of four rows, on images of 8x8 pixels and three steps."""

    def build(kind, folder=None, reward=brightness, rows=4):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = CaptionUNet(kind, ["dog", "cat"], size=8, channels=(32,))
        env = {"shape": (3, 8, 8), "num_steps": 3, "prompts": ["dog", "cat", "dog cat"], "reward": reward}
        config = GRPOConfig(episodes_per_iteration=4, group_size=2, learning_rate=1e-4)
        policy = DenoiserPolicy(network, num_steps=3)
        envs = [gym.make_vec(IDS[kind], num_envs=n, **env) for n in (4, rows)]
        return GRPO(envs[0], policy, config, folder=folder), envs[1]

    return build


@pytest.mark.parametrize(("height", "width"), [(32, 32), (8, 24), (100, 100), (256, 64)])
def test_a_grid_gives_back_what_it_shows(height, width, tmp_path):
    images = [*pictures(4, height, width), None]
    path = save_grid(images, tmp_path / "new/grid.png", CAPTIONS, [1.0, math.nan, None, -2.5, 0.0])
    grid = read_grid(path)
    assert grid.images[4] is None
    assert all(np.array_equal(a, b) for a, b in zip(grid.images[:4], images[:4], strict=True))
    assert grid.captions == CAPTIONS and grid.rewards == [1.0, None, None, -2.5, 0.0]
    assert [p.name for p in path.parent.iterdir()] == ["grid.png"]  # no part of a file is left


def test_small_images_are_enlarged_and_large_ones_reduced(tmp_path):
    assert np.asarray(Image.open(save_grid(pictures(1, 32, 32), tmp_path / "small.png"))).shape[1] >= 128
    large = read_grid(save_grid(pictures(1, 300, 900), tmp_path / "large.png")).images[0]
    assert large.shape[1] == 256 and abs(large.shape[0] - 85) <= 1


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (3, 3), (26, 7), (32, 8)])
def test_text_stays_in_its_cell(count, columns, tmp_path):
    """With white images, all that is not white is text: none of it lies on an image or between two cells."""
    white = [np.full((32, 32, 3), 255, np.uint8)] * count
    path = save_grid(white, tmp_path / "g.png", [LONG] * count, [-123456.789] * count)
    ink = np.asarray(Image.open(path).convert("L")) < 255
    assert ink.shape[1] == 12 + columns * 140
    for column in range(columns + 1):
        assert not ink[:, column * 140 : column * 140 + 11].any()
    rows = math.ceil(count / columns)
    height = (ink.shape[0] - 12) // rows
    for row in range(rows):
        top = 12 + row * height
        lines = np.flatnonzero(np.diff(ink[top : top + height].any(1).astype(int)) == 1)
        assert not ink[top : top + 128].any() and len(lines) == 4  # a reward and three lines of the caption


def test_captions_are_whole_where_they_fit_and_cut_where_not(tmp_path):
    from aligngym.agents.images import _wrapped, figure_font

    font = figure_font()
    assert _wrapped("kissing face with closed eyes", font, 128) == ["kissing face with", "closed eyes"]
    assert _wrapped("", font, 128) == []
    long = _wrapped(LONG, font, 128)
    assert len(long) == 3 and long[-1].endswith("…") and LONG.startswith(" ".join(long[:2]))
    (word,) = _wrapped(CAPTIONS[1], font, 128)
    assert word.endswith("…") and all(font.getlength(line) <= 128 for line in [word, *long])


def test_pairs_hold_both_images_of_an_episode_side_by_side(tmp_path):
    old, new = pictures(5, 32, 32), pictures(5, 32, 32, seed=1)
    before = save_grid(old, tmp_path / "a.png", ["x"] * 5, [0.0] * 5)
    after = save_grid(new, tmp_path / "b.png", ["x"] * 5, [math.nan] * 5)
    pixels = np.asarray(Image.open(save_before_after(before, after, tmp_path / "c.png", count=3)).convert("RGB"))
    enlarged = [image.repeat(4, 0).repeat(4, 1) for image in (old[0], new[0])]
    assert np.array_equal(pixels[12:140, 12:140], enlarged[0])
    assert np.array_equal(pixels[12:140, 142:270], enlarged[1])
    assert pixels.shape[1] == 12 + 3 * (258 + 12)
    other = save_grid(new, tmp_path / "d.png", ["y"] * 5)
    with pytest.raises(ValueError, match="other prompts"):
        save_before_after(before, other, tmp_path / "e.png")
    save_before_after(other, other, tmp_path / "f.png")
    Image.fromarray(new[0]).save(tmp_path / "g.png")
    with pytest.raises(ValueError, match="is no grid"):
        read_grid(tmp_path / "g.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": []}, "at least one"),
        ({"images": pictures(2), "captions": ["x"]}, r"\[2, 1, 2\]"),
        ({"images": pictures(2), "rewards": [1.0]}, r"\[2, 2, 1\]"),
        ({"images": [np.zeros((8, 8, 3))]}, "image 0 is float64"),
        ({"images": [np.zeros((8, 8), np.uint8)]}, r"uint8 \[8, 8\]"),
    ],
)
def test_what_is_no_image_is_refused(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_grid(path=tmp_path / "g.png", **arguments)


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.ImageFont", None)
    with pytest.raises(ImportError, match=r"aligngym\[image\]"):
        save_grid(pictures(1), tmp_path / "g.png")


def test_a_gif_shows_every_frame_and_holds_the_last(tmp_path):
    colours = np.uint8([[250, 0, 0], [0, 250, 0], [0, 0, 250]])
    frames = [[np.tile(colour, (8, 8, 1))] * 2 for colour in colours]
    gif = Image.open(save_gif(frames, tmp_path / "d.gif", ["a dog"] * 2, seconds=1.0, hold=3.0))
    shown = [(np.asarray(f.convert("RGB"))[60, 60], f.info["duration"]) for f in ImageSequence.Iterator(gif)]
    assert gif.info["loop"] == 0
    assert [duration for _, duration in shown] == [500, 500, 3000]
    assert all(np.abs(pixel.astype(int) - colour).max() < 8 for (pixel, _), colour in zip(shown, colours, strict=True))
    for wrong in ([], [[]], [frames[0], frames[1][:1]]):
        with pytest.raises(ValueError, match="must be equal"):
            save_gif(wrong, tmp_path / "e.gif")
    with pytest.raises(ValueError, match="must be equal"):
        save_gif(frames, tmp_path / "e.gif", ["a dog"])


def test_frames_are_the_states_from_noise_to_the_rewarded_image(make):
    agent, env = make("diffusion")
    episodes = agent.play(env, 3)
    frames = denoising_frames(episodes, env)
    assert len(frames) == 4 and all(len(frame) == 3 for frame in frames)
    assert all(np.array_equal(a, b) for a, b in zip(frames[-1], episodes.info["image"], strict=True))
    noise = env.unwrapped.decode(episodes.observations["sample"].numpy())
    assert all(np.array_equal(a, b) for a, b in zip(frames[0], noise, strict=True))
    assert np.array_equal(frames[2][1], env.unwrapped.decode(episodes.actions[1:2, 1].numpy())[0])


def test_frames_need_samples_and_a_decoder(make):
    bandit = GRPO("TabularBandit-v0", config=GRPOConfig(episodes_per_iteration=4, group_size=2))
    with pytest.raises(ValueError, match="no samples"):
        denoising_frames(bandit.play(episodes=2), bandit.env)
    agent, _ = make("flow")
    points = gym.make_vec("FlowAlign-v0", num_envs=2, shape=(3, 8, 8), num_steps=3, decoder=None, prompts=["dog"],
                          reward=lambda completions, **_: [0.0] * len(completions))  # fmt: skip
    episodes = agent.play(points, 2)
    assert not has_images(episodes.info) and not has_images({}) and not has_images({"image": [None]})
    with pytest.raises(ValueError, match="image 0 is float32"):
        denoising_frames(episodes, points)


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_episodes_played_are_those_evaluated(kind, make):
    agent, env = make(kind, rows=3)
    result, episodes = agent.evaluate(env, 5), agent.play(env, 5)
    assert len(episodes) == 5 and episodes.group.tolist() == [0, 1, 2, 3, 4]
    assert np.allclose(result.returns, episodes.returns.numpy()) and result.info["prompt"] == episodes.info["prompt"]
    assert all(np.array_equal(a, b) for a, b in zip(result.info["image"], episodes.info["image"], strict=True))


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_flow_models_are_evaluated_by_their_ode_unless_told_otherwise(kind, make):
    agent, env = make(kind)
    results = {mode: agent.evaluate(env, 4, deterministic=mode) for mode in (None, True, False)}
    same = {mode: np.array_equal(results[None].returns, results[mode].returns) for mode in (True, False)}
    assert same == {True: kind == "flow", False: kind == "diffusion"}
    assert math.isnan(results[True].kl) and results[False].kl == pytest.approx(0, abs=1e-6)
    assert "KL" not in describe(results[True])


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_evaluations_leave_grids_of_the_same_prompts(kind, make, tmp_path):
    agent, env = make(kind, tmp_path)
    agent.learn(8, EvaluationCallback(env, 5, every=4, images=4))
    paths = [tmp_path / f"images/{n}.png" for n in (0, 4, 8)]
    assert sorted(tmp_path.glob("images/*")) == sorted(paths)
    grids = [read_grid(path) for path in paths]
    assert grids[0].captions == grids[2].captions and len(grids[0].images) == 4
    assert not np.array_equal(grids[0].images, grids[2].images)
    shown = agent.evaluate(env, 5)
    assert np.array_equal(grids[2].images, shown.info["image"][:4])
    assert grids[2].rewards == pytest.approx(shown.returns[:4].tolist())
    report = Report.of(tmp_path)
    assert report.grids == (paths[0], paths[2]) and f"Images:     {paths[0]}, {paths[2]}" in str(report)
    assert report.before_after is None


def test_no_grids_where_none_are_wanted_or_there_is_no_folder(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    agent, env = make("flow", tmp_path / "run")
    agent.learn(4, EvaluationCallback(env, 4, images=0))
    make("flow")[0].learn(4, EvaluationCallback(env, 4))
    assert not list(tmp_path.rglob("*.png"))
    with pytest.raises(ValueError, match="images=-1"):
        EvaluationCallback(env, images=-1)


def test_a_run_without_divergences_is_reported_and_drawn(make, tmp_path):
    agent, env = make("flow", tmp_path)
    agent.learn(8, EvaluationCallback(env, 4))
    assert all("kl" not in row for row in read_table(tmp_path / "eval.csv"))
    assert "kl" not in read_evaluations(tmp_path) and "KL" not in str(Report.of(tmp_path))
    assert plot_learning([tmp_path], tmp_path / "learning.png").exists()
    with pytest.raises(ValueError, match="has a KL"):
        plot_frontier([tmp_path], tmp_path / "frontier.png")


def test_images_whose_reward_failed_are_shown_as_invalid(make, tmp_path):
    def failing(completions, **_):
        raise OSError("the judge is away")

    agent, env = make("flow", tmp_path, reward=failing)
    agent.learn(4, evaluation := EvaluationCallback(env, 4))
    assert read_grid(tmp_path / "images/0.png").rewards == [None] * 4
    assert "the first because: " in describe(evaluation.last) and "judge is away" in describe(evaluation.last)
