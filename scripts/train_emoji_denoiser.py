r"""Train an embedded image model on the emoji that ``make_emoji_images.py`` made: a diffusion or a flow model.

Both are the same network (``agents/policies/caption_unet.py``). ``diffusion`` predicts v on a squared-cosine schedule
of 1,000 steps (Salimans & Ho 2022; Nichol & Dhariwal 2021), ``flow`` the velocity e - x_0 of the rectified path
x_t = (1 - t) x_0 + t e with logit-normal times (Esser et al. 2024). AdamW with a cosine decay, bfloat16 autocast, an
exponential average of the weights, which is what is saved, in float16. A tenth of the captions is dropped for
classifier-free guidance, and the style's word is given to half of them.

A run goes on where it was interrupted (``--out`` keeps ``training.pt``), and is deterministic in ``seed`` and threads.

    python scripts/train_emoji_denoiser.py diffusion --data emoji.npz --out emoji-diffusion --steps 12000
    python scripts/train_emoji_denoiser.py flow \
        --data emoji.npz --out emoji-flow --init emoji-diffusion --steps 4000 --lr 5e-4
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from aligngym.agents.policies.caption_unet import CaptionUNet
from aligngym.agents.policies.samplers import make_table

KINDS = ("diffusion", "flow")


def noised(kind: str, x: torch.Tensor, e: torch.Tensor, rng: torch.Generator, schedule: torch.Tensor) -> tuple:
    """``(x_t, t in [0, 1000), target)`` for images ``x`` and noise ``e``."""
    if kind == "diffusion":
        t = torch.randint(len(schedule), (len(x),), generator=rng)
        a, s = schedule[t].sqrt()[:, None, None, None], (1 - schedule[t]).sqrt()[:, None, None, None]
        return a * x + s * e, t.float(), a * e - s * x
    t = torch.randn(len(x), generator=rng).sigmoid()
    u = t[:, None, None, None]
    return (1 - u) * x + u * e, 1000 * t, e - x


@torch.no_grad()
def sample(model: CaptionUNet, captions: Sequence[str], steps: int = 20, guidance: float = 2.0) -> torch.Tensor:
    """Images ``[B, 3, S, S]`` by the deterministic sampler, to look at while training."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(len(captions), *model.shape, generator=rng)
    grid = model.grid(steps)
    table = make_table(grid, model.prediction, "ode")
    condition, empty = model.encode(captions), model.encode([""] * len(captions))
    for k in range(steps):
        t = grid.times[k].expand(len(x))
        plain = model(x, t, empty)
        x = table.scale[k] * x + table.gain[k] * (plain + guidance * (model(x, t, condition) - plain))
    return x


def save_grid(images: torch.Tensor, path: Path, columns: int = 16) -> None:
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    rows = len(pixels) // columns
    size = pixels.shape[1]
    tiled = pixels.reshape(rows, columns, size, size, 3).transpose(0, 2, 1, 3, 4).reshape(rows * size, -1, 3)
    Image.fromarray(tiled).resize((columns * size * 2, rows * size * 2), Image.Resampling.NEAREST).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="folder of a model whose weights to begin with")
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)  # diffusers draws its initial weights from the global generator
    arguments.out.mkdir(parents=True, exist_ok=True)

    data = np.load(arguments.data)
    training = ~data["held_out"]
    images = torch.from_numpy(data["images"][training]).permute(0, 3, 1, 2).float() / 127.5 - 1
    captions, styles = data["captions"].tolist(), data["styles"].tolist()
    vocabulary = sorted({word for caption in captions for word in caption.split()} | set(styles))
    model = CaptionUNet(arguments.kind, vocabulary)
    rows = np.flatnonzero(training)
    words = model.encode([captions[i] for i in rows])["words"]
    style = model.encode([styles[i] for i in rows])["words"][:, :1]
    if arguments.init is not None:
        model.load_state_dict(CaptionUNet.from_pretrained(arguments.init).state_dict())
    average = CaptionUNet(arguments.kind, vocabulary)
    average.load_state_dict(model.state_dict())
    schedule = cosine_schedule()
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr, betas=(0.9, 0.99), weight_decay=1e-3)
    rng = torch.Generator().manual_seed(arguments.seed)
    first, losses, state = 0, [], arguments.out / "training.pt"
    if state.is_file():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        rng.set_state(saved["rng"])
        first = saved["step"]
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(images)} images, from step {first}")
    started = time.time()
    for step in range(first, arguments.steps):
        warm = min(1.0, (step + 1) / 500)
        optimizer.param_groups[0]["lr"] = arguments.lr * warm * 0.5 * (1 + math.cos(math.pi * step / arguments.steps))
        pick = torch.randint(len(images), (arguments.batch,), generator=rng)
        kept = torch.rand(arguments.batch, 1, generator=rng) > 0.1
        styled = torch.rand(arguments.batch, 1, generator=rng) > 0.5
        given = torch.cat([words[pick], style[pick] * styled], 1) * kept
        x = images[pick]
        x_t, t, target = noised(arguments.kind, x, torch.randn(x.shape, generator=rng), rng, schedule)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = model(x_t, t, {"words": given})
        loss = (predicted.float() - target).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(arguments.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            rate = (step + 1 - first) / (time.time() - started)
            print(f"step {step + 1}  loss {np.mean(losses[-100:]):.4f}  {rate:.2f} steps/s", flush=True)
        if (step + 1) % 1000 == 0 or step + 1 == arguments.steps:
            average.save_pretrained(arguments.out)
            torch.save(
                {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict(),
                 "rng": rng.get_state(), "step": step + 1}, state.with_suffix(".new")
            )  # fmt: skip
            state.with_suffix(".new").rename(state)
            save_grid(sample(average, SHOWN), arguments.out / "samples.png")


def cosine_schedule(steps: int = 1000) -> torch.Tensor:
    """Diffusers' ``squaredcos_cap_v2``: the cumulative product of 1 - beta."""
    from diffusers import DDPMScheduler

    alphas: torch.Tensor = DDPMScheduler(steps, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    return alphas


SHOWN = (
    "dog face", "cat face", "mouse face", "rabbit face", "bear", "panda", "frog", "pig face",
    "red apple", "banana", "grapes", "strawberry", "pizza", "hamburger", "doughnut", "birthday cake",
    "red heart", "blue heart", "green heart", "sun", "full moon", "crescent moon", "snowflake", "fire",
    "automobile", "bus", "bicycle", "airplane", "rocket", "house", "castle", "snow capped mountain",
    "grinning face", "crying face", "angry face", "smiling face with sunglasses", "face with tears of joy",
    "alien", "ghost", "robot",
    "soccer ball", "basketball", "trophy", "guitar", "camera", "open book", "pencil", "umbrella",
    "sunflower", "tulip", "cactus", "evergreen tree", "mushroom", "butterfly", "fish", "turtle",
    "alarm clock", "key", "light bulb", "hammer", "gem stone", "crown", "bell", "envelope",
)  # fmt: skip

if __name__ == "__main__":
    main()
