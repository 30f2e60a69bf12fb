"""``GUIBrowser-v0``: do on a live page what the instruction says, by clicking, typing and scrolling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import InvalidAction, ResetNeeded
from numpy.typing import NDArray

from ..batching import check_positive, valid_actions
from .elements import ELEMENTS_JS, Element, read_elements
from .pages import MiniWoB, Pages, TaskSource
from .session import BrowserLost, BrowserSession

KINDS = ("click", "type", "scroll", "done")
DRAWS = 20  # of tasks, before one that has a goal is given up on


class GUIBrowserEnv(gymnasium.Env[Any, Any]):
    """Tasks on live pages, in a headless Chromium of its own process (see :class:`.session.BrowserSession`).

    Observation: ``screenshot [height, width, 3]`` uint8 and ``instruction [max_instruction_bytes]`` uint8 (UTF-8,
    padded with 0), as in ``GUIGrounding-v0``.

    Action: a dictionary of ``kind`` (0 click, 1 type, 2 scroll, 3 done), ``point [2]`` float32 in [0, 1] (``x, y`` as
    shares of the screenshot's width and height, from its upper left corner) and ``text [max_text_bytes]`` uint8 (UTF-8,
    padded with 0). *Click* presses the left button at the point. *Type* clicks there and types the text; a newline is
    Enter, a tab is Tab, and other bytes that are no printable text are left out. *Scroll* turns the wheel by ``2 *
    (point_y - 0.5)`` screenshot heights, downwards if positive, over the place of the last click (the middle before
    it). *Done* ends the episode. With ``clicks_only`` an action is one point that is
    clicked, ``[1, 2]`` float32, as an answer in ``GUIGrounding-v0``.

    Episodes *terminate* when the task ends by itself, which is when it is rewarded, or with *done*; they are
    *truncated* after ``max_steps`` actions. Every other reward is 0. Rewards are MiniWoB++'s raw ones in [-1, 1], or 1
    for a click on the element that was named.

    A browser that dies or hangs ends the episode: that step is rewarded with NaN, is truncated, shows the last
    screenshot, and says why in ``info["invalid"]``. The next ``reset`` starts another browser. Where a page cannot be
    opened, twice, the episode starts with a black screenshot and no instruction, and its first step ends it so.

    The info of a finished episode holds ``task``, ``prompt`` (the instruction), ``completion`` (the actions as text)
    and ``reward/success`` (1 for a reward above 0). Option of ``reset``: ``task``, a name out of ``self.source.names``.

    One seed gives one task, goal and screenshot: animations, transitions and the caret are off, ``Math.random`` is
    seeded. What a page does by the clock stays.

    Args:
        tasks: names of MiniWoB++ tasks, or pages of the folder; None for :data:`.pages.MINIWOB_TASKS`, or all pages.
        pages: a folder of HTML pages, whose elements are to be clicked; None for MiniWoB++.
        height: of the screenshot in pixels, at least 1.
        width: the same.
        scale: screenshot pixels per CSS pixel; None shows MiniWoB++'s 160 rows, or 384 rows of other pages.
        max_steps: actions an episode has at most, at least 1.
        max_instruction_bytes: goals with a longer instruction are not drawn.
        max_text_bytes: the longest text that one action types, at least 1.
        clicks_only: make points the actions.
        timeout: seconds that the browser may take for one thing.
        render_mode: None or "rgb_array": the screenshot.

    Raises:
        ValueError: for an argument outside what is allowed.
        ImportError: if a package of the extra ``gui`` is missing; on the first ``reset``, but for MiniWoB++'s.
        FileNotFoundError: on the first ``reset``, if there is no Chromium.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}

    def __init__(
        self,
        *,
        tasks: Sequence[str] | None = None,
        pages: str | Path | None = None,
        height: int = 288,
        width: int = 384,
        scale: float | None = None,
        max_steps: int = 8,
        max_instruction_bytes: int = 96,
        max_text_bytes: int = 32,
        clicks_only: bool = False,
        timeout: float = 10.0,
        render_mode: str | None = None,
    ) -> None:
        check_positive(height=height, width=width, max_steps=max_steps)
        check_positive(max_instruction_bytes=max_instruction_bytes, max_text_bytes=max_text_bytes)
        for name, value in {"scale": 1.0 if scale is None else scale, "timeout": timeout}.items():
            if not value > 0 or not math.isfinite(value):
                raise ValueError(f"{name} is {value!r}, expected a finite number above 0")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode is {render_mode!r}, expected None or one of {self.metadata['render_modes']}")
        self.source: TaskSource = MiniWoB(tasks) if pages is None else Pages(pages, tasks)
        self.scale = self.source.zoom * height / 288 if scale is None else scale
        self.max_steps, self.clicks_only, self.timeout, self.render_mode = max_steps, clicks_only, timeout, render_mode
        self.observation_space = spaces.Dict(
            instruction=spaces.Box(0, 255, (max_instruction_bytes,), np.uint8),
            screenshot=spaces.Box(0, 255, (height, width, 3), np.uint8),
        )
        point = spaces.Box(0, 1, (2,), np.float32)
        text = spaces.Box(0, 255, (max_text_bytes,), np.uint8)
        self.action_space = (
            spaces.Box(0, 1, (1, 2), np.float32)
            if clicks_only
            else spaces.Dict(kind=spaces.Discrete(len(KINDS)), point=point, text=text)
        )
        self._session: BrowserSession | None = None
        self._shown = False  # whether the session's page is at the episode's last action
        self._lost: str | None = None  # why the episode is invalid
        self._over = True
        self._task, self._goal, self._instruction = "", 0, ""
        self._actions: list[dict[str, Any]] = []
        self._screen = np.zeros((height, width, 3), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[np.uint8]], dict[str, Any]]:
        """Start a new episode, in a fresh browser if the last one was lost.

        Args:
            seed: of the task and its goal; None lets the generator run on.
            options: ``task``, the name of one, if it is not to be drawn.

        Raises:
            ValueError: for an unknown option or task, or if 20 drawn tasks in a row have no goal to offer.
            BrowserLost: if no browser can be started.
        """
        super().reset(seed=seed)
        options = options or {}
        if unknown := sorted(set(options) - {"task"}):
            raise ValueError(f"options has unknown keys {unknown}, expected some of ['task']")
        if (task := options.get("task", self.source.names[0])) not in self.source.names:
            raise ValueError(f"options['task'] is {task!r}, expected one of {list(self.source.names)}")
        self._actions, self._over = [], False
        for _ in range(DRAWS):
            index, self._goal = (
                int(self.np_random.integers(len(self.source.names))),
                int(self.np_random.integers(2**31)),
            )
            self._task = task if "task" in options else self.source.names[index]
            if self._show():
                return self._observation(), {}
        self._over = True
        raise ValueError(
            f"none of {DRAWS} drawn tasks has a goal: tasks has {list(self.source.names)[:8]}, expected some whose "
            f"instructions take at most max_instruction_bytes={self._instruction_bytes} bytes"
        )

    def step(self, action: Any) -> tuple[dict[str, NDArray[np.uint8]], float, bool, bool, dict[str, Any]]:
        """Take an action.

        Raises:
            gymnasium.error.InvalidAction: for an action outside the space.
            gymnasium.error.ResetNeeded: when no episode is running.
        """
        if self._over:
            raise ResetNeeded("no episode is running: call reset() before step()")
        action = self._plain(action)
        if not self._shown and self._lost is None:
            self._show()  # a copy has no browser yet
        self._actions.append(action)
        outcome, terminated = None, False
        if self._lost is None:
            try:
                session = self._browser()
                self._perform(session, action)
                outcome = self.source.outcome(session)
                terminated = outcome is not None or KINDS[action["kind"]] == "done"
                self._screen = session.screenshot()
            except BrowserLost as error:
                self._lost, self._shown, terminated = str(error), False, False
        truncated = not terminated and (self._lost is not None or len(self._actions) >= self.max_steps)
        self._over = terminated or truncated
        reward = outcome or 0.0 if self._lost is None else math.nan
        info = self._episode(reward) if self._over else {}
        return self._observation(), reward, terminated, truncated, info

    def elements(self) -> list[Element]:
        """The interactive elements that the screenshot shows, with boxes as shares of its width and height.

        Raises:
            gymnasium.error.ResetNeeded: before the first reset.
            BrowserLost: if the browser is lost.
        """
        if not self._shown:
            if self._over:
                raise ResetNeeded("no page is open: call reset() first")
            self._show()
        height, width = self._view
        found = read_elements(self._browser().evaluate(ELEMENTS_JS))
        boxes = [np.array(e.box) - [0, self.source.top, 0, self.source.top] for e in found]
        shares = [np.clip(box / [width, height, width, height], 0, 1) for box in boxes]
        return [
            replace(element, box=tuple(share.tolist()))
            for element, share in zip(found, shares, strict=True)
            if share[0] < share[2] and share[1] < share[3]
        ]

    def render(self) -> NDArray[np.uint8] | None:
        """The last screenshot, or None without a render mode."""
        return None if self.render_mode is None else self._screen.copy()

    def close(self) -> None:
        """Kill the browser and remove its profile; a second call does nothing. A later ``reset`` starts another."""
        if self._session is not None:
            self._session.close()
        self._session, self._shown = None, False

    def get_state(self) -> dict[str, Any]:
        """The generator, the task and its goal, and the actions taken, of JSON's types."""
        return {
            "generator": self.np_random.bit_generator.state,
            "task": self._task,
            "goal": self._goal,
            "actions": [dict(action) for action in self._actions],
            "over": self._over,
            "lost": self._lost,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue where ``get_state`` was called, in an environment made with the same arguments.

        A page cannot be copied: the episode's actions are taken again on a fresh one. Where a page depends on the
        clock, what they lead to may differ.

        Raises:
            ValueError: if the task is none of this environment's.
        """
        if state["task"] not in ("", *self.source.names):
            raise ValueError(f"state is of the task {state['task']!r}, expected one of {list(self.source.names)}")
        self.np_random.bit_generator.state = state["generator"]
        self._task, self._goal = str(state["task"]), int(state["goal"])
        self._actions = [dict(action) for action in state["actions"]]
        self._over, self._shown = bool(state["over"]), False
        if not self._over:
            self._show()
        self._lost = state["lost"] or self._lost

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the browser: a copy starts its own, and takes the episode's actions again in it."""
        return self.__dict__ | {"_session": None, "_shown": False}

    @property
    def _view(self) -> tuple[float, float]:
        """Height and width of what the screenshot shows, in CSS pixels."""
        height, width = self._screen.shape[:2]
        return height / self.scale, width / self.scale

    @property
    def _instruction_bytes(self) -> int:
        return int(self.observation_space["instruction"].shape[0])  # type: ignore[index]

    def _browser(self) -> BrowserSession:
        if self._session is None or self._session.closed:
            (height, width), top, window = self._view, self.source.top, self.source.window
            self._session = BrowserSession(
                self.source.root,
                window=(max(math.ceil(width), window[0]), max(math.ceil(height) + top, window[1])),
                view=(0, top, width, height),
                scale=self.scale,
                timeout=self.timeout,
            )
        return self._session

    def _show(self) -> bool:
        """Open the page of the episode and take its actions again; False if there is no such goal.

        A browser that is lost on the way is replaced once; after that the episode is lost.
        """
        self._lost = None
        for _ in range(2):
            session = self._browser()
            try:
                instruction = self.source.start(session, self._task, self._goal, self._instruction_bytes)
                if instruction is None:
                    return False
                for action in self._actions:
                    self._perform(session, action)
                self._instruction, self._screen, self._shown = instruction, session.screenshot(), True
                return True
            except BrowserLost as error:
                lost = str(error)
        self._instruction, self._screen, self._shown = "", np.zeros_like(self._screen), False
        self._lost = lost
        return True

    def _perform(self, session: BrowserSession, action: Mapping[str, Any]) -> None:
        x, y = self._pixel(action["point"])
        kind = KINDS[action["kind"]]
        if kind in ("click", "type"):
            session.click(x, y)
        if kind == "type":
            session.type(action["text"])
        if kind == "scroll":
            clicks = [a["point"] for a in self._actions if a is not action and KINDS[a["kind"]] in ("click", "type")]
            place = self._pixel(clicks[-1] if clicks else (0.5, 0.5))
            session.scroll(*place, (action["point"][1] - 0.5) * 2 * self._view[0])

    def _pixel(self, point: Sequence[float]) -> tuple[float, float]:
        """A point of the screenshot in CSS pixels of the viewport; its far edges are inside."""
        height, width = self._view
        return min(point[0] * width, width - 0.5), min(point[1] * height, height - 0.5) + self.source.top

    def _plain(self, action: Any) -> dict[str, Any]:
        """An action of JSON's types; raises InvalidAction."""
        if self.clicks_only:
            point = valid_actions(np.asarray(action)[None], self.action_space, 1)[0, 0]
            return {"kind": 0, "point": point.tolist(), "text": ""}
        if not self.action_space.contains(action):
            raise InvalidAction(f"action {action} is not in {self.action_space}")
        raw = action["text"].tobytes().partition(b"\0")[0].decode("utf-8", "ignore")
        text = "".join(c for c in raw if c.isprintable() or c in "\n\t")
        return {"kind": int(action["kind"]), "point": action["point"].tolist(), "text": text}

    def _observation(self) -> dict[str, NDArray[np.uint8]]:
        raw = self._instruction.encode().ljust(self._instruction_bytes, b"\0")
        return {"instruction": np.frombuffer(raw, np.uint8).copy(), "screenshot": self._screen.copy()}

    def _episode(self, reward: float) -> dict[str, Any]:
        info = {"task": self._task, "prompt": self._instruction, "completion": "; ".join(map(_text, self._actions))}
        if self._lost is not None:
            return {**info, "invalid": self._lost}
        return {**info, "reward/success": float(reward > 0)}


def _text(action: Mapping[str, Any]) -> str:
    kind, (x, y) = KINDS[action["kind"]], action["point"]
    arguments = {"done": "", "type": f"{x:.3f}, {y:.3f}, {action['text']!r}"}.get(kind, f"{x:.3f}, {y:.3f}")
    return f"{kind}({arguments})"
