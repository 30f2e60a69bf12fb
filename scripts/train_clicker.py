"""Trains the embedded clicker by supervision: the start that reinforcement learning improves on.

The screens are those of some templates of the training split; every instruction of a screen is asked in another wording
each time. The loss is the negative log-probability that a point drawn from the map hits the box. Few templates and few
steps are meant: a start that has nothing left to learn would be a poor place to compare methods.

    python scripts/train_clicker.py --out assets/gui-clicker
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aligngym.agents.policies.clicker import Clicker, ClickerPolicy
from aligngym.agents.policies.page_encoder import STRIDE
from aligngym.assets import gui_screens_path
from aligngym.envs.gui.build import template_of
from aligngym.envs.gui.instructions import direct, functional
from aligngym.envs.gui.screens import BACKGROUND, HEIGHT, WIDTH, load_screens, read_rows

SHIFT = 24  # pixels a screen is moved by at most, in either direction


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--screens", help="folder of `aligngym assets gui`; default: the embedded data")
    parser.add_argument("--out", required=True, help="folder of the network")
    parser.add_argument("--share", type=float, default=0.4, help="of the training templates that are shown")
    parser.add_argument("--steps", type=int, default=350)
    parser.add_argument("--batch", type=int, default=8, help="screens an optimiser step")
    parser.add_argument("--asked", type=int, default=14, help="instructions of a screen, at most")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--minutes", type=float, default=0, help="stop after this time, within the schedule; 0: never")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    rows = read_rows(Path(args.screens) / "train.parquet" if args.screens else gui_screens_path("train"))
    rows = [row for row in rows if place_of(row) < args.share]
    network = Clicker()
    print(f"{len(rows)} screens, {sum(p.numel() for p in network.parameters()):,} parameters", flush=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.learning_rate, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, total_steps=args.steps, pct_start=0.1)
    order: list[int] = []
    losses, began = [], time.time()
    for step in range(args.steps):
        if len(order) < args.batch:
            order = rng.permutation(len(rows)).tolist()
        chosen, order = order[: args.batch], order[args.batch :]
        images, texts, which, targets = batch_of([rows[i] for i in chosen], args.asked, rng)
        with torch.autocast("cpu", torch.bfloat16):
            features = network.features(images)
            scores = network.scores(features, network.text(texts), which)
        hit = scores.float().log_softmax(1).masked_fill(~targets, -torch.inf).logsumexp(1)
        optimizer.zero_grad()
        (-hit.mean()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(-hit.mean().item())
        if step % 100 == 99:
            print(f"{step + 1:6} {(time.time() - began) / 60:6.1f} min  loss {np.mean(losses[-100:]):.3f}", flush=True)
        if step % 500 == 499:
            print(f"       validation accuracy {accuracy(network, args.screens):.3f}", flush=True)
            network.save(args.out)
        if args.minutes and time.time() - began > 60 * args.minutes:
            break
    network.save(args.out)
    report = {"steps": step + 1, **vars(args), "loss": float(np.mean(losses[-100:]))}
    for split in ("validation", "test"):
        for kind in ("direct", "functional"):
            report[f"{split}/{kind}"] = accuracy(network, args.screens, split, (kind,), 1000)
    (Path(args.out) / "report.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(json.dumps(report, indent=2))


def place_of(row: dict[str, Any]) -> float:
    """A number in [0, 1) that is the template's own."""
    name = f"start/{row['kit']}/{template_of(row['page'])}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32


def batch_of(
    rows: list[dict[str, Any]], asked: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Moved and recoloured screens, instructions ``[N, L]``, their screens ``[N]`` and cells in their boxes."""
    images, texts, which, targets = [], [], [], []
    for number, row in enumerate(rows):
        pixels = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"))
        dx, dy = (int(v) for v in rng.integers(-SHIFT, SHIFT + 1, size=2))
        moved = np.full_like(pixels, BACKGROUND)
        height, width = pixels.shape[:2]
        moved[max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)] = pixels[
            max(0, -dy) : height + min(0, -dy), max(0, -dx) : width + min(0, -dx)
        ]
        if rng.random() < 0.5:
            moved = moved[..., rng.permutation(3)]
        if rng.random() < 0.15:
            moved = 255 - moved
        images.append(moved)
        some = rng.permutation(len(row["instructions"]))[:asked]
        for one in (row["instructions"][i] for i in some):
            element = row["elements"][one["element"]]
            inside = cells_inside(np.array(element["box"]) + [dx / WIDTH, dy / HEIGHT] * 2)
            if not inside.any():
                continue
            role, name = element["role"], element["name"]
            wordings = direct(role, name) if one["kind"] == "direct" else functional(role, name)
            texts.append((wordings or (one["text"],))[int(rng.integers(max(1, len(wordings))))].encode()[:96])
            which.append(number)
            targets.append(inside)
    longest = max(map(len, texts))
    coded = np.stack([np.frombuffer(t.ljust(longest, b"\0"), np.uint8) for t in texts])
    pixels = torch.from_numpy(np.ascontiguousarray(np.stack(images)))
    return pixels, torch.from_numpy(coded), torch.tensor(which), torch.from_numpy(np.stack(targets))


def cells_inside(box: np.ndarray) -> np.ndarray:
    """``[h * w]`` bool, cells whose centre is in a box of shares."""
    height, width = HEIGHT // STRIDE, WIDTH // STRIDE
    y, x = np.divmod(np.arange(height * width), width)
    x, y = (x + 0.5) / width, (y + 0.5) / height
    return (x >= box[0]) & (x <= box[2]) & (y >= box[1]) & (y <= box[3])


def accuracy(
    network: Clicker, folder: str | None, split: str = "validation", kinds: Any = None, most: int = 400
) -> float:
    """How often the best cell is in the box, over ``most`` instructions at most."""
    screens = load_screens(folder, split, kinds)
    policy = ClickerPolicy(network, autocast=True)
    count = len(screens.targets)
    chosen = np.random.default_rng(0).permutation(count)[:most]
    right = []
    with torch.no_grad():
        for part in np.array_split(np.sort(chosen), max(1, len(chosen) // 32)):
            shown = [screens.targets[i] for i in part]
            coded = [np.frombuffer(t.instruction.encode().ljust(96, b"\0"), np.uint8) for t in shown]
            pixels = [screens.pixels(t.screen, WIDTH, HEIGHT)[0] for t in shown]
            maps, _ = policy.maps({"screenshot": np.stack(pixels), "instruction": np.stack(coded)})
            inside = np.stack([cells_inside(np.array(t.box)) for t in shown])
            right += inside[np.arange(len(part)), maps.argmax(1).numpy()].tolist()
    return float(np.mean(right))


if __name__ == "__main__":
    main()
