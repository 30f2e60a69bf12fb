"""Train the embedded image classifier on the emoji that ``make_emoji_images.py`` made, and say how good it is.

One independent probability for each word that occurs in the captions of enough training images. The words are those of
the names, with three short tables below: phrases that mean something else than their words (a hot dog is no dog), words
that a name implies (a poodle is a dog), and words that say nothing about a picture. A colour is learnt only from images
whose name has one: a strawberry is neither "red" nor "not red".

The loss is the plain binary cross-entropy, so that probabilities are calibrated. Images are shifted, scaled, turned,
mirrored (except where the name has a side or a character), recoloured, blurred and made noisy; a sixteenth of a batch
is shuffled or random, and shows nothing. The saved weights are an exponential average.

``--unseen`` names folders of other emoji sets (unpacked as for ``make_emoji_images.py``, for instance
``@iconify-json/twemoji@1.2.5`` and ``@iconify-json/openmoji@1.2.29``): on them the classifier is only measured.

    python scripts/train_emoji_classifier.py --data emoji.npz --out emoji-classifier --unseen sets/twemoji sets/openmoji
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from make_emoji_images import rasterise, read_set
from torch import Tensor
from torch.nn import functional as F

from aligngym.rewards._emoji_classifier import EmojiClassifier
from aligngym.rewards.image_classifier import read_words

PHRASES = (
    "hot dog", "computer mouse", "mouse trap", "fish cake", "moon cake", "railway car", "tram car", "police car light",
    "bell pepper", "ring buoy", "flower playing cards", "fire engine", "fire extinguisher", "spider web",
    "cricket game", "ice cream", "ice hockey", "ice skate", "light rail", "star struck", "rice ball", "confetti ball",
    "light blue", "magnifying glass", "water buffalo", "water pistol", "bus stop",
)  # fmt: skip
IMPLIED = {
    "dog": ("poodle",),
    "car": ("automobile", "taxi", "vehicle"),
    "flower": ("rose", "rosette", "tulip", "sunflower", "hibiscus", "hyacinth", "blossom", "lotus", "bouquet"),
    "bird": ("duck", "eagle", "owl", "parrot", "dove", "swan", "flamingo", "penguin", "rooster", "turkey", "goose",
             "peacock", "dodo", "chick", "chicken"),
    "fish": ("blowfish",),
    "train": ("locomotive", "metro"),
}  # fmt: skip
IGNORED = """
    a and at but by for from in of off on or over the to with without
"""
COLOURS = {
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "light blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
    "grey",
}
SIDED = """
    left right clockwise counterclockwise fast reverse last next first back quarter crescent gibbous tilted oclock
    thirty letter letters latin keycap digit symbol symbols input japanese button mark abc abcd asterisk calendar sign
"""
SHOWN = ("dog", "cat", "heart", "moon", "car", "face", "red", "flower", "bird", "fish", "tree", "star", "apple")


def words_of(caption: str) -> list[str]:
    """The words that a caption stands for."""
    words = [word for word in read_words(caption, PHRASES) if word not in IGNORED.split()]
    return words + [more for more, names in IMPLIED.items() if more not in words and set(names) & set(words)]


def labels_of(captions: list[str], words: list[str]) -> tuple[Tensor, Tensor]:
    """Which words each caption has, and which it says anything about: two bool tensors ``[N, W]``."""
    index = {word: i for i, word in enumerate(words)}
    shown, known = torch.zeros(2, len(captions), len(words), dtype=torch.bool)
    colours = torch.tensor([word in COLOURS for word in words])
    for row, caption in enumerate(captions):
        named = words_of(caption)
        shown[row, [index[word] for word in named if word in index]] = True
        known[row] = ~colours if COLOURS.isdisjoint(named) else True
    return shown, known


def uniform(rng: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=rng)


def augmented(images: Tensor, mirrored: Tensor, rng: torch.Generator) -> Tensor:
    """Images ``[B, 3, S, S]`` in [0, 1], each changed at random; only those in ``mirrored [B]`` may be mirrored."""
    count = len(images)
    angle, scale = uniform(rng, -0.25, 0.25, count), uniform(rng, -0.2, 0.25, count).exp()
    width = scale * uniform(rng, -0.15, 0.15, count).exp()
    width = torch.where(mirrored & (torch.rand(count, generator=rng) < 0.5), -width, width)
    rows = [
        torch.stack([width * angle.cos(), -scale * angle.sin(), uniform(rng, -0.2, 0.2, count)], 1),
        torch.stack([width * angle.sin(), scale * angle.cos(), uniform(rng, -0.2, 0.2, count)], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    images = F.grid_sample(images - 1, grid, align_corners=False) + 1  # what comes in from outside is white
    each = (count, 1, 1, 1)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * uniform(rng, 0.7, 1.3, *each)  # saturation
    images = images * uniform(rng, 0.85, 1.05, count, 3, 1, 1)  # tint
    images = 0.5 + (images - 0.5) * uniform(rng, 0.75, 1.2, *each) + uniform(rng, -0.1, 0.1, *each)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = images + (blurred - images) * uniform(rng, -1, 1, *each).clamp(min=0)
    noise = uniform(rng, -0.1, 0.1, *each).clamp(min=0)
    return (images + noise * torch.randn(images.shape, generator=rng)).clamp(0, 1)


def meaningless(images: Tensor, rng: torch.Generator) -> Tensor:
    """As many images that show nothing: blocks of an image in another order, and smooth random colours."""
    count, _, size, _ = images.shape
    block = size // 4
    blocks = F.unfold(images, block, stride=block)
    order = torch.rand(count, 1, blocks.shape[2], generator=rng).argsort(2).expand_as(blocks)
    shuffled = F.fold(blocks.gather(2, order), (size, size), block, stride=block)
    coarse = int(2 ** torch.randint(1, 6, (), generator=rng))
    colours = F.interpolate(torch.rand(count, 3, coarse, coarse, generator=rng), (size, size), mode="bilinear")
    return torch.where(torch.rand(count, 1, 1, 1, generator=rng) < 0.5, shuffled, colours)


def train(
    images: Tensor, shown: Tensor, known: Tensor, mirrored: Tensor, words: list[str], arguments
) -> EmojiClassifier:
    torch.manual_seed(arguments.seed)  # torch's layers draw their initial weights from the global generator
    rng = torch.Generator().manual_seed(arguments.seed)
    pixels = images.reshape(len(images), 3, -1)
    mean, std = pixels.mean((0, 2)), pixels.std((0, 2))
    settings = {"mean": [round(m, 4) for m in mean.tolist()], "std": [round(s, 4) for s in std.tolist()]}
    model, average = (EmojiClassifier(words, images.shape[-1], **settings) for _ in range(2))
    frequency = (shown.sum(0) + 0.5) / (known.sum(0) + 1)
    model.head.bias.data.copy_(torch.logit(frequency))
    average.load_state_dict(model.state_dict())
    model.to(memory_format=torch.channels_last)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(images)} images, {len(words)} words")
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr, weight_decay=arguments.weight_decay)
    steps = arguments.epochs * (len(images) // arguments.batch)
    nothing = arguments.batch // 16
    started, losses, order = time.process_time(), [], torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        if len(order) < arguments.batch:
            order = torch.randperm(len(images), generator=rng)
        rows, order = order[: arguments.batch], order[arguments.batch :]
        x = augmented(images[rows], mirrored[rows], rng)
        x[:nothing] = meaningless(x[:nothing], rng)
        target, weight = shown[rows].float(), known[rows].float()
        target[:nothing], weight[:nothing] = 0, 1
        optimizer.param_groups[0]["lr"] = arguments.lr * min(1, (step + 1) / 200) * (1 - step / steps)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x.contiguous(memory_format=torch.channels_last))
        loss = F.binary_cross_entropy_with_logits(logits.float(), target, weight, reduction="sum") / len(rows)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        decay = min(0.998, (step + 1) / (step + 10))
        with torch.no_grad():
            for kept, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                kept.lerp_(new, 1 - decay) if kept.is_floating_point() else kept.copy_(new)
        losses.append(loss.item())
        if (step + 1) % 200 == 0 or step + 1 == steps:
            spent = time.process_time() - started
            print(f"step {step + 1}/{steps}  loss {np.mean(losses[-200:]):.3f}  {spent:.0f} s of CPU", flush=True)
    return average


@torch.no_grad()
def probabilities(model: EmojiClassifier, images: Tensor) -> np.ndarray:
    """``[N, W]`` float32, in evaluation mode."""
    model.eval()
    return torch.cat([model(part).sigmoid() for part in images.split(256)]).numpy()


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Mean precision at the rank of each positive, for one word over the images."""
    hits = positive[np.argsort(-scores, kind="stable")]
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())


def measures(scores: np.ndarray, shown: np.ndarray, known: np.ndarray, words: list[str], counts: Counter) -> dict:
    """The numbers of the README for one set of images; arrays ``[N, W]``."""
    scored = [w for w in range(len(words)) if shown[:, w].any()]
    precision = {w: average_precision(scores[known[:, w], w], shown[known[:, w], w]) for w in scored}
    frequent = [precision[w] for w in scored if counts[words[w]] >= 6]
    labelled = shown.any(1)
    p, y = scores[known], shown[known]
    bins = np.minimum((p * 10).astype(int), 9)
    table = [[int((bins == b).sum()), float(p[bins == b].mean()), float(y[bins == b].mean())] for b in np.unique(bins)]
    above = p > 0.1  # of the millions of pairs of an image and a word nearly all are certain zeros
    gaps = [abs(p[above & (bins == b)].mean() - y[above & (bins == b)].mean()) * (above & (bins == b)).sum()
            for b in np.unique(bins[above])]  # fmt: skip
    return {
        "images": len(scores),
        "words": len(scored),
        "mean_average_precision": round(float(np.mean(list(precision.values()))), 3),
        "mean_average_precision_of_words_with_6_images": round(float(np.mean(frequent)), 3),
        "top_1": round(float(np.mean(shown[np.arange(len(scores)), scores.argmax(1)][labelled])), 3),
        "calibration_error_above_0.1": round(float(sum(gaps) / above.sum()), 3),
        "calibration": [[n, round(a, 3), round(b, 3)] for n, a, b in table],
        "by_word": {word: by_word(scores, shown, known, words.index(word)) for word in SHOWN if word in words},
    }


def by_word(scores: np.ndarray, shown: np.ndarray, known: np.ndarray, w: int) -> dict:
    """Images with the word; average precision; precision and recall where a half decides (None: of no image)."""
    said, there = scores[known[:, w], w] > 0.5, shown[known[:, w], w]
    hits = int((said & there).sum())
    return {
        "images": int(there.sum()),
        "average_precision": round(average_precision(scores[known[:, w], w], there), 2) if there.any() else None,
        "precision": round(hits / int(said.sum()), 2) if said.any() else None,
        "recall": round(hits / int(there.sum()), 2) if there.any() else None,
    }


def unseen_set(folder: Path, captions: set[str]) -> tuple[Tensor, list[str]]:
    """The images of another emoji set whose names are among those captions."""
    texts, _ = read_set(folder)
    names = sorted(name for name in texts if " ".join(name.split("-")) in captions)
    images = np.stack([rasterise(texts[name]) for name in names])
    return tensor(images), [" ".join(name.split("-")) for name in names]


def tensor(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--unseen", type=Path, nargs="*", default=[], help="folders of other sets, to measure on")
    parser.add_argument("--least", type=int, default=3, help="training images that a word must have")
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)

    data = np.load(arguments.data)
    images, captions, held = tensor(data["images"]), data["captions"].tolist(), data["held_out"]
    trained = [caption for caption, out in zip(captions, held, strict=True) if not out]
    counts = Counter(word for caption in trained for word in words_of(caption))
    words = sorted(word for word, count in counts.items() if count >= arguments.least)
    shown, known = labels_of(captions, words)
    mirrored = torch.tensor([not set(SIDED.split()) & set(caption.split()) for caption in captions])
    rows = torch.from_numpy(~held)
    model = train(images[rows], shown[rows], known[rows], mirrored[rows], words, arguments)
    model.save(arguments.out)
    model = EmojiClassifier.load(arguments.out)  # what is measured is what is saved: in float16

    report = {
        "held_out": measures(
            probabilities(model, images[~rows]), *(x[~rows].numpy() for x in (shown, known)), words, counts
        )
    }
    for folder in arguments.unseen:
        others, names = unseen_set(folder, set(captions))
        marks = (x.numpy() for x in labels_of(names, words))
        report[folder.name] = measures(probabilities(model, others), *marks, words, counts)
    nonsense = meaningless(images[~rows], torch.Generator().manual_seed(1))
    report["meaningless"] = {"mean_highest_probability": round(float(probabilities(model, nonsense).max(1).mean()), 3)}
    (arguments.out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
