"""A browser in a process of its own: what happens to it can be told from here, and does not happen to the caller."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .chromium import executable
from .driver import remove

START_TIMEOUT = 60.0  # seconds; a cold start on a busy machine takes several
PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "FONTCONFIG_FILE", "FONTCONFIG_PATH")


class BrowserLost(RuntimeError):
    """The browser died, hung or failed; its processes are killed by now."""


class BrowserSession:
    """A headless Chromium with a temporary profile, showing pages of one folder.

    The folder is served on 127.0.0.1; the browser reaches that server and nothing else. Driver and browser are a
    process group each, with a bare environment and all their files in one temporary folder; both groups are killed and
    the folder is removed by ``close``, on any failure, when the session is garbage, and when the interpreter exits.
    If the caller is killed, the driver does the same.

    Args:
        root: the folder of pages.
        window: width and height of the viewport, in CSS pixels.
        view: left, top, width and height of what screenshots show of it.
        scale: screenshot pixels per CSS pixel.
        timeout: seconds that a call may take.

    Raises:
        ImportError: without playwright or pillow, naming the extra.
        FileNotFoundError: if there is no Chromium.
        BrowserLost: if it does not start.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        window: tuple[int, int],
        view: tuple[float, float, float, float],
        scale: float,
        timeout: float = 10.0,
    ) -> None:
        for module in ("playwright", "PIL"):
            if importlib.util.find_spec(module) is None:
                raise ImportError(f"live pages need {module}, which is not installed: pip install 'aligngym[gui]'")
        settings: dict[str, Any] = {"root": str(Path(root).resolve()), "executable": executable()}
        settings |= {"window": window, "view": view, "scale": scale}
        self.timeout = timeout
        self.folder = tempfile.mkdtemp(prefix="aligngym-browser-")
        environment = {key: os.environ[key] for key in PASSED_ON if key in os.environ}
        environment |= {"HOME": self.folder, "TMPDIR": self.folder}
        environment |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.driver", self.folder, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=environment,
            start_new_session=True,
        )
        self._end = weakref.finalize(self, _end, self._process, self.folder, os.getpid())
        self._buffer = b""
        self.address: str = self._receive("start", START_TIMEOUT)

    @property
    def pid(self) -> int:
        """Of the driver's process."""
        return self._process.pid

    @property
    def closed(self) -> bool:
        """Whether it was closed or lost."""
        return not self._end.alive

    def open(self, path: str) -> None:
        """Load a page of the folder without anything that earlier ones left: storage, cookies, history."""
        self._call("open", path)

    def evaluate(self, script: str, argument: Any = None) -> Any:
        """What a JavaScript function returns in the page, of JSON's types; a promise is waited for."""
        return self._call("evaluate", script, argument)

    def click(self, x: float, y: float) -> None:
        """Click a point, in CSS pixels of the viewport."""
        self._call("click", x, y)

    def type(self, text: str) -> None:
        """Type text where the focus is; a newline is Enter, a tab is Tab."""
        self._call("type", text)

    def scroll(self, x: float, y: float, pixels: float) -> None:
        """Turn the wheel over a point, in CSS pixels; downwards for positive ``pixels``."""
        self._call("scroll", x, y, pixels)

    def signals(self) -> list[str]:
        """What scripts have passed to ``window.aligngymSignal`` since ``open``, even if the page was left since."""
        return list(self._call("signalled"))

    def screenshot(self) -> NDArray[np.uint8]:
        """The view, uint8 ``[scale * height, scale * width, 3]``."""
        from PIL import Image

        raw = base64.b64decode(self._call("screenshot"))
        return np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))

    def close(self) -> None:
        """Kill the browser and remove its profile; a second call does nothing."""
        self._end()

    def _call(self, name: str, *arguments: Any) -> Any:
        if self.closed:
            raise BrowserLost("the browser was closed")
        try:
            self._process.stdin.write(json.dumps({"name": name, "arguments": arguments}).encode() + b"\n")  # type: ignore[union-attr]
        except OSError:
            self._lose(f"the process that drives the browser died before {name}")
        return self._receive(name, self.timeout)

    def _receive(self, name: str, timeout: float) -> Any:
        stdout, deadline = self._process.stdout, time.monotonic() + timeout
        assert stdout is not None
        waiting = select.poll()  # select.select knows only the first 1024 descriptors
        waiting.register(stdout, select.POLLIN)
        while not self._buffer.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not waiting.poll(math.ceil(1000 * left)):
                self._lose(f"the browser did not answer {name} within {timeout:g} s")
            chunk = os.read(stdout.fileno(), 1 << 20)
            if not chunk:
                self._lose(f"the process that drives the browser died during {name}")
            self._buffer += chunk
        reply: Mapping[str, Any] = json.loads(self._buffer)
        self._buffer = b""
        if "error" in reply:
            self._lose(f"the browser failed to {name}: {reply['error']}")
        return reply["result"]

    def _lose(self, reason: str) -> None:
        self.close()
        raise BrowserLost(reason)


def _end(process: subprocess.Popen[bytes], folder: str, owner: int) -> None:
    if os.getpid() != owner:
        return  # a fork's copy of the session: the browser is not its own
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        stream.close()  # type: ignore[union-attr]
    remove(folder)
