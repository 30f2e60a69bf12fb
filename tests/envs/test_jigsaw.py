"""VisualJigsaw-v0: what it shows, which order is right, what it cuts and what it leaves out."""

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

from aligngym.envs.gui.puzzles import load_puzzles, smallest_difference
from aligngym.rewards import Jigsaw


def noisy(count=1, height=48, width=96, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def make(**options):
    return gym.make("VisualJigsaw-v0", **{"source": noisy(2), "rows": 1, **options}).unwrapped


def make_vec(count, **options):
    return gym.make_vec("VisualJigsaw-v0", num_envs=count, **{"source": noisy(2), "rows": 1, **options})


def test_a_three_cycle_tells_the_inverse_from_the_permutation() -> None:
    """Shown are originals 2, 3, 1: the pieces of places 1, 2, 3 are in slots 3, 1, 2. The forward reading is wrong."""
    env, picture = make(reward=Jigsaw(partial=False)), noisy(2)[0]
    for seed in range(100):
        tiles = env.reset(seed=seed, options={"prompt_index": 0})[0]["tiles"]
        if env.batch._shown[0].tolist() == [1, 2, 0]:
            break
    for slot, original in enumerate([1, 2, 0]):
        assert np.array_equal(tiles[slot], picture[:, 32 * original : 32 * original + 32])
    right, forward = np.array([3, 1, 2]), np.array([2, 3, 1])
    assert np.array_equal(np.hstack(tiles[right - 1]), picture)
    for answer, reward in ((right, 1.2), (forward, 0.2)):
        env.reset(seed=seed, options={"prompt_index": 0})
        _, given, terminated, truncated, info = env.step(answer)
        assert given == pytest.approx(reward) and (terminated, truncated) == (True, False)
        assert info["reward/exact"] == float(reward > 1) and info["order"] == [3, 1, 2]
        assert info["completion"] == ", ".join(map(str, answer)) and info["prompt_index"] == 0
        assert "1 rows and 3 columns" in info["prompt"] and info["columns"] == {"order": [3, 1, 2]}


def test_the_right_order_puts_every_screenshot_together() -> None:
    env = make_vec(8, source="screens", rows=3, split="validation")
    tiles = env.reset(seed=0)[0]["tiles"]
    assert tiles.shape == (8, 9, 96, 128, 3) and env.num_pieces == 9
    orders = np.stack([env.order(row) for row in range(8)])
    assert len({tuple(order) for order in orders}) == 8
    for row in range(8):
        ordered = tiles[row][orders[row] - 1].reshape(3, 3, 96, 128, 3).swapaxes(1, 2).reshape(288, 384, 3)
        screen = env.puzzles.index[env._index[row]]
        assert np.array_equal(ordered, env.puzzles.pictures.pixels(screen, 384, 288)[0])
    _, rewards, *_, infos = env.step(orders)
    assert rewards == pytest.approx(1.2) and infos["final_info"]["reward/exact"].all()


def test_partial_credit_and_numbers_given_twice() -> None:
    env = make_vec(3, source=noisy(), columns=6)
    env.reset(seed=1)
    answers = np.stack([env.order(row) for row in range(3)])
    answers[0, [0, 1]] = answers[0, [1, 0]]  # four of six places are right
    answers[1, 0] = answers[1, 1]  # five are, but this is no permutation
    _, rewards, *_, infos = env.step(answers)
    assert rewards == pytest.approx([0.2 + 0.2 * 4 / 6, 0.2, 1.2])
    assert infos["final_info"]["reward/fraction"] == pytest.approx([4 / 6, 5 / 6, 1])
    assert infos["final_info"]["reward/exact"].tolist() == [0, 0, 1]


def test_rows_of_equal_seeds_share_picture_and_order() -> None:
    env = make_vec(6, columns=6, source=noisy(20, 48, 96))
    env.reset(seed=[4, 4, 4, 7, 7, 7])
    assert len({(int(i), *s) for i, s in zip(env._index, env._shown.tolist(), strict=True)}) == 2
    env.reset(seed=list(range(6)), options={"prompt_index": 3})
    assert (env._index == 3).all() and len({tuple(s) for s in env._shown}) > 3


def test_a_pan_is_a_window_that_moves_down_one_screenshot() -> None:
    env = make_vec(1, source="video", split="validation")
    tiles = env.reset(seed=2)[0]["tiles"][0]
    assert tiles.shape == (6, 144, 384, 3)
    frames = tiles[env.order(0) - 1]
    page = env.puzzles.pictures.pixels(env.puzzles.index[env._index[0]], 384, 288)[0]
    for frame, top in zip(frames, (0, 29, 58, 86, 115, 144), strict=True):
        assert np.array_equal(frame, page[top : top + 144])
    assert "frames of a video" in env.prompt


def test_clips_and_folders(tmp_path) -> None:
    clips = noisy(2 * 4, 40, 50).reshape(2, 4, 40, 50, 3)
    env = make_vec(2, source=list(clips))
    tiles = env.reset(options={"prompt_index": [0, 1]})[0]["tiles"]
    assert tiles.shape == (2, 4, 32, 48, 3), "sides are cut to multiples of 16"
    assert "frames of a video" in env.prompt
    whole = make_vec(1, source=clips[:, :, :32, :48])
    tiles = whole.reset(options={"prompt_index": 1})[0]["tiles"][0]
    assert np.array_equal(tiles[whole.order(0) - 1], clips[1][:, :32, :48])
    for number, picture in enumerate(noisy(3)):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no image")
    folder = make(source=str(tmp_path))
    assert folder.batch.num_prompts == 3 and folder.observation_space["tiles"].shape == (3, 48, 32, 3)
    assert np.array_equal(folder.batch.puzzles.pieces(1), load_puzzles(noisy(3), rows=1).pieces(1))


def test_pictures_of_other_sizes_are_scaled_to_cover() -> None:
    wide = np.zeros((32, 200, 3), np.uint8)
    wide[:, 84:116] = 255  # the middle square, which alone is kept
    puzzles = load_puzzles([wide], rows=2, columns=2, height=32, width=32)
    assert puzzles.piece == (16, 16) and (puzzles.pieces(0) == 255).all()


def test_flat_pictures_are_left_out() -> None:
    flat, half = np.full((1, 48, 96, 3), 200, np.uint8), noisy(seed=1)
    half[:, :, :64] = 255  # two of three tiles are alike
    faint = noisy(seed=2)
    faint[:, :, 32:64] = np.clip(faint[:, :, :32].astype(int) + 1, 0, 255)
    both = np.concatenate([flat, noisy(), half, faint])
    env = make(source=both)
    assert env.batch.num_prompts == 1 and list(env.batch.puzzles.index) == [1]
    assert make(source=both, min_difference=0.5).batch.num_prompts == 2
    assert make(source=both, min_difference=0).batch.num_prompts == 4
    assert smallest_difference(load_puzzles(both, rows=1).pieces(3)) == pytest.approx(1, abs=0.1)
    with pytest.raises(ValueError, match="none of the 1 puzzles of 1 arrays has pieces"):
        make(source=flat)


def test_shipped_screenshots_that_are_left() -> None:
    for split, least in (("train", 400), ("validation", 20), ("test", 60)):
        env = make_vec(1, source="screens", rows=3, split=split)
        assert least <= env.num_prompts < len(env.puzzles.pictures.images)
        rng = np.random.default_rng(0)
        for number in rng.choice(env.num_prompts, 5):
            assert smallest_difference(env.puzzles.pieces(int(number))) >= 2


def test_rendered_frames_say_what_is_right() -> None:
    env = make(source=noisy(1, 96, 288), render_mode="rgb_array")
    env.reset(seed=0)
    shown = env.render()
    order = env.batch.order(0)
    env.step(order)
    right = env.render()
    env.reset(seed=0)
    env.step(np.roll(order, 1))
    wrong = env.render()
    assert shown.shape == right.shape == (96 + 8 + 21, 2 * 3 * 104 + 16, 3)

    def has(picture, colour):
        return (picture[:, 330:] == colour).all(-1).sum() > 1000

    green, red = (0, 150, 60), (220, 0, 40)
    assert [has(p, green) for p in (shown, right, wrong)] == [False, True, False]
    assert [has(p, red) for p in (shown, right, wrong)] == [False, False, True]
    assert np.array_equal(shown[20:, :310], right[20:, :310])
    pieces = [right[25:121, 328 + 104 * i + 4 :][:, :96] for i in range(3)]
    for i, piece in enumerate(pieces):  # below the number in its corner
        assert np.array_equal(piece[20:], env.batch.puzzles.pieces(0)[i][20:])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"source": "vidoe"}, FileNotFoundError, "'vidoe', expected 'screens', 'video' or a folder"),
        ({"source": 3}, TypeError, "source is a int"),
        ({"source": []}, ValueError, r"source has \[\]"),
        ({"source": noisy().astype(float)}, ValueError, "float64"),
        ({"source": [noisy()[0], noisy(6)]}, ValueError, "expected uint8 images"),
        ({"source": [noisy(4), noisy(6)]}, ValueError, "clips .* of one K"),
        ({"columns": 1}, ValueError, "have one piece"),
        ({"columns": 7}, ValueError, "smaller than 16x16"),
        ({"rows": 0}, ValueError, "rows is 0"),
        ({"height": -1}, ValueError, "height is -1"),
        ({"min_difference": -1}, ValueError, "min_difference is -1"),
        ({"min_difference": float("nan")}, ValueError, "min_difference is nan"),
        ({"source": "screens", "split": "tset"}, ValueError, "tset"),
        ({"reward": "jigswa"}, ValueError, "unknown reward 'jigswa'"),
    ],
)
def test_bad_arguments_are_named(options, error, message) -> None:
    with pytest.raises(error, match=message):
        make(**options)


def test_a_reward_that_fails_is_no_zero() -> None:
    env = make(reward=lambda completions, order, **_: [float("nan")] * len(order))
    env.reset(seed=0)
    _, reward, *_, info = env.step(np.array([1, 2, 3]))
    assert np.isnan(reward) and "invalid" in info and info["reward/exact"] in (0, 1)
