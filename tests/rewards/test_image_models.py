"""Rewards on CLIP, on a small random CLIPModel with its own tokenizer and image processor, made on the spot."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from aligngym.rewards import Aesthetic, ClipScore, PickScore, as_reward

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (*size, 3), np.uint8) for size in ((32, 32), (20, 50), (64, 64), (32, 32), (48, 30))]
PROMPTS = ["a cat", "the dog ran", "a", "cat cat dog " * 30, "the cat\ud800"]
WIDTH = 12


def save_tokenizer(folder):
    """CLIP's byte-level tokenizer with single characters and a few merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    merges = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>"), ("t", "h"), ("th", "e</w>")]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=16).save_pretrained(folder)
    return len(vocabulary)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    size = save_tokenizer(path)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": size, "max_position_embeddings": 16, "bos_token_id": size - 2, "eos_token_id": size - 1}
    vision = {"image_size": 24, "patch_size": 8}
    config = CLIPConfig(text_config=layers | text, vision_config=layers | vision, projection_dim=WIDTH)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = CLIPModel(config)
        for parameter in model.parameters():
            parameter.data.add_(0.2 * torch.randn_like(parameter))  # the fresh one hardly tells inputs apart
        model.logit_scale.data.fill_(np.log(40.0))
        model.save_pretrained(path)
    CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def direct(folder):
    """What transformers itself computes, one pair at a time: ``exp(logit_scale) cos`` and the image embedding."""
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    processor, logits, embeddings = CLIPImageProcessor.from_pretrained(folder), [], []
    for image, prompt in zip(IMAGES, PROMPTS, strict=True):
        pixels = processor(images=Image.fromarray(image), return_tensors="pt")
        tokens = tokenizer(prompt.replace("\ud800", "?"), return_tensors="pt", truncation=True, max_length=16)
        with torch.inference_mode():
            out = model(**tokens, **pixels)
        logits.append(out.logits_per_image.item())
        embeddings.append(out.image_embeds[0])
    return np.array(logits), torch.stack(embeddings)


def test_pick_score_is_the_logit(folder, direct):
    np.testing.assert_allclose(PickScore(folder)(IMAGES, PROMPTS), direct[0], rtol=1e-4, atol=1e-4)
    assert np.std(direct[0]) > 0.1  # the model tells them apart, or the test could not fail


def test_clip_score_is_a_cosine_that_is_not_negative(folder, direct):
    cosines = direct[0] / 40
    assert cosines.min() < -0.01 and cosines.max() > 0.01
    values = ClipScore(folder)(IMAGES, PROMPTS)
    np.testing.assert_allclose(values, 2.5 * np.maximum(cosines, 0), rtol=1e-4, atol=1e-5)
    pictures = [Image.fromarray(image) for image in IMAGES]
    np.testing.assert_allclose(ClipScore(folder, scale=1.0)(pictures, PROMPTS), np.maximum(cosines, 0), atol=1e-5)
    prefixed = ClipScore(folder, prefix="the ")(IMAGES[:3], ["cat", "dog ran", "a"])
    np.testing.assert_allclose(prefixed, ClipScore(folder)(IMAGES[:3], ["the cat", "the dog ran", "the a"]), atol=1e-6)


@pytest.mark.parametrize("reward", [ClipScore, PickScore])
def test_batches_do_not_matter(folder, reward):
    made = reward(folder, batch_size=1)
    one_by_one = made(IMAGES, PROMPTS)
    np.testing.assert_allclose(reward(folder, batch_size=4)(IMAGES, PROMPTS), one_by_one, atol=1e-4)
    np.testing.assert_allclose(
        made.images(IMAGES, PROMPTS, {}), one_by_one, atol=1e-4
    )  # a batch that raises shows here


def test_one_sample_that_fails_costs_no_other(folder):
    whole = PickScore(folder)(IMAGES, PROMPTS)
    scores = PickScore(folder).score([*IMAGES[:2], "text", *IMAGES[3:]], [*PROMPTS[:4], 3])
    np.testing.assert_allclose(scores.values[[0, 1, 3]], np.array(whole)[[0, 1, 3]], atol=1e-4)
    assert scores.failed.tolist() == [False, False, True, False, True]
    assert scores.reasons[2].startswith("TypeError: an image must be")
    with pytest.raises(ValueError, match="PickScore needs prompts, got None"):
        PickScore(folder).score(IMAGES)


def heads(folder):
    torch.manual_seed(0)
    linear = torch.nn.Linear(WIDTH, 1)
    deep = torch.nn.Sequential(*(torch.nn.Linear(a, b) for a, b in [(WIDTH, 9), (9, 8), (8, 3), (3, 1)]))
    names = [0, 2, 4, 10]  # the published file has gaps, and 10 must come after 4
    state = {f"layers.{n}.{k}": v for n, layer in zip(names, deep, strict=True) for k, v in layer.state_dict().items()}
    torch.save(linear.state_dict(), folder / "linear.pth")
    torch.save(dict(reversed(state.items())), folder / "deep.pth")
    return linear, deep


def test_aesthetic_heads(folder, direct, tmp_path):
    linear, deep = heads(tmp_path)
    for file, head, relu in (("linear.pth", linear, False), ("deep.pth", deep, False), ("deep.pth", deep, True)):
        layers = list(head.children()) or [head]
        between = [part for layer in layers for part in (layer, torch.nn.ReLU())][:-1] if relu else layers
        expected = torch.nn.Sequential(*between)(direct[1])[:, 0].detach().numpy()
        values = Aesthetic(folder, weights=tmp_path / file, relu=relu, batch_size=2)(IMAGES)
        np.testing.assert_allclose(values, expected, atol=1e-5)
        assert np.std(expected) > 1e-3


def test_aesthetic_reads_safetensors(folder, tmp_path):
    from safetensors.torch import save_file

    linear, _ = heads(tmp_path)
    save_file(linear.state_dict(), tmp_path / "linear.safetensors")
    rewards = [Aesthetic(folder, weights=tmp_path / f"linear.{end}") for end in ("pth", "safetensors")]
    values = [reward(IMAGES) for reward in rewards]
    assert values[0] == pytest.approx(values[1], rel=1e-5)  # where a file is mapped to, sums may round otherwise
    (one,), (other,) = (reward._head for reward in rewards)
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_aesthetic_refuses_other_files(folder, tmp_path):
    torch.save(torch.nn.Linear(WIDTH + 1, 1).state_dict(), tmp_path / "wide.pth")
    torch.save(torch.nn.Conv2d(1, 1, 3).state_dict(), tmp_path / "convolution.pth")
    torch.save(torch.nn.Linear(WIDTH, 1), tmp_path / "module.pth")
    with pytest.raises(ValueError, match=r"weights must lead from 12 values to 1; those of .*wide.pth have \[13, 1\]"):
        Aesthetic(folder, weights=tmp_path / "wide.pth").score(IMAGES)
    with pytest.raises(
        ValueError, match=r"state dict of linear layers with biases; .*convolution.pth has weight, bias"
    ):
        Aesthetic(folder, weights=tmp_path / "convolution.pth").score(IMAGES)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):  # a pickled object is not run
        Aesthetic(folder, weights=tmp_path / "module.pth").score(IMAGES)
    with pytest.raises(ValueError, match="reward 'aesthetic' cannot be built"):
        as_reward("aesthetic")


def test_the_processor_may_lie_elsewhere(folder, direct, tmp_path):
    CLIPModel.from_pretrained(folder).save_pretrained(tmp_path)
    values = PickScore(tmp_path, processor=folder)(IMAGES, PROMPTS)
    np.testing.assert_allclose(values, direct[0], rtol=1e-4, atol=1e-4)
    with pytest.raises(OSError, match=r"preprocessor_config\.json|tokenizer"):
        PickScore(tmp_path).load()


def test_json_and_pickle(folder):
    reward = PickScore(folder, processor=folder)
    assert as_reward(json.loads(json.dumps(reward.to_dict()))) == reward
    first = reward(IMAGES, PROMPTS)
    assert len(pickle.dumps(reward)) < 1000  # without the model
    assert pickle.loads(pickle.dumps(reward))(IMAGES, PROMPTS) == first
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        ClipScore(folder, batch_size=0)
