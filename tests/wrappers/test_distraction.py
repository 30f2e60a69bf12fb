"""Videos behind a body: which pixels are replaced, by what, and what stays as it was."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from PIL import Image

from aligngym.wrappers import DistractingBackground
from aligngym.wrappers.distraction import procedural_clip, read_clips, resized

pytest.importorskip("dm_control")
SIZE = 32


def make(domain="walker", task="walk", wrap=True, size=SIZE, **options):
    env = gym.make("ControlAlign-v0", domain=domain, task=task, observation="pixels", size=size, max_steps=6)
    return DistractingBackground(env, **options) if wrap else env


def play(env, seed, steps=4):
    """Observations, rewards and infos of an episode of fixed actions, and of an unseeded one after it."""
    rng, found = np.random.default_rng(0), []
    for given in (seed, None):
        observation, info = env.reset(seed=given)
        found.append((observation, 0.0, info))
        for _ in range(steps):
            observation, reward, *_, info = env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
            found.append((observation, reward, info))
    return found


@pytest.mark.parametrize(
    ("domain", "task", "floor"), [("walker", "walk", True), ("walker", "walk", False), ("point_mass", "easy", True)]
)
def test_the_background_is_what_dm_control_segments(domain, task, floor):
    env = make(domain, task, size=48, floor=floor)
    env.reset(seed=0)
    *_, info = env.step(env.action_space.sample())
    physics = env.unwrapped.simulator.physics
    number, kind = np.moveaxis(physics.render(48, 48, camera_id=0, segmentation=True), 2, 0)
    planes = np.flatnonzero(physics.model.geom_type == 0)
    expected = (number == -1) | (floor & (kind == 5) & np.isin(number, planes))
    # dm_control smooths edges, so that a pixel there may be the one or the other.
    assert (env.unwrapped.background(floor=floor) != expected).mean() < 0.01
    assert info["masked_fraction"] == env.unwrapped.background(floor=floor).mean()
    assert abs(info["masked_fraction"] - expected.mean()) < 0.01


def test_a_picture_is_not_changed_by_asking_for_its_background():
    env = make(wrap=False)
    before, _ = env.reset(seed=0)
    mask = env.unwrapped.background()
    assert mask.any() and not mask.all()
    np.testing.assert_array_equal(env.unwrapped._picture(SIZE), before)


def test_every_masked_pixel_is_the_clips_and_every_other_one_the_plain_pictures():
    plain, env = make(wrap=False), make()
    (shown, _), (bare, _) = (e.reset(seed=3) for e in (env, plain))
    fractions = []
    for t in range(7):
        mask, frame = env.unwrapped.background(), env.clip(env._clip)[env._frame % len(env.clip(env._clip))]
        assert 0.3 < mask.mean() < 0.95
        np.testing.assert_array_equal(shown[mask], frame[mask])
        np.testing.assert_array_equal(shown[~mask], bare[~mask])
        fractions.append(mask.mean())
        if t < 6:
            (shown, *_, info), (bare, *_) = (e.step(np.full(6, 0.5, np.float32)) for e in (env, plain))
    assert info["reward/masked_fraction"] == pytest.approx(np.mean(fractions))


def test_without_a_seed_environments_differ():
    seen = {(env._clip, env._frame) for env in (make(num_clips=8) for _ in range(6)) if env.reset()}
    assert len(seen) > 1


def test_masked_pixels_show_the_clip_and_all_others_the_body():
    clips = [
        np.full((3, 8, 8, 3), 10 * n, np.uint8) + np.arange(3, dtype=np.uint8)[:, None, None, None] for n in range(5)
    ]
    plain, env = make(wrap=False), make(clips=clips)
    seen = set()
    for seed in range(6):
        shown = [(o, r, i) for o, r, i in play(env, seed)]
        bare = play(plain, seed)
        values = []
        for (one, reward, info), (two, expected, _) in zip(shown, bare, strict=True):
            assert reward == expected
            assert one.dtype == np.uint8 and one.flags.owndata
            changed = (one != two).any(2)
            values.append(int(one[0, 0, 0]))
            assert changed.mean() <= info["masked_fraction"] < 1
            np.testing.assert_array_equal(one[changed], values[-1])
        for run in (values[:5], values[5:]):  # two episodes: one clip each, a frame a step, and from the last on
            clip = run[0] // 10
            frames = [v - 10 * clip for v in run]
            assert clip < 4 and frames == [(frames[0] + t) % 3 for t in range(5)]
            seen.add((clip, frames[0]))
    assert len({c for c, _ in seen}) > 2 and len({f for _, f in seen}) > 1


def test_a_seed_gives_an_episode_and_its_video():
    env = make()
    one, two, other = play(env, 3), play(env, 3), play(env, 4)
    for (a, *_), (b, *_) in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for (a, *_), (b, *_) in zip(one, other, strict=True))


def test_training_and_test_show_other_clips():
    train, test = make(num_clips=3), make(num_clips=3, split="test")
    clips = [env.clip(i) for env in (train, test) for i in range(3)]
    for i, one in enumerate(clips):
        assert one.shape == (200, SIZE, SIZE, 3)
        assert all(np.abs(one.astype(int) - two).mean() > 20 for two in clips[:i])
        assert np.abs(np.diff(one.astype(int), axis=0)).mean() > 2  # it moves
    np.testing.assert_array_equal(procedural_clip(1, (SIZE, SIZE)), clips[1])
    own = [np.full((2, 4, 4, 3), n, np.uint8) for n in range(10)]
    shown = [
        [env.clip(i)[0, 0, 0, 0] for i in range(n)]
        for env, n in ((make(clips=own), 8), (make(clips=own, split="test"), 2))
    ]
    assert shown == [list(range(8)), [8, 9]]


def test_grayscale():
    clip = make(grayscale=True).clip(0)
    assert (clip == clip[..., :1]).all() and clip.std() > 10


def test_clips_come_from_files(tmp_path):
    frames = np.random.default_rng(0).integers(256, size=(3, 6, 6, 3)).astype(np.uint8)
    pictures = [Image.fromarray(f) for f in frames]
    (tmp_path / "b").mkdir()
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / "b" / f"{i}.png")
    gray = [Image.fromarray(np.full((5, 5, 3), v, np.uint8)) for v in (0, 100)]
    gray[0].save(tmp_path / "a.gif", save_all=True, append_images=gray[1:])
    first, second = read_clips(tmp_path)
    assert first.shape == (2, 5, 5, 3) and first[1].mean() == 100
    np.testing.assert_array_equal(second, frames)
    np.testing.assert_array_equal(make(clips=tmp_path, split="test").clip(0), resized(frames, (SIZE, SIZE)))
    assert make(clips=tmp_path).clip(0).shape == (2, SIZE, SIZE, 3)


def test_frames_and_clips_are_in_the_order_of_their_numbers(tmp_path):
    for name in ("clip10", "clip2", "clip1"):
        (tmp_path / name).mkdir()
        for frame in range(12):
            value = 20 * int(name[4:]) + frame
            Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(tmp_path / name / f"{frame}.png")
    clips = read_clips(tmp_path)
    assert [clip[0, 0, 0, 0] for clip in clips] == [20, 40, 200]
    assert all((np.diff(clip[:, 0, 0, 0]) == 1).all() for clip in clips)
    listed = make(clips=[tmp_path / "clip10", str(tmp_path / "clip1")])  # as given
    assert [listed.clip(0)[0, 0, 0, 0], len(listed._sources)] == [200, 1]
    assert gym.make(EnvSpec.from_json(listed.spec.to_json())).reset(seed=0)


def test_paths_without_clips_are_one_sentence(tmp_path):
    def refused(*names):
        with pytest.raises(ValueError) as error:
            make(clips=tmp_path / names[0] if len(names) == 1 else [tmp_path / n for n in names])
        return str(error.value)

    assert "nowhere' does not exist" in refused("nowhere") and "nowhere' does not exist" in refused("nowhere", "x")
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.mp4").touch()
    assert "films' is a folder without files that end in .gif or .png" in refused("films")
    assert "a.mp4' is a file that does not end in .gif or .png" in refused("films/a.mp4")
    Image.new("RGB", (4, 4)).save(tmp_path / "one.gif")
    assert "one.gif'] hold 1 clip, expected at least 2" in refused("one.gif")
    for i, size in enumerate([(4, 4), (4, 4), (5, 4)]):
        Image.new("RGB", size).save(tmp_path / "films" / f"{i}.png")
    assert "2.png has the shape [4, 5, 3], frames before it [4, 4, 3]" in refused("films")


def test_resized_takes_the_pixel_in_the_middle():
    clip = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1).repeat(3, 3)
    np.testing.assert_array_equal(resized(clip, (2, 2))[0, ..., 0], [[5, 7], [13, 15]])
    np.testing.assert_array_equal(resized(clip, (8, 8))[0, ::2, ::2], clip[0])


def test_the_wrapped_environment_keeps_gymnasiums_contract():
    env = make(num_clips=2)
    check_env(env, skip_render_check=True)
    twin = gym.make(EnvSpec.from_json(env.spec.to_json()))
    np.testing.assert_array_equal(env.reset(seed=1)[0], twin.reset(seed=1)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "eval"}, "split is 'eval'"),
        ({"num_clips": 0}, "num_clips is 0"),
        ({"clips": [np.zeros((1, 2, 2, 3), np.uint8)]}, "1 clips were given"),
        ({"clips": [np.zeros((2, 2, 3), np.uint8)] * 2}, r"uint8\[2, 2, 3\], expected"),
        ({"clips": [np.zeros((2, 2, 2, 3))] * 2}, "float64"),
        ({"clips": np.zeros((2, 2, 2, 3), np.uint8)}, r"clips is one array, uint8\[2, 2, 2, 3\]: expected a list"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize("env", [("ControlAlign-v0", {}), ("Pendulum-v1", {})])
def test_no_background_to_replace(env):
    with pytest.raises(TypeError, match="whose background is known"):
        DistractingBackground(gym.make(env[0], **env[1]))
