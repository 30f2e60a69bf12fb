"""``VisualJigsaw-v0``: the pieces of a picture or clip are shown in mixed order; the answer puts them in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ...rewards import as_reward
from ...rewards.jigsaw import inverse_permutation
from ..batching import Flags, Rows, check_positive, row_indices
from ..generation import EpisodeScores, GenerationEnv, GenerationVectorEnv
from .drawing import draw_puzzle
from .puzzles import EMBEDDED, Puzzles, load_puzzles

if TYPE_CHECKING:
    from ...rewards import Reward

TILES = (
    "The {count} tiles of a picture, cut into {rows} rows and {columns} columns, are shown in mixed order. Give the "
    "numbers (1 to {count}) of the shown tiles in the picture's order: row by row, from the upper left."
)
FRAMES = (
    "The {count} frames of a video are shown in mixed order. Give the numbers (1 to {count}) of the shown frames in "
    "the order of time."
)


class VisualJigsawVectorEnv(GenerationVectorEnv):
    """A batch of puzzles: in which order do the pieces belong? (Visual Jigsaw, Wu et al. 2025, arXiv 2509.25190).

    Observation: ``tiles`` ``[K, h, w, 3]`` uint8, the pieces as shown; ``h`` and ``w`` are multiples of 16. Action:
    ``[K]`` int64 in ``1 ... K``: for each place of the original in turn, the number of the shown piece that belongs
    there, counted from 1. Where slot ``j`` shows original piece ``o_j``, the right answer is the *inverse* permutation
    of ``o``. A number may be given twice, which is wrong. One turn: the action terminates the episode.

    The reward is called with the answers as completions, int64 arrays ``[K]``, and the column ``order``, the right
    answer. Beside the reward's own terms there is ``exact``, 1 where the whole answer is right.

    Rows of equal seeds share the picture and the permutation. The info of a finished episode holds ``prompt`` (the
    question in words), ``prompt_index`` (which picture), ``completion`` (the answer, numbers and commas), ``order``,
    ``columns`` and ``invalid``. Option of ``reset``: ``prompt_index``.

    Deviations: pieces are arrays of an observation, where the paper shows a language model one image each; the size of
    the grid is not said there; depth orders are left out. Clips of its own this package has none: ``"video"`` is a
    pan over a screenshot, not a recording.

    Args:
        num_envs: episodes side by side.
        source: "screens", "video", a folder of images, or a list or array of uint8 images ``[H, W, 3]`` or clips ``[K,
            H, W, 3]``; see :func:`~aligngym.envs.gui.puzzles.load_puzzles`.
        split: "train", "validation" or "test", of the embedded screenshots.
        rows: of tiles that a picture is cut into; clips are not cut.
        columns: the same.
        frames: of a pan; clips have their own number.
        height: that a picture is brought to, None: its own; rounded down so that pieces have sides of multiples of 16.
        width: the same.
        min_difference: puzzles of which two pieces are more alike than this, as the mean absolute difference of pixels
            in [0, 255], are left out: their right order could not be told. 0 keeps all.
        reward: a name, a JSON form, a function with TRL's signature, or a ``Reward``.
        render_mode: None or "rgb_array": the pieces as shown, and as the answer arranges them, green where right.
        device: None for numpy observations, a torch device for tensors there.

    Attributes:
        num_prompts: puzzles that are left.
        num_pieces: K.

    Raises:
        ValueError: for an argument outside what is allowed, an unknown reward, or where no puzzle is left.
        FileNotFoundError: for data that is not there.
        TypeError: for a source of another kind.
        ImportError: without Pillow (the extra ``gui``).
    """

    metadata = {**GenerationVectorEnv.metadata, "render_modes": ["rgb_array"]}
    option_names = ("prompt_index",)
    model = "gui-clicker"  # whose page encoder the policy has unless another is named

    def __init__(
        self,
        num_envs: int = 1,
        *,
        source: Any = "screens",
        split: str = "train",
        rows: int = 3,
        columns: int = 3,
        frames: int = 6,
        height: int | None = None,
        width: int | None = None,
        min_difference: float = 2.0,
        reward: str | Mapping[str, Any] | Callable[..., Any] | Reward = "jigsaw",
        render_mode: str | None = None,
        device: str | None = None,
    ) -> None:
        sizes = {"height": height, "width": width}
        check_positive(
            num_envs=num_envs, rows=rows, columns=columns, frames=frames,
            **{name: size for name, size in sizes.items() if size is not None},
        )  # fmt: skip
        if not min_difference >= 0:
            raise ValueError(f"min_difference is {min_difference!r}, expected a number of at least 0")
        load = _embedded if isinstance(source, str) and source in EMBEDDED else _puzzles
        self.puzzles = puzzles = load(
            source, split, min_difference, rows=rows, columns=columns, frames=frames, height=height, width=width
        )
        self.reward, self.num_prompts, self.num_pieces = as_reward(reward), len(self.puzzles), puzzles.count
        count, shape = puzzles.count, (puzzles.count, *puzzles.piece, 3)
        super().__init__(
            num_envs,
            spaces.Dict(tiles=spaces.Box(0, 255, shape, np.uint8)),
            spaces.MultiDiscrete([count] * count, start=[1] * count),
            max_steps=1,
            render_mode=render_mode,
            device=device,
        )
        text = TILES if puzzles.kind == "tiles" else FRAMES
        self.prompt = text.format(count=count, rows=puzzles.grid[0], columns=puzzles.grid[1])
        self._tiles = np.zeros((num_envs, *shape), np.uint8)
        self._index = np.zeros(num_envs, np.int64)
        self._shown = np.tile(np.arange(count), (num_envs, 1))  # slot -> original piece
        self._answers = np.zeros((num_envs, count), np.int64)  # 0: none yet

    def _start(self, rows: Rows, options: Mapping[str, Any]) -> None:
        if "prompt_index" in options:
            self._index[rows] = row_indices(options["prompt_index"], self.num_envs, self.num_prompts)[rows]
        else:
            self._index[rows] = [self._draw_prompt(row) for row in rows]
        for row in rows:
            self._shown[row] = self.generators[row].permutation(self.num_pieces)
        self._show(rows)
        self._answers[rows] = 0

    def _show(self, rows: Rows) -> None:
        """Lay the rows' pieces out; a picture is decoded once, however many rows share it."""
        cut: dict[int, NDArray[np.uint8]] = {}
        for row in rows:
            index = int(self._index[row])
            if index not in cut:
                cut[index] = self.puzzles.pieces(index)
            self._tiles[row] = cut[index][self._shown[row]]

    def _observe(self) -> dict[str, NDArray[Any]]:
        return {"tiles": self._tiles.copy()}

    def _apply(self, actions: NDArray[Any], active: Flags) -> tuple[Flags, Flags]:
        self._answers[active] = actions[active]
        return active.copy(), np.zeros_like(active)

    def _score(self, rows: Rows) -> EpisodeScores:
        answers, orders = self._answers[rows], [self.order(row) for row in rows]
        prompts, columns = [self.prompt] * len(rows), [order.tolist() for order in orders]
        self.reward.set_progress(self.episodes)
        scores = self.reward.score([answer.copy() for answer in answers], prompts, order=columns)
        absent = np.isnan(scores.values)
        reasons = [
            r or ("the reward does not apply" if a else None) for r, a in zip(scores.reasons, absent, strict=True)
        ]
        info: dict[str, list[Any]] = {
            "prompt": prompts,
            "prompt_index": self._index[rows].tolist(),
            "completion": [", ".join(map(str, answer)) for answer in answers.tolist()],
            "order": columns,
            "columns": [{"order": order} for order in columns],
        }
        exact = (answers == np.stack(orders)).all(1).astype(np.float64)
        return EpisodeScores(scores.values, {**scores.terms, "exact": exact}, reasons, info)

    def order(self, row: int) -> NDArray[np.int64]:
        """The right answer of the episode in a row, ``[K]`` from 1."""
        return inverse_permutation(self._shown[row] + 1)

    def _render_row(self, row: int) -> Any:
        return draw_puzzle(self._tiles[row], self._answers[row], self.order(row), self.puzzles.grid[1])

    def get_state(self) -> dict[str, Any]:
        """Everything that the next steps depend on, of JSON's types."""
        own = {"index": self._index.tolist(), "shown": self._shown.tolist(), "answers": self._answers.tolist()}
        return {**super().get_state(), **own, "reward": self.reward.get_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where ``get_state`` was called, in an environment made with the same arguments."""
        super().set_state(state)
        self._index[:], self._shown[:], self._answers[:] = state["index"], state["shown"], state["answers"]
        self._show(np.arange(self.num_envs))
        self.reward.set_state(state["reward"])


def _puzzles(source: Any, split: str, min_difference: float, **sizes: Any) -> Puzzles:
    puzzles = load_puzzles(source, split, **sizes)
    return puzzles.distinct(min_difference) if min_difference else puzzles


_embedded = lru_cache(maxsize=8)(_puzzles)  # what is embedded stays as it is, and to decode all of it takes seconds


class VisualJigsawEnv(GenerationEnv):
    """One episode of :class:`VisualJigsawVectorEnv` at a time; it takes the same arguments, but ``num_envs``."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(VisualJigsawVectorEnv(1, **kwargs))
