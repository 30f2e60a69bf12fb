"""``GUIGrounding-v0``: a screenshot and an instruction are shown, one or several points answer, the first counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ...rewards import as_reward
from ..batching import Flags, Rows, check_positive, row_indices
from ..generation import EpisodeScores, GenerationEnv, GenerationVectorEnv
from .drawing import draw_answer
from .screens import HEIGHT, WIDTH, Screens, load_screens

if TYPE_CHECKING:
    from ...rewards import Reward

RESERVED = ("completions", "prompts", "box")  # names that a reward is called with


class GUIGroundingVectorEnv(GenerationVectorEnv):
    """A batch of grounding questions: where on this screen would one click to do that?

    Observation: ``screenshot`` ``[height, width, 3]`` uint8 and ``instruction`` ``[max_instruction_bytes]`` uint8
    (UTF-8, padded with 0). Action: ``[max_points, 2]`` float32, points ``(x, y)`` as shares of the observed
    screenshot's width and height, from its upper left corner. The answer is the rows before the first one with a
    negative entry, so that -1 marks rows that are not used; it may be empty, which is a malformed answer. One turn: the
    action terminates the episode and is rewarded.

    The reward is called with the answers as completions, arrays ``[n, 2]``, and the columns ``box`` (``[x0, y0, x1,
    y1]`` in the same coordinates), ``kind`` and the facts of the target (``role``, ``name``, ``page``, ...). Beside the
    reward's own terms there is ``accuracy``, 1 where the first point is in the box, edges included.

    The info of a finished episode holds ``prompt`` (the instruction), ``prompt_index``, ``completion`` (the points as
    JSON), ``box``, ``columns`` and ``invalid``, as in ``LLMAlign-v0``. Option of ``reset``: ``prompt_index``.

    Args:
        num_envs: episodes side by side.
        screens: the data: None (embedded), a file or folder, see :func:`~aligngym.envs.gui.screens.load_screens`, or
            :class:`~aligngym.envs.gui.screens.Screens`.
        split: "train", "validation" or "test" ("eval" is "test").
        kinds: of instructions that are asked: "direct", "functional", or both.
        reward: a name, a JSON form, a function with TRL's signature, or a ``Reward``.
        max_points: of an answer, at least 1.
        width: of the observed screenshot in pixels; others are scaled to fit, into the upper left corner.
        height: the same.
        max_instruction_bytes: the longest instruction, at least 1.
        render_mode: None or "rgb_array": the screenshot with the target's box and the answer drawn on it.
        device: None for numpy observations, a torch device for tensors there.

    Raises:
        ValueError: for an argument outside what is allowed, an unknown reward, or an instruction that is too long.
        FileNotFoundError: for data that is not there.
        ImportError: without Pillow (the extra ``gui``).
    """

    metadata = {**GenerationVectorEnv.metadata, "render_modes": ["rgb_array"]}
    option_names = ("prompt_index",)
    model = "gui-clicker"  # whose policy trains here unless another is named

    def __init__(
        self,
        num_envs: int = 1,
        *,
        screens: Screens | str | Path | None = None,
        split: str = "train",
        kinds: Sequence[str] | None = None,
        reward: str | Mapping[str, Any] | Callable[..., Any] | Reward = "point_in_box",
        max_points: int = 1,
        width: int = WIDTH,
        height: int = HEIGHT,
        max_instruction_bytes: int = 96,
        render_mode: str | None = None,
        device: str | None = None,
    ) -> None:
        check_positive(max_points=max_points, width=width, height=height, max_instruction_bytes=max_instruction_bytes)
        self.screens = screens if isinstance(screens, Screens) else load_screens(screens, split, kinds)
        self.reward, self.max_points = as_reward(reward), max_points
        super().__init__(
            num_envs,
            spaces.Dict(
                screenshot=spaces.Box(0, 255, (height, width, 3), np.uint8),
                instruction=spaces.Box(0, 255, (max_instruction_bytes,), np.uint8),
            ),
            spaces.Box(-1, 1, (max_points, 2), np.float32),
            max_steps=1,
            render_mode=render_mode,
            device=device,
        )
        if clash := sorted({name for t in self.screens.targets for name in t.facts if name in RESERVED}):
            raise ValueError(f"{self.screens.source} has columns {clash}, which rewards are called with; rename them")
        self.targets, self.num_prompts = self.screens.targets, len(self.screens.targets)
        self._encoded = [self._encode(t.instruction, i) for i, t in enumerate(self.targets)]
        self._pixels = np.zeros((num_envs, height, width, 3), np.uint8)
        self._bytes = np.zeros((num_envs, max_instruction_bytes), np.uint8)
        self._index = np.zeros(num_envs, np.int64)
        self._boxes = np.zeros((num_envs, 4))
        self._answers = np.full((num_envs, max_points, 2), -1.0)

    def _encode(self, instruction: str, index: int) -> NDArray[np.uint8]:
        raw, most = instruction.encode("utf-8"), self.single_observation_space["instruction"].shape[0]  # type: ignore[index]
        if len(raw) > most or b"\0" in raw:
            raise ValueError(
                f"instruction {index} of {self.screens.source} takes {len(raw)} bytes of UTF-8, expected at most "
                f"max_instruction_bytes={most} and no NUL character: {instruction[:60]!r}"
            )
        return np.frombuffer(raw.ljust(most, b"\0"), np.uint8)

    def _start(self, rows: Rows, options: Mapping[str, Any]) -> None:
        if "prompt_index" in options:
            self._index[rows] = row_indices(options["prompt_index"], self.num_envs, self.num_prompts)[rows]
        else:
            self._index[rows] = [self._draw_prompt(row) for row in rows]
        self._show(rows)
        self._answers[rows] = -1.0

    def _show(self, rows: Rows) -> None:
        """Put the screens of the rows' targets before them; each is decoded once, however many rows share it."""
        height, width = self._pixels.shape[1:3]
        decoded: dict[int, tuple[NDArray[np.uint8], tuple[float, float]]] = {}
        for row in rows:
            target = self.targets[self._index[row]]
            if target.screen not in decoded:
                decoded[target.screen] = self.screens.pixels(target.screen, width, height)
            self._pixels[row], (x, y) = decoded[target.screen]
            self._bytes[row] = self._encoded[self._index[row]]
            self._boxes[row] = np.array(target.box) * [x, y, x, y]

    def _observe(self) -> dict[str, NDArray[Any]]:
        return {"instruction": self._bytes.copy(), "screenshot": self._pixels.copy()}

    def _apply(self, actions: NDArray[Any], active: Flags) -> tuple[Flags, Flags]:
        self._answers[active] = actions[active]
        return active.copy(), np.zeros_like(active)

    def _score(self, rows: Rows) -> EpisodeScores:
        targets = [self.targets[i] for i in self._index[rows]]
        answers, boxes = [answer_of(self._answers[row]) for row in rows], self._boxes[rows]
        prompts, names = [t.instruction for t in targets], {name: None for t in targets for name in t.facts}
        columns: dict[str, list[Any]] = {name: [t.facts.get(name) for t in targets] for name in names}
        columns |= {"kind": [t.kind for t in targets], "box": boxes.tolist()}
        self.reward.set_progress(self.episodes)
        scores = self.reward.score([a.copy() for a in answers], prompts, **columns)
        absent = np.isnan(scores.values)
        reasons = [
            r or ("the reward does not apply" if a else None) for r, a in zip(scores.reasons, absent, strict=True)
        ]
        right = np.array([_inside(a, box) for a, box in zip(answers, boxes, strict=True)])
        info: dict[str, list[Any]] = {
            "prompt": prompts,
            "prompt_index": self._index[rows].tolist(),
            "completion": [json.dumps(a.round(4).tolist()) for a in answers],
            "box": boxes.tolist(),
            "columns": [t.facts | {"kind": t.kind} for t in targets],
        }
        return EpisodeScores(scores.values, {**scores.terms, "accuracy": right}, reasons, info)

    def draw(self, index: int, action: NDArray[Any]) -> NDArray[np.uint8]:
        """A screen with its instruction above it, the target's box, and the points of an answer, numbered.

        Args:
            index: of the target, ``prompt_index`` in the info of an episode.
            action: ``[max_points, 2]``.

        Returns:
            ``[height + some lines, width, 3]`` uint8.
        """
        target, (height, width) = self.targets[index], self._pixels.shape[1:3]
        pixels, (x, y) = self.screens.pixels(target.screen, width, height)
        return draw_answer(pixels, target.instruction, np.array(target.box) * [x, y, x, y], answer_of(action))

    def _render_row(self, row: int) -> Any:
        return self.draw(int(self._index[row]), self._answers[row])

    def get_state(self) -> dict[str, Any]:
        """Everything that the next steps depend on, of JSON's types."""
        own = {"index": self._index.tolist(), "answers": self._answers.tolist(), "reward": self.reward.get_state()}
        return {**super().get_state(), **own}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where ``get_state`` was called, in an environment made with the same arguments."""
        super().set_state(state)
        self._index[:], self._answers[:] = state["index"], state["answers"]
        self._show(np.arange(self.num_envs))
        self.reward.set_state(state["reward"])


def answer_of(action: NDArray[Any]) -> NDArray[np.float64]:
    """The points ``[n, 2]`` of an action ``[max_points, 2]``: its rows before the first one with a negative entry."""
    ends: NDArray[np.bool_] = np.any(np.asarray(action) < 0, axis=1)
    count = int(ends.argmax()) if ends.any() else len(ends)
    return np.array(action[:count], np.float64)


def _inside(answer: NDArray[np.float64], box: NDArray[np.float64]) -> float:
    if not len(answer):
        return 0.0
    x, y = answer[0]
    return float(box[0] <= x <= box[2] and box[1] <= y <= box[3])


class GUIGroundingEnv(GenerationEnv):
    """One episode of :class:`GUIGroundingVectorEnv` at a time; it takes the same arguments, but ``num_envs``."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(GUIGroundingVectorEnv(1, **kwargs))
