"""Where tasks on live pages come from: MiniWoB++, or a folder of HTML pages whose elements are asked for by name."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from .elements import ELEMENTS_JS, read_elements
from .instructions import unambiguous
from .session import BrowserSession

MINIWOB_TASKS = (
    "click-button",
    "click-button-sequence",
    "click-checkboxes",
    "click-dialog",
    "click-link",
    "click-option",
    "click-tab",
    "click-test",
    "click-test-2",
    "enter-text",
    "focus-text",
    "login-user",
    "scroll-text-2",
)
"""Tasks of clicking, typing and scrolling whose instruction says everything and whose page moves by no clock."""

MINIWOB_JS = """async goal => {
    const style = new CSSStyleSheet();
    style.replaceSync('#query, #reward-display, #click-canvas, #sync-task-cover {visibility: hidden !important}');
    document.adoptedStyleSheets.push(style);
    core.EPISODE_MAX_TIME = 1e9;
    Math.seedrandom(goal);
    core.startEpisodeReal();
    while (!WOB_TASK_READY) await new Promise(done => setTimeout(done, 10));
    const told = core.getUtterance();
    return told.utterance ?? told;
}"""
TARGET_JS = """index => {
    const target = window.__aligngym_elements[index];
    addEventListener('click', event => event.composedPath().includes(target) && aligngymSignal('hit'), true);
}"""


class TaskSource(ABC):
    """Pages and what is to be done on them.

    Attributes:
        root: the folder that is served.
        names: of the tasks.
        top: CSS pixels at the top of the viewport that are no part of the task, and are cut off the screenshot.
        window: least width and height of the viewport, in CSS pixels, of which a screenshot may show less.
        zoom: screenshot pixels per CSS pixel for a screenshot of 288 pixels' height.
    """

    root: Path
    names: tuple[str, ...]
    top: ClassVar[int] = 0
    window: ClassVar[tuple[int, int]] = (1, 1)
    zoom: ClassVar[float]

    @abstractmethod
    def start(self, session: BrowserSession, name: str, goal: int, max_bytes: int) -> str | None:
        """Open a task with the goal of that seed, and return the instruction.

        None if this seed gives no goal whose instruction has at most ``max_bytes`` bytes of UTF-8.
        """

    @abstractmethod
    def outcome(self, session: BrowserSession) -> float | None:
        """The reward of a task that has ended by itself, None of one that goes on."""


class MiniWoB(TaskSource):
    """Tasks of MiniWoB++ (Liu et al. 2018, arXiv 1802.08802): its goals, its instructions, its rewards in [-1, 1].

    The instruction is taken off the page, where it would be drawn above the task. Deviation: there are no clocks; the
    reward does not shrink with time, and no time runs out.

    Args:
        tasks: names of tasks, None for :data:`MINIWOB_TASKS`.

    Raises:
        ImportError: if the package ``miniwob`` is missing.
        ValueError: for unknown tasks, or none.
    """

    top = 50
    window = (500, 240)  # as in its own environments; dialogs place themselves by it
    zoom = 1.8

    def __init__(self, tasks: Sequence[str] | None = None) -> None:
        spec = importlib.util.find_spec("miniwob")  # importing it would load selenium
        if spec is None or spec.origin is None:
            raise ImportError("MiniWoB++ tasks need miniwob, which is not installed: pip install 'aligngym[gui]'")
        self.root = Path(spec.origin).parent / "html"
        known = sorted(path.stem for path in (self.root / "miniwob").glob("*.html"))
        self.names = _chosen(MINIWOB_TASKS if tasks is None else tasks, known)

    def start(self, session: BrowserSession, name: str, goal: int, max_bytes: int) -> str | None:
        session.open(f"miniwob/{name}.html")
        instruction = str(session.evaluate(MINIWOB_JS, goal))
        return instruction if len(instruction.encode()) <= max_bytes else None

    def outcome(self, session: BrowserSession) -> float | None:
        raw = session.evaluate("() => WOB_DONE_GLOBAL ? WOB_RAW_REWARD_GLOBAL : null")
        return None if raw is None else float(np.clip(raw, -1, 1))


class Pages(TaskSource):
    """A folder of HTML pages; the task is to click an element that the instruction names.

    The goal is drawn from the elements that are on the live page, can be reached by a click in their middle, and have a
    name that no other element has. The reward is 1 as soon as the element, or something in it, receives a click.

    Args:
        root: the folder, served as it is: links that start with ``/`` start there.
        tasks: paths of pages in it, None for every ``.html`` file.

    Raises:
        ValueError: if the folder is none or has no pages, or for unknown pages.
    """

    zoom = 0.75

    def __init__(self, root: str | Path, tasks: Sequence[str] | None = None) -> None:
        self.root = Path(root)
        known = sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*.html"))
        if not known:
            raise ValueError(f"pages is {str(root)!r}, expected a folder with .html files in it")
        self.names = _chosen(known if tasks is None else tasks, known)

    def start(self, session: BrowserSession, name: str, goal: int, max_bytes: int) -> str | None:
        session.open(name)
        found = read_elements(session.evaluate(ELEMENTS_JS))
        clear = unambiguous([(element.role, element.name) for element in found])
        goals = [
            (index, f"click the {element.name} {element.role}")
            for index, (element, (by_name, _)) in enumerate(zip(found, clear, strict=True))
            if by_name and any(character.isalnum() for character in element.name)
        ]
        goals = [(index, instruction) for index, instruction in goals if len(instruction.encode()) <= max_bytes]
        if not goals:
            return None
        index, instruction = goals[int(np.random.default_rng(goal).integers(len(goals)))]
        session.evaluate(TARGET_JS, index)
        return instruction

    def outcome(self, session: BrowserSession) -> float | None:
        return 1.0 if session.signals() else None


def _chosen(tasks: Sequence[str], known: list[str]) -> tuple[str, ...]:
    if isinstance(tasks, str) or not tasks:
        raise ValueError(f"tasks is {tasks!r}, expected a list of some of {known}")
    if unknown := sorted(set(tasks) - set(known)):
        raise ValueError(f"tasks has {unknown}, expected some of {known}")
    return tuple(tasks)
