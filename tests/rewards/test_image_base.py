"""What all rewards on images share: what they take, whom an error costs, batches, and names with an argument."""

import pickle
import subprocess
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

from aligngym.rewards import (
    ClipScore,
    Colourfulness,
    Compressibility,
    ImageReward,
    Regex,
    Symmetry,
    as_reward,
    register_reward,
)
from aligngym.rewards.image import image_of


def flat(value, shape=(4, 6)):
    return np.full((*shape, 3), value, np.uint8)


@dataclass
class Brightness(ImageReward):
    """Mean value, of one image at a time; an image of 13 raises, one of 7 does not apply, 9 gives infinity."""

    name: str | None = field(default="brightness", kw_only=True)

    def image(self, image, prompt, row):
        value = float(image.mean())
        if value == 13:
            raise RuntimeError("unlucky")
        return {7.0: None, 9.0: np.inf}.get(value, value)


@dataclass
class Batched(ImageReward):
    """Brightness plus what prompt and columns say, in batches; a batch with an image of 13 raises."""

    batch_size: int = 2
    seen: list = field(default_factory=list, kw_only=True)

    def required_columns(self):
        return ("bonus",)

    def images(self, batch, prompts, columns):
        self.seen.append((len(batch), prompts, columns))
        if any(image.mean() == 13 for image in batch):
            raise RuntimeError("unlucky")
        bonus = columns["bonus"] if isinstance(columns["bonus"], list) else [columns["bonus"]] * len(batch)
        return [float(image.mean()) + b for image, b in zip(batch, bonus, strict=True)]


def test_arrays_and_pil_images_are_images():
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    assert image_of(pixels) is pixels
    np.testing.assert_array_equal(image_of(Image.fromarray(pixels)), pixels)
    np.testing.assert_array_equal(image_of(Image.fromarray(pixels).convert("RGBA")), pixels)
    np.testing.assert_array_equal(image_of(Image.fromarray(pixels[..., 0])), pixels[..., :1].repeat(3, 2))
    assert Brightness()([pixels, Image.fromarray(pixels)]) == [pixels.mean(), pixels.mean()]
    assert Brightness()(np.stack([flat(1), flat(2)])) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("wrong", "given"),
    [
        ("a red fox", "a str"),
        ([{"role": "assistant", "content": "a red fox"}], "a list"),
        (None, "a NoneType"),
        (np.zeros((4, 4, 3), np.float32), r"float32 \[4, 4, 3\]"),
        (np.zeros((3, 4, 4), np.uint8), r"uint8 \[3, 4, 4\]"),
        (np.zeros((4, 4), np.uint8), r"uint8 \[4, 4\]"),
    ],
)
def test_anything_else_fails_with_a_type_error_as_reason(wrong, given):
    with pytest.raises(TypeError, match=rf"an image must be a uint8 array \[H, W, 3\] or a PIL image, got {given}"):
        image_of(wrong)
    scores = Brightness().score([flat(3), wrong])
    assert scores.values[0] == 3 and scores.reasons[0] is None
    assert np.isnan(scores.values[1]) and scores.reasons[1].startswith("TypeError: an image must be")


def test_an_image_without_pixels_fails():
    assert Brightness().score([flat(0, (0, 3))]).reasons == [
        "ValueError: an image must have pixels, got shape (0, 3, 3)"
    ]


def test_an_error_costs_its_image_only():
    scores = Brightness().score([flat(1), flat(13), flat(7), flat(9), flat(2)])
    np.testing.assert_array_equal(scores.values, [1, np.nan, np.nan, np.nan, 2])
    assert scores.reasons == [None, "RuntimeError: unlucky", None, "returned inf", None]
    np.testing.assert_array_equal(scores.terms["brightness"], scores.values)


def test_batches_get_their_own_prompts_and_columns():
    reward = Batched(batch_size=2)
    images = [flat(1), "text", flat(2), flat(3)]
    scores = reward.score(images, list("abcd"), bonus=[10, 20, 30, 40], same="x")
    np.testing.assert_array_equal(scores.values, [11, np.nan, 32, 43])
    assert reward.seen == [
        (2, ["a", "c"], {"bonus": [10, 30], "same": "x"}),
        (1, ["d"], {"bonus": [40], "same": "x"}),
    ]
    assert Batched(batch_size=3)(images[2:], bonus=0.5) == [2.5, 3.5]


def test_a_batch_that_raises_is_scored_one_by_one():
    reward = Batched(batch_size=3)
    scores = reward.score([flat(1), flat(13), flat(2), flat(4)], bonus=[1, 2, 3, 4])
    np.testing.assert_array_equal(scores.values, [2, np.nan, 5, 8])
    assert scores.reasons == [None, "RuntimeError: unlucky", None, None]
    assert [count for count, _, _ in reward.seen] == [3, 1, 1, 1, 1]


def test_errors_of_the_set_up_are_raised():
    with pytest.raises(ValueError, match="Batched reads column 'bonus'; columns given: other"):
        Batched().score([flat(1)], other=[1])
    with pytest.raises(ValueError, match="ClipScore needs prompts, got None"):
        ClipScore("folder").score([flat(1)])

    class TooFew(Batched):
        def images(self, batch, prompts, columns):
            return [1.0]

    with pytest.raises(ValueError, match=r"TooFew\.images returned 1 values for 2 images"):
        TooFew().score([flat(1), flat(2)], bonus=0)
    assert ImageReward().score([flat(1)]).reasons == [
        "NotImplementedError: ImageReward defines neither image nor images"
    ]


def test_rewards_on_images_and_on_text_compose():
    images = [flat(0), np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)]
    scores = (0.5 * Compressibility() + Symmetry().clip(-0.2, 0.0)).score(images)
    parts = [Compressibility()(images), Symmetry()(images)]
    np.testing.assert_allclose(scores.values, [0.5 * c + max(s, -0.2) for c, s in zip(*parts, strict=True)])
    assert set(scores.terms) == {"compressibility", "symmetry"}
    with pytest.raises(TypeError, match="a text must be a str or a list of chat messages, got ndarray"):
        Regex("a").score(images)


def test_names_with_an_argument():
    assert as_reward("symmetry:vertical") == Symmetry(axis="vertical")
    assert as_reward("compressibility:80") == Compressibility(quality=80)
    assert type(as_reward("compressibility:80").quality) is int
    assert as_reward("ocr:10:30").target == "10:30" and as_reward("clip_score:a/b").model == "a/b"
    assert as_reward("aesthetic:head.pth").weights == "head.pth"
    assert as_reward("symmetry") == Symmetry()
    register_reward("test_image_base:whole", Symmetry)
    assert as_reward("test_image_base:whole") == Symmetry()  # a registered name may have a colon
    assert as_reward(as_reward("symmetry:vertical").to_dict()) == Symmetry(axis="vertical")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("symmetry:diagonal", "'symmetry:diagonal': axis must be 'horizontal' or 'vertical', got 'diagonal'"),
        ("compressibility:low", "'compressibility:low': invalid literal for int"),
        ("compressibility:", "'compressibility:': invalid literal for int"),
        ("colourfulness:2", "'colourfulness' has no main argument, so that nothing may follow its name"),
        ("story_sentiment:3", "'story_sentiment' has no main argument"),
        ("symetry:vertical", "unknown reward 'symetry'; registered rewards: .*symmetry"),
        (":vertical", "unknown reward ''"),
    ],
)
def test_wrong_arguments_are_told(name, message):
    with pytest.raises(ValueError, match=message):
        as_reward(name)


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)  # how Python itself is told that a module cannot be imported
    with pytest.raises(ImportError, match=r"Compressibility needs PIL\.Image: pip install 'aligngym\[image\]'"):
        Compressibility().score([flat(1)])
    assert Colourfulness()([flat(1)]) == [0.0]  # needs none


def test_importing_the_rewards_loads_no_image_library():
    code = (
        "import sys, aligngym.rewards; print({'PIL', 'torch', 'skimage', 'cv2', 'transformers'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_rewards_pickle():
    assert pickle.loads(pickle.dumps(Symmetry("vertical"))) == Symmetry("vertical")
