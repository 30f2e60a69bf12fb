"""Distance of the embedded image models' samples from held-out emoji, between a floor and a ceiling, and a grid.

Every model draws one image for each of the 480 held-out captions (with its style, the same ones for all models), by its
deterministic sampler and with classifier-free guidance. Printed for each set of 480 images, against the held-out ones:
the Frechet distance on the embedded classifier's features, and the mean probability that the classifier gives the
captions' words. The floor is training images of the same captions, in other styles (drawn ``--repeats`` times; mean and
standard deviation); those of random captions are farther, because they show other things. The ceiling is uniform noise.

    python scripts/compare_emoji_models.py emoji-diffusion emoji-flow --data emoji.npz --grid docs/figures/emoji.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from aligngym.agents.policies.denoiser_policy import DenoiserPolicy
from aligngym.agents.policies.policy import RowNoise
from aligngym.assets import image_prompts_path, validation_images_path
from aligngym.rewards import ImageClassifier, frechet_distance


def samples(policy: DenoiserPolicy, prompts: list[str], seed: int, batch: int = 60) -> list[np.ndarray]:
    """One uint8 image a prompt; row ``i`` starts from the noise of ``(seed, i)``, whatever the policy."""
    shape, images = policy.denoiser.shape, []
    for start in range(0, len(prompts), batch):
        part = [prompt.encode() for prompt in prompts[start : start + batch]]
        codes = np.zeros((len(part), max(map(len, part))), np.uint8)
        for row, text in enumerate(part):
            codes[row, : len(text)] = np.frombuffer(text, np.uint8)
        first = [
            np.random.default_rng([seed, start + row]).standard_normal(shape, np.float32) for row in range(len(part))
        ]
        observation = {"sample": np.stack(first), "prompt": codes}
        noise = RowNoise(range(start, start + len(part)))  # read by stochastic samplers only
        episodes = policy.generate(observation, noise, max_steps=policy.num_steps, deterministic=True)
        images += policy.denoiser.decode(episodes.actions[:, -1])
    return images


def line(name: str, distances: list[float], probabilities: np.ndarray) -> str:
    """A row of the table; an image whose caption has no word that the classifier knows has no probability."""
    spread = f" ± {np.std(distances, ddof=1):.2f}" if len(distances) > 1 else ""
    return f"| {name} | {np.mean(distances):.2f}{spread} | {np.nanmean(probabilities):.2f} |"


def save_grid(rows: list[list[np.ndarray]], path: Path, scale: int = 2, gap: int = 2) -> None:
    """Rows of images, enlarged without smoothing, with a white gap between them."""
    padded = [[np.pad(image, ((gap, gap), (gap, gap), (0, 0)), constant_values=255) for image in row] for row in rows]
    tiled = np.concatenate([np.concatenate(row, 1) for row in padded])
    Image.fromarray(tiled.repeat(scale, 0).repeat(scale, 1)).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["emoji-diffusion", "emoji-flow"])
    parser.add_argument("--data", type=Path, help="the training images, for the floor")
    parser.add_argument("--grid", type=Path, help="PNG of held-out emoji and, below each, the models' images")
    parser.add_argument("--columns", type=int, default=16)
    parser.add_argument("--steps", type=int, help="of the sampler; by default the models' own")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(validation_images_path()) as data:
        images, captions, styles = list(data["images"]), data["captions"].tolist(), data["styles"].tolist()
    classifier, rng = ImageClassifier(output="probability"), np.random.default_rng(arguments.seed)
    features = classifier.embed(images)
    print(f"guidance {arguments.guidance}, {len(images)} images a set, {features.shape[1]} features")
    print("| images | distance | probability of the caption's words |")
    print("|---|---|---|")
    print(line("held out", [0.0], classifier.score(images, captions).values))
    if arguments.data:
        with np.load(arguments.data) as data:
            trained, names = data["images"][~data["held_out"]], data["captions"][~data["held_out"]]
        rows = {caption: np.flatnonzero(names == caption) for caption in set(captions)}
        for title in ("training, the same captions", "training, random captions"):
            same = title.endswith("same captions")
            picks = [
                np.array([rng.choice(rows[c]) for c in captions])
                if same
                else rng.permutation(len(trained))[: len(images)]
                for _ in range(arguments.repeats)
            ]
            distances = [frechet_distance(features, classifier.embed(list(trained[pick]))) for pick in picks]
            fits = [classifier.score(list(trained[pick]), names[pick].tolist()).values for pick in picks]
            print(line(title, distances, np.concatenate(fits)))
    grids = [images]
    for name in arguments.models:
        policy = DenoiserPolicy.from_pretrained(name, num_steps=arguments.steps, guidance=arguments.guidance).eval()
        prompts = [f"{caption} {style}" for caption, style in zip(captions, styles, strict=True)]
        grids.append(samples(policy, prompts, arguments.seed))
        distance = frechet_distance(features, classifier.embed(grids[-1]))
        title = f"{name}, {policy.num_steps} steps"
        print(line(title, [distance], classifier.score(grids[-1], captions).values), flush=True)
    noise = list(rng.integers(256, size=(len(images), *images[0].shape), dtype=np.uint8))
    print(
        line("noise", [frechet_distance(features, classifier.embed(noise))], classifier.score(noise, captions).values)
    )
    if arguments.grid:
        lines = [
            text for split in ("train", "eval") for text in image_prompts_path(split).read_text("utf-8").splitlines()
        ]
        concrete = {json.loads(text)["prompt"] for text in lines}
        shown = [i for i in rng.permutation(len(images)) if captions[i] in concrete]
        columns = min(arguments.columns, len(shown) // 2)
        halves = (shown[:columns], shown[columns : 2 * columns])
        save_grid([[grid[i] for i in half] for half in halves for grid in grids], arguments.grid)
        print("\n".join(", ".join(f"{captions[i]} ({styles[i]})" for i in half) for half in halves))


if __name__ == "__main__":
    main()
