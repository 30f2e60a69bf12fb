"""Rewards on the pixels against closed forms: JPEG size, colourfulness, symmetry, image quality."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from aligngym.rewards import Colourfulness, Compressibility, ImageQuality, Incompressibility, Symmetry

NOISE = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
GREY = np.full((32, 48, 3), 128, np.uint8)


def flat(*colour):
    return np.full((16, 20, 3), colour, np.uint8)


def halves(left, right):
    return np.concatenate([flat(*left), flat(*right)], 1)


def test_jpeg_size_is_that_of_ddpo():
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(buffer, format="JPEG", quality=95)
    (size,) = Incompressibility()([NOISE])
    assert size == len(buffer.getvalue()) / 1000 > 1.0
    assert Compressibility()([NOISE]) == [-size]


def test_jpeg_size_grows_with_detail_and_quality():
    blank, noise = Incompressibility()([GREY, NOISE])
    assert 0 < blank < noise / 3
    assert Incompressibility(50)([NOISE])[0] < noise
    for wrong in (0, 96):
        with pytest.raises(ValueError, match=f"quality must be from 1 to 95, got {wrong}"):
            Compressibility(wrong)


def test_colourfulness_in_closed_form():
    grey_noise = NOISE[..., :1].repeat(3, 2)
    pure = np.hypot(255, 127.5)  # of red: rg = 255, yb = 127.5; of cyan: minus both
    values = Colourfulness()([GREY, grey_noise, flat(255, 0, 0), halves((255, 0, 0), (0, 255, 255)), flat(0, 0, 255)])
    np.testing.assert_allclose(values, [0, 0, 0.3 * pure, pure, 0.3 * 255], atol=1e-12)


def test_symmetry_is_minus_the_mean_difference():
    symmetric = np.concatenate([NOISE, NOISE[:, ::-1]], 1)
    opposite = halves((0, 0, 0), (255, 255, 255))
    quarter = halves((0, 0, 0), (51, 0, 0))  # a fifth, in one channel of three
    assert Symmetry()([symmetric, GREY, opposite]) == [0.0, 0.0, -1.0]
    assert Symmetry()([quarter])[0] == pytest.approx(-1 / 15)
    assert Symmetry("vertical")([opposite]) == [0.0]
    assert Symmetry("vertical")([symmetric])[0] < -0.3
    turned = [image.transpose(1, 0, 2) for image in (symmetric, opposite, NOISE)]
    assert Symmetry("vertical")(turned) == pytest.approx(Symmetry()([symmetric, opposite, NOISE]))


def test_a_blank_image_wins_nothing_by_correlation():
    symmetric = np.concatenate([NOISE, NOISE[:, ::-1]], 1)
    faint = (128 + (symmetric > 128)).astype(np.uint8)  # symmetric, and hardly visible
    opposite = halves((0, 0, 0), (255, 255, 255))
    reward = Symmetry(form="correlation")
    full, none, coloured, trace, reverse = reward([symmetric, GREY, flat(255, 0, 0), faint, opposite])
    assert full > 0.95 and max(abs(none), abs(coloured)) < 1e-12 and 0 < trace < 0.01
    assert reverse == pytest.approx(-0.25 / (0.25 + 0.05**2))
    assert abs(reward([np.random.default_rng(1).integers(0, 256, (200, 200, 3), np.uint8)])[0]) < 0.02
    deviation = (symmetric / 255 - (symmetric / 255).mean((0, 1))).std()
    assert Symmetry(form="correlation", contrast=deviation)([symmetric]) == [pytest.approx(0.5)]


def test_symmetry_refuses():
    for options, message in (({"axis": "x"}, "axis must"), ({"form": "x"}, "form must"), ({"contrast": 0}, "contrast")):
        with pytest.raises(ValueError, match=message):
            Symmetry(**options)


def test_ssim_in_closed_form():
    dark, light = np.full((8, 8, 3), 50, np.uint8), np.full((8, 8, 3), 150, np.uint8)
    constant = (0.01 * 255) ** 2
    expected = (2 * 50 * 150 + constant) / (50**2 + 150**2 + constant)  # without variance only the luminance is left
    values = ImageQuality("ssim")([dark, dark, NOISE], reference=[light, dark, NOISE])
    assert values == [pytest.approx(expected), pytest.approx(1), pytest.approx(1)]


def test_psnr_in_closed_form():
    values = ImageQuality("psnr")([GREY, GREY], reference=[GREY + np.uint8(5), GREY])
    assert values == [pytest.approx(20 * np.log10(255 / 5)), 100.0]


def test_references():
    reward = ImageQuality("ssim", column="target")
    scores = reward.score([GREY] * 4, target=[None, Image.fromarray(GREY), NOISE[:8], "text"])
    np.testing.assert_allclose(scores.values, [np.nan, 1, np.nan, np.nan])
    assert scores.reasons[:3] == [None, None, "ValueError: the reference has shape (8, 48, 3), the image (32, 48, 3)"]
    assert scores.reasons[3].startswith("TypeError: an image must be")
    with pytest.raises(ValueError, match="ImageQuality reads column 'target'; columns given: none"):
        reward.score([GREY])
    assert reward.score([GREY[:5]], target=[GREY[:5]]).reasons[0].startswith("ValueError: win_size exceeds")


def test_sharpness_falls_with_blur():
    picture = Image.fromarray(NOISE)
    images = [GREY, *(picture.filter(ImageFilter.GaussianBlur(radius)) for radius in (3, 1, 0))]
    values = ImageQuality("sharpness")(images)
    assert values == sorted(values) and values[0] == 0.0 and 0.8 < values[-1] < 1.0


def test_noise_is_estimated():
    rng = np.random.default_rng(0)
    for sigma in (2.0, 10.0):
        noisy = np.clip(np.rint(128 + sigma * rng.standard_normal((256, 256, 3))), 0, 255).astype(np.uint8)
        assert ImageQuality("noise")([noisy])[0] == pytest.approx(-sigma, rel=0.05)
    one_channel = GREY.copy()
    one_channel[..., 0] = NOISE[..., 0]
    values = ImageQuality("noise")([GREY, one_channel, NOISE])
    assert abs(values[0]) < 1e-12 and values[2] < values[1] < -5.0


def test_unknown_measure():
    with pytest.raises(ValueError, match="measure must be one of 'ssim', 'psnr', 'sharpness', 'noise', got 'brisque'"):
        ImageQuality("brisque")
