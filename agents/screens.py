"""Pictures of grounding episodes: each screenshot with its instruction, the target's box and the clicked points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from ..trajectories import Trajectories

COLUMNS, GAP = 3, 8  # of a sheet, pixels between its pictures


def answer_pictures(episodes: Trajectories, env: VectorEnv[Any, Any, Any]) -> list[NDArray[np.uint8]]:
    """One picture ``[H, W, 3]`` an episode, drawn by the environment.

    Args:
        episodes: of a grounding environment, as :meth:`Agent.play` returns them.
        env: the environment, which has ``draw(prompt_index, action)``.
    """
    draw = env.unwrapped.draw  # type: ignore[attr-defined]
    actions = episodes.actions[:, 0].float().cpu().numpy()
    return [draw(index, action) for index, action in zip(episodes.info["prompt_index"], actions, strict=True)]


def save_pictures(pictures: Sequence[NDArray[np.uint8]], folder: str | Path) -> list[Path]:
    """Write ``01.png``, ``02.png``, ... into a folder; returns their paths.

    Raises:
        ImportError: without Pillow (the extra ``gui``).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:02}.png" for number in range(1, len(pictures) + 1)]
    for picture, path in zip(pictures, paths, strict=True):
        _image().fromarray(picture).save(path)
    return paths


def save_sheet(pictures: Sequence[NDArray[np.uint8]], path: str | Path) -> Path:
    """Write pictures of one width as one PNG, three side by side; returns ``path``."""
    path, width = Path(path), pictures[0].shape[1]
    rows = [pictures[i : i + COLUMNS] for i in range(0, len(pictures), COLUMNS)]
    heights = [max(len(picture) for picture in row) + GAP for row in rows]
    across = min(COLUMNS, len(pictures)) * (width + GAP) + GAP
    sheet = _image().new("RGB", (across, sum(heights) + GAP), (225, 225, 225))
    for number, row in enumerate(rows):
        for column, picture in enumerate(row):
            corner = (GAP + column * (width + GAP), GAP + sum(heights[:number]))
            sheet.paste(_image().fromarray(picture), corner)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def _image() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f"pictures need Pillow: pip install 'aligngym[gui]' ({error})") from error
    return Image
