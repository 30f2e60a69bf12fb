"""Choose the embedded image prompts: captions of concrete things that the embedded image models were trained on.

The rule: a name of one or two words with at least three training images, in one of the categories below (those of
``@iconify-json/noto@1.2.9``) and without any of the words that make it a sign, a clock, a phase or the like; of the
smileys, faces, hearts and a few figures. Of each category a number is drawn with a fixed seed, and a fifth of them is
for evaluation; the few that examples speak of are always there, for training. Every word must be in the vocabulary of
the models.

    python scripts/make_image_prompts.py --data emoji.npz --noto sets/noto --vocabulary emoji-diffusion/config.json
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np

QUOTAS = {
    "Animals & Nature": 60,
    "Food & Drink": 50,
    "Objects": 40,
    "Travel & Places": 25,
    "Smileys & Emotion": 25,
}
ALWAYS = ("dog", "dog face", "cat", "cat face", "red heart")
FIGURES = {
    "face",
    "heart",
    "cat",
    "alien",
    "ghost",
    "goblin",
    "ogre",
    "robot",
    "skull",
}  # all that smileys may show
# Signs and writing; times and phases; what has no shape of its own, or is no single thing.
LEFT_OUT = """
    symbol suit sign mark exclamation decoration nib index chart ballot e label link memo tabs mobile x t page receipt
    scroll oclock thirty moon sunrise sunset dusk night first last anger broken wave wind droplet drop fog foggy cyclone
    tornado comet meteor desert national hindu shinto love japanese disk dvd pager videocassette computer cloud hot fire
    cooking liquid voltage construction kaaba motorway station microbe dividers level control tray wedding fluttering
    funeral headstone coffin cigarette syringe razor briefs bikini dagger bomb wing
"""


def allowed(name: str, category: str) -> bool:
    words = set(name.split("-"))
    return (
        len(name.split("-")) <= 2
        and words.isdisjoint(LEFT_OUT.split())
        and (category[0] != "S" or bool(words & FIGURES))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--noto", type=Path, required=True, help="folder of the unpacked set")
    parser.add_argument(
        "--vocabulary",
        type=Path,
        required=True,
        help="config.json of an embedded image model",
    )
    parser.add_argument("--out", type=Path, default=Path("assets/image_prompts"))
    arguments = parser.parse_args()
    data = np.load(arguments.data)
    trained = Counter(data["captions"][~data["held_out"]].tolist())
    categories = json.loads((arguments.noto / "metadata.json").read_text("utf-8"))["categories"]
    known = set(json.loads(arguments.vocabulary.read_text("utf-8"))["vocabulary"])
    rng = np.random.default_rng(0)
    prompts: dict[str, list[str]] = {"train": [], "eval": []}
    for category, quota in QUOTAS.items():
        names = sorted(name for name in categories[category] if allowed(name, category))
        captions = [name.replace("-", " ") for name in names if trained[name.replace("-", " ")] >= 3]
        fixed = [caption for caption in captions if caption in ALWAYS]
        drawn = [captions[i] for i in rng.permutation(len(captions)) if captions[i] not in ALWAYS]
        prompts["eval"] += drawn[: quota // 5]
        prompts["train"] += fixed + drawn[quota // 5 : quota - len(fixed)]
        print(f"{category}: {quota} of {len(captions)}")
    unknown = {word for split in prompts.values() for caption in split for word in caption.split()} - known
    if unknown:
        raise SystemExit(f"words that the models do not know: {sorted(unknown)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for split, captions in prompts.items():
        lines = "".join(json.dumps({"prompt": caption}) + "\n" for caption in sorted(captions))
        (arguments.out / f"{split}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{split}: {len(captions)}")


if __name__ == "__main__":
    main()
