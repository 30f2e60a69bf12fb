"""The image classifier as reward and as features: the embedded one, and small random ones of a user's own."""

import json
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from aligngym.assets import validation_images_path
from aligngym.rewards import ImageClassifier, as_reward, frechet_distance
from aligngym.rewards._emoji_classifier import EmojiClassifier
from aligngym.rewards.image_classifier import read_words

WORDS = ("dog", "hot", "hot dog", "red", "star")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The folder of a random classifier whose outputs differ clearly from image to image."""
    folder = tmp_path_factory.mktemp("own")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = EmojiClassifier(WORDS, size=16, channels=(4, 6, 8), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
        torch.nn.init.normal_(model.head.weight, std=5)
    model.save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    blocks = rng.integers(256, size=(5, 4, 4, 3), dtype=np.uint8)
    return list(blocks.repeat(4, 1).repeat(4, 2))


@pytest.fixture(scope="module")
def validation():
    with np.load(validation_images_path()) as data:
        return list(data["images"]), data["captions"].tolist()


# -- the words of a text -----------------------------------------------------------------------------------------------
def test_a_phrase_is_one_word():
    assert read_words("A Hot  Dog, a dog!") == ["a", "hot", "dog"]
    assert read_words("A Hot  Dog, a dog!", {"hot dog"}) == ["a", "hot dog", "dog"]
    assert read_words("hot dogs", {"hot dog"}) == ["hot", "dogs"]
    assert read_words("police car light", ["police car", "police car light"]) == ["police car light"]
    assert read_words("") == []


# -- values ------------------------------------------------------------------------------------------------------------
def test_outputs_agree_with_one_another_and_with_the_network(own, images):
    logits = EmojiClassifier.load(own)(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255).detach().numpy()
    values = {
        o: ImageClassifier("star", o, own).score(images).values for o in ("logit", "probability", "log_probability")
    }
    np.testing.assert_allclose(values["logit"], logits[:, 4], rtol=1e-5)
    np.testing.assert_allclose(values["probability"], 1 / (1 + np.exp(-values["logit"])))
    np.testing.assert_allclose(values["log_probability"], np.log(values["probability"]))
    np.testing.assert_array_equal(ImageClassifier("star", model=own).score(images).values, values["probability"])
    assert np.ptp(values["logit"]) > 0.3


def test_certain_images_keep_a_finite_log_probability(own, images, tmp_path):
    model = EmojiClassifier.load(own)
    model.head.bias.data.fill_(-5000)
    model.save(tmp_path)
    assert (ImageClassifier("dog", "log_probability", tmp_path).score(images).values < -4000).all()
    assert ImageClassifier("dog", model=tmp_path)(images) == [0.0] * 5


def test_without_a_word_the_known_words_of_the_prompt_are_averaged(own, images):
    words = {word: ImageClassifier(word, "log_probability", own).score(images).values for word in WORDS}
    prompts = ["Red dog", "a hot dog on fire", "hot, dog", "unicorn", "star"]
    scores = ImageClassifier(model=own).score(images, prompts)
    expected = [
        (words["red"][0] + words["dog"][0]) / 2, words["hot dog"][1], words["hot dog"][2], np.nan, words["star"][4],
    ]  # fmt: skip
    np.testing.assert_allclose(scores.values, expected)
    assert scores.reasons == [None] * 5  # the unicorn does not apply, which is no failure
    probabilities = ImageClassifier(output="probability", model=own).score(images, prompts).values
    assert probabilities[0] == pytest.approx((np.exp(words["red"][0]) + np.exp(words["dog"][0])) / 2)


def test_batches_do_not_matter(own, images):
    together, alone = (ImageClassifier("dog", "logit", own, batch_size=n).score(images).values for n in (64, 1))
    np.testing.assert_allclose(together, alone, atol=1e-6)
    many, few = (ImageClassifier(model=own, batch_size=n).embed(images) for n in (64, 2))
    np.testing.assert_allclose(many, few, atol=1e-6)
    assert many.shape == (5, 8)
    assert many.dtype == np.float32
    assert (many >= 0).all()


def test_other_sizes_are_resized_by_area(own, images):
    reward = ImageClassifier("dog", "logit", own)
    expected = reward.score(images).values
    np.testing.assert_allclose(reward.score([x.repeat(3, 0).repeat(2, 1) for x in images]).values, expected, atol=1e-5)
    mixed = [images[0], images[1].repeat(2, 0).repeat(2, 1), Image.fromarray(images[2])]
    np.testing.assert_allclose(reward.score(mixed).values, expected[:3], atol=1e-5)
    fine = np.indices((32, 32)).sum(0)[..., None].repeat(3, 2) % 2 * np.uint8(200)  # a chequerboard, grey from afar
    grey = np.full((16, 16, 3), 100, np.uint8)
    np.testing.assert_allclose(reward([fine.astype(np.uint8)]), reward([grey]), atol=1e-5)
    small = [image[::4, ::4] for image in images]  # one pixel a block
    np.testing.assert_allclose(reward.score(small).values, expected, atol=1e-5)


# -- what it is given --------------------------------------------------------------------------------------------------
def test_its_forms(own):
    assert as_reward("image_classifier:hot dog") == ImageClassifier("hot dog")
    assert as_reward("image_classifier") == ImageClassifier()
    reward = ImageClassifier("dog", "logit", own, name="dogs")
    assert as_reward(json.loads(json.dumps(reward.to_dict()))) == reward
    reward.load()
    assert pickle.loads(pickle.dumps(reward))._loaded is None
    assert reward.words == WORDS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "loss"}, "output must be 'probability', 'log_probability', 'logit' or None, got 'loss'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_what_is_refused_at_once(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ImageClassifier(**options)


def test_what_is_refused_at_use(own, images, tmp_path):
    with pytest.raises(ValueError, match=r"one of the 5 words of .*near: 'star'.*got 'stars'"):
        ImageClassifier("stars", model=own).score(images)
    with pytest.raises(ValueError, match="needs prompts where word is None"):
        ImageClassifier(model=own).score(images)
    with pytest.raises(FileNotFoundError, match=r"no config\.json in"):
        ImageClassifier("dog", model=tmp_path).load()
    with pytest.raises(TypeError, match="an image must be"):
        ImageClassifier(model=own).embed(["a text"])
    with pytest.raises(ValueError, match="images is empty"):
        ImageClassifier(model=own).embed([])


def test_a_text_costs_itself_and_no_other(own, images):
    scores = ImageClassifier("dog", model=own).score([images[0], "a text"])
    assert scores.reasons[0] is None
    assert "TypeError: an image must be" in scores.reasons[1]


def test_a_damaged_folder_says_so(own, tmp_path):
    EmojiClassifier.load(own).save(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**settings, "words": settings["words"][1:]}), "utf-8")
    with pytest.raises(ValueError, match="cannot be read"):
        ImageClassifier("dog", model=tmp_path).load()


def test_naming_it_loads_neither_torch_nor_pillow():
    code = (
        "import sys, numpy as np; from aligngym.rewards import as_reward; as_reward('image_classifier:dog');"
        "print(sorted({'torch', 'PIL'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- the embedded classifier -------------------------------------------------------------------------------------------
def test_it_knows_faces_and_hearts(validation):
    images, captions = validation
    for word in ("face", "heart"):
        there = np.array([word in caption.split() for caption in captions])
        values = ImageClassifier(word).score(images).values
        assert values[there].mean() > 0.75
        assert values[~there].mean() < 0.03


def test_a_prompt_fits_its_own_image(validation):
    images, captions = validation
    reward = ImageClassifier()
    right = reward.score(images, captions).values
    wrong = reward.score(images, captions[1:] + captions[:1]).values
    assert (~np.isnan(right)).mean() > 0.8  # names that few sets draw have no word that is known
    both = ~np.isnan(right) & ~np.isnan(wrong)
    assert (right > wrong)[both].mean() > 0.9


def test_the_distance_of_its_features_grows_with_the_damage(validation):
    images = np.stack(validation[0])
    classifier, rng = ImageClassifier(), np.random.default_rng(0)
    features = classifier.embed(images[::2])
    distances = [frechet_distance(features, classifier.embed(images[1::2]))]  # other emoji, none of them damaged
    for deviation in (32, 64, 128):
        noisy = images[1::2] + rng.normal(0, deviation, images[1::2].shape)
        distances.append(frechet_distance(features, classifier.embed(noisy.clip(0, 255).astype(np.uint8))))
    assert distances == sorted(distances)
    assert distances[-1] > 5 * distances[0]
