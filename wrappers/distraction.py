"""Videos behind a simulated body, in place of everything that is not the body."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

SPLITS = ("train", "test")
FRAMES = 200  # of a procedural clip
TEST_CLIPS = 1_000_000  # seeds of held-out procedural clips begin here, those of training at 0
FILES = (".gif", ".png")

Pixels = NDArray[np.uint8]


class DistractingBackground(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Shows a moving video wherever a picture of a simulator shows no body: the distractors of RePo and its peers.

    Which pixels that are is found by drawing the scene once more with each geometry in a colour of its own: those of
    no geometry, and with ``floor`` those of planes and terrain. All others stay as they are. The info of every step
    holds their share, ``masked_fraction``, that of the last step the episode's mean, ``reward/masked_fraction``, which
    agents log. Rewards and ends do not change.

    At each reset a clip and its first frame are drawn, from a generator that the reset's seed alone seeds; then one
    frame follows the other, from the last one on to the first. Without ``clips`` they are procedural: clouds that drift
    in two layers behind discs that bounce.

    Deviations from RePo's code (arXiv 2309.00082): that replaces pixels which are more blue than red and green, of a
    suite whose floors it recolours, so that the floor of some tasks stays; its clips are grey videos of Kinetics-400,
    the same ones in training and evaluation, of which one frame is drawn when the environment is made.

    Args:
        env: a simulator of this package that is observed as pixels: ``ControlAlign-v0``.
        clips: your own videos: a list of arrays ``[T, H, W, 3]`` uint8; or a folder with a GIF for each, or with
            folders of PNG frames; or a list of GIFs and such folders. The last fifth (at least one) is held out. None:
            procedural ones.
        split: "train" or "test": the held-out clips.
        num_clips: how many procedural clips there are, at least 1. Held-out ones are never among those of training.
        floor: replace the floor, too.
        grayscale: show the clips without colours.

    Raises:
        TypeError: if the environment cannot tell its background.
        ValueError: for an unknown split, no or misshapen clips, a path that holds none.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        clips: str | Path | Sequence[str | Path] | Sequence[Pixels] | None = None,
        *,
        split: str = "train",
        num_clips: int = 8,
        floor: bool = True,
        grayscale: bool = False,
    ) -> None:
        given: Any = str(clips) if isinstance(clips, Path) else clips
        if isinstance(given, list | tuple):
            given = [str(c) if isinstance(c, Path) else c for c in given]
        RecordConstructorArgs.__init__(
            self, clips=given, split=split, num_clips=num_clips, floor=floor, grayscale=grayscale
        )
        super().__init__(env)
        shape = env.observation_space.shape or ()
        if not (hasattr(env.unwrapped, "background") and len(shape) == 3 and shape[2] == 3):
            raise TypeError(f"{env} shows no pictures whose background is known: give ControlAlign-v0 with pixels")
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}, expected one of {SPLITS}")
        if num_clips < 1:
            raise ValueError(f"num_clips is {num_clips}, expected at least 1")
        self._size, self._floor, self._grayscale = (shape[0], shape[1]), floor, grayscale
        if clips is None:
            first = 0 if split == "train" else TEST_CLIPS
            self._sources: list[int | Pixels] = list(range(first, first + num_clips))
        else:
            self._sources = [*split_clips(own_clips(clips), split)]
        self._clips: dict[int, Pixels] = {}  # those that were shown, in the size of the pictures
        self._rng = np.random.default_rng()  # until a seed is given
        self._clip, self._frame = 0, 0
        self._fractions: list[float] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Pixels, dict[str, Any]]:
        """Start an episode, with a clip and a first frame of its own."""
        observation, info = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self._rng = np.random.default_rng([seed, 1])  # apart from the environment's, which draws as if alone
        self._clip = int(self._rng.integers(len(self._sources)))
        self._frame = int(self._rng.integers(len(self.clip(self._clip))))
        self._fractions = []
        return self._distracted(observation, info)

    def step(self, action: Any) -> tuple[Pixels, Any, bool, bool, dict[str, Any]]:
        """Let an action happen; the video goes on by a frame."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._frame += 1
        observation, info = self._distracted(observation, info)
        if terminated or truncated:
            info["reward/masked_fraction"] = float(np.mean(self._fractions))
        return observation, reward, terminated, truncated, info

    def clip(self, number: int) -> Pixels:
        """``[T, H, W, 3]``, a clip in the size of the pictures."""
        if number not in self._clips:
            source = self._sources[number]
            clip = procedural_clip(source, self._size) if isinstance(source, int) else resized(source, self._size)
            if self._grayscale:
                clip = np.repeat(clip.mean(3, keepdims=True).round().astype(np.uint8), 3, 3)
            self._clips[number] = clip
        return self._clips[number]

    def _distracted(self, observation: Pixels, info: dict[str, Any]) -> tuple[Pixels, dict[str, Any]]:
        unwrapped: Any = self.env.unwrapped
        mask: NDArray[np.bool_] = unwrapped.background(floor=self._floor)
        clip = self.clip(self._clip)
        info["masked_fraction"] = float(mask.mean())
        self._fractions.append(info["masked_fraction"])
        return np.where(mask[..., None], clip[self._frame % len(clip)], observation), info


def procedural_clip(seed: int, size: tuple[int, int], frames: int = FRAMES) -> Pixels:
    """``[frames, H, W, 3]``, clouds that drift in two layers behind three discs that bounce.

    Args:
        seed: of everything in it.
        size: height and width.
        frames: how many.
    """
    rng = np.random.default_rng([seed, 2])
    layers = [_clouds(rng, size) for _ in range(2)]
    drift = rng.choice([-1, 1], (2, 2)) * rng.uniform(0.01, 0.04, (2, 2)) * size  # pixels a frame
    places, speeds = rng.random((3, 2)), rng.choice([-1, 1], (3, 2)) * rng.uniform(0.01, 0.04, (3, 2))
    radii, colors = rng.uniform(0.08, 0.2, 3), rng.integers(256, size=(3, 3))
    rows, columns = (np.arange(n) / n for n in size)
    clip = np.empty((frames, *size, 3), np.uint8)
    for t in range(frames):
        moved = sum(np.roll(layer, np.rint(d * t).astype(int), (0, 1)) for layer, d in zip(layers, drift, strict=True))
        clip[t] = np.rint(127.5 * (1 + np.tanh(moved)))
        centres = 1 - np.abs((places + speeds * t) % 2 - 1)  # there and back
        for (y, x), radius, color in zip(centres, radii, colors, strict=True):
            clip[t, np.hypot(rows[:, None] - y, columns - x) < radius] = color
    return clip


def _clouds(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float64]:
    """``[H, W, 3]``, smooth noise of three scales whose edges fit each other."""
    total = np.zeros((*size, 3))
    for cells in (3, 6, 12):
        noise = rng.standard_normal((cells, cells, 3)) / 2
        for axis, length in enumerate(size):
            place = np.arange(length) * cells / length
            low = place.astype(int)
            part = (place - low).reshape([-1 if a == axis else 1 for a in range(3)])
            noise = np.take(noise, low, axis) * (1 - part) + np.take(noise, (low + 1) % cells, axis) * part
        total += noise
    return total


def split_clips(clips: Sequence[Pixels], split: str) -> Sequence[Pixels]:
    """The clips of a split: the last fifth, at least one, is held out.

    Raises:
        ValueError: if there are fewer than two, or one is no ``[T, H, W, 3]`` uint8.
    """
    if len(clips) < 2:
        raise ValueError(f"{len(clips)} clips were given, expected at least 2: one for training, one held out")
    for clip in clips:
        if clip.ndim != 4 or clip.shape[3] != 3 or clip.dtype != np.uint8 or not clip.size:
            raise ValueError(f"a clip is {clip.dtype}{list(clip.shape)}, expected uint8[T, H, W, 3]")
    held_out = -max(1, len(clips) // 5)
    return clips[:held_out] if split == "train" else clips[held_out:]


def own_clips(clips: str | Path | Sequence[str | Path] | Sequence[Pixels] | Pixels) -> list[Pixels]:
    """A user's clips, whichever way they are given.

    Raises:
        ValueError: for one array instead of a list, or as :func:`read_clips`.
    """
    if isinstance(clips, np.ndarray) and clips.ndim < 5:
        raise ValueError(f"clips is one array, {clips.dtype}{list(clips.shape)}: expected a list of uint8[T, H, W, 3]")
    given = [clips] if isinstance(clips, str | Path) else list(clips)
    paths = [c for c in given if isinstance(c, str | Path)]
    if not paths or len(paths) < len(given):
        return [np.asarray(clip) for clip in given]
    found = read_clips(paths)
    if len(found) < 2:
        raise ValueError(
            f"clips={[*map(str, paths)]} hold {len(found)} clip, expected at least 2, one of them to be held out: each "
            "GIF is a clip, and each folder of PNG frames"
        )
    return found


def read_clips(paths: str | Path | Sequence[str | Path]) -> list[Pixels]:
    """Clips of files and folders: each GIF, and each folder of PNG frames.

    What is in a folder comes in the order of names, ``2.png`` before ``10.png``; several paths come as given.

    Raises:
        ImportError: without Pillow.
        ValueError: if a path is missing or holds no such file, or frames of a clip differ in size.
    """
    try:
        from PIL import Image, ImageSequence
    except ImportError as error:
        raise ImportError("reading clips needs Pillow: pip install pillow") from error
    files = [f for p in ([paths] if isinstance(paths, str | Path) else paths) for f in _files(Path(p))]
    frames: Mapping[Path, list[Pixels]] = {p if p.suffix.lower() == ".gif" else p.parent: [] for p in files}
    for path in files:
        with Image.open(path) as picture:
            shown = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(picture)]
        clip = frames[path if path in frames else path.parent]
        clip.extend(shown)
        if clip[0].shape != clip[-1].shape:
            shapes = list(clip[-1].shape), list(clip[0].shape)
            raise ValueError(f"clips: {path} has the shape {shapes[0]}, frames before it {shapes[1]}: must be equal")
    return [np.stack(clip) for clip in frames.values()]


def _files(path: Path) -> list[Path]:
    """Those of a path that are read, in the order of their names, whose numbers count as such."""
    if not path.exists():
        raise ValueError(f"clips={str(path)!r} does not exist: expected a folder, or a file that ends in .gif or .png")
    every = sorted(path.rglob("*")) if path.is_dir() else [path]
    found = [p for p in every if p.suffix.lower() in FILES]
    if not found:
        kind = "is a folder without files that end" if path.is_dir() else "is a file that does not end"
        raise ValueError(f"clips={str(path)!r} {kind} in {' or '.join(FILES)}: others, such as .mp4, are not read")
    return sorted(found, key=lambda p: [_natural(part) for part in p.parts])


def _natural(name: str) -> list[str | int]:
    """``frame10.png`` as ``["frame", 10, ".png"]``."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def resized(clip: Pixels, size: tuple[int, int]) -> Pixels:
    """``[T, *size, 3]``, of each new pixel the old one in its middle."""
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(size, clip.shape[1:3], strict=True))
    return clip[:, rows[:, None], columns]
