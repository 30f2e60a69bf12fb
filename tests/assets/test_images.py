"""Embedded image prompts, validation images and the image classifier's folder."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from aligngym.assets import image_prompts_path, model_path, validation_images_path


def captions(split):
    return [json.loads(line)["prompt"] for line in image_prompts_path(split).read_text("utf-8").splitlines()]


def test_image_prompts_are_disjoint_and_of_known_words():
    train, evaluation = captions("train"), captions("eval")
    assert (len(train), len(evaluation)) == (160, 40)
    assert len({*train, *evaluation}) == 200
    known = {word for entry in config()["words"] for word in entry.split()}  # a subset of the generators' words
    assert {word for caption in train + evaluation for word in caption.split()} <= known
    assert "dog face" in train


def test_image_prompts_are_in_the_order_of_their_names():
    """So that a new choice shows as a small difference, and a row's number says nothing."""
    assert all(captions(split) == sorted(captions(split)) for split in ("train", "eval"))


def test_validation_images():
    assert validation_images_path().stat().st_size <= 600_000
    data = np.load(validation_images_path())
    assert data["images"].shape == (480, 32, 32, 3)
    assert data["images"].dtype == np.uint8
    assert set(data["styles"]) == {"noto", "classic", "flat", "shaded"}
    pairs = set(zip(data["captions"].tolist(), data["styles"].tolist(), strict=True))
    assert len(pairs) == 480
    corners = data["images"][:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners >= 250).all(-1).mean() > 0.6  # most have a white background


def config():
    return json.loads((Path(model_path("emoji-classifier")) / "config.json").read_text("utf-8"))


def test_the_classifier_is_small_and_describes_itself():
    folder = Path(model_path("emoji-classifier"))
    assert {path.name for path in folder.iterdir()} == {"README.md", "model.safetensors", "config.json", "report.json"}
    assert (folder / "model.safetensors").stat().st_size <= 1_000_000
    weights = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert sum(tensor.numel() for tensor in weights.values()) <= 500_000
    assert len(config()["words"]) == len(set(config()["words"])) == len(weights["head.bias"])


def test_the_images_carry_their_licences():
    text = (validation_images_path().parent / "LICENSE").read_text("utf-8")
    assert all(part in text for part in ("Copyright (c) Microsoft", "MIT License", "Google", "Apache License"))
