"""A person as the teacher: two clips side by side in a page that this machine serves to itself."""

from __future__ import annotations

import hmac
import html
import io
import json
import math
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from string import Template
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .human_page import PAGE
from .segments import Segments

Pair = tuple[int, int]

LABELS = {"left": 1.0, "right": 0.0, "equal": 0.5, "skip": math.nan}
CLIP_SECONDS = 600  # that a clip may take to draw
START = b'{"first": '
MOST_BYTES = 4096  # of a request
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": (
        "default-src 'none'; connect-src 'self'; img-src blob: data:; style-src 'unsafe-inline'; "
        "script-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
}


def _announce(url: str) -> None:
    print(f"Compare clips at {url}", flush=True)


class HumanTeacher:
    """Asks a person, in a browser, which of two clips is better.

    The page is served on 127.0.0.1 at a random port, under a random token that only its address holds; nothing is
    loaded from elsewhere. Clips are drawn in the thread that calls :meth:`collect`, as simulators want it.

    Answers are appended to a file of JSON lines as they come: ``first``, ``second`` (rows of segments), ``answer``
    (``left``, ``right``, ``equal``, ``skip`` or ``undo``), ``time`` (seconds since 1970) and ``segments``
    (:meth:`.Segments.digest`). Answers that it already holds are not asked for again. One file is for one set of
    segments: another set is refused.

    Args:
        frames: from a row of the segments to its pictures, ``[T, H, W, 3]`` uint8.
        path: of the answers; the folder must exist.
        segments: that are compared.
        question: at the top of the page.
        fps: pictures a second, in (0, 50], rounded to hundredths of a second each.
        announce: is told the page's address, once it is served: prints it by default; ``webbrowser.open`` opens it.

    Raises:
        ValueError: for ``fps`` out of range.
    """

    def __init__(
        self,
        frames: Callable[[int], NDArray[np.uint8]],
        path: str | Path,
        segments: Segments,
        *,
        question: str = "Which one is better?",
        fps: float = 20.0,
        announce: Callable[[str], object] = _announce,
    ) -> None:
        if not 0 < fps <= 50:
            raise ValueError(f"fps={fps}: must be in (0, 50]")
        self.frames, self.path, self.question, self.fps, self.announce = frames, Path(path), question, fps, announce
        self.count, self.digest = len(segments), segments.digest()

    def collect(self, pairs: Tensor) -> Tensor:
        """Ask about the pairs that the file has no answer to, and wait until the person has finished.

        After Ctrl-C (``KeyboardInterrupt`` passes through) or a crash all answers given are in the file:
        :meth:`labels` returns them, and the next call goes on from there.

        Args:
            pairs: ``[P, 2]`` int64, rows of the segments; a pair that is there twice is asked once.

        Returns:
            ``[P]`` float32: 1 the first (left) is preferred, 0 the second, 0.5 both are equal, NaN skipped.

        Raises:
            ValueError: if pairs or pictures have another shape, a row is not one of the segments, or the file holds
                something else, such as answers about other segments.
            OSError: if an answer cannot be written.
        """
        session = _Session(list(dict.fromkeys(self._rows(pairs))), self._answers(), self.question)
        if session.pair is None:
            return self.labels(pairs)
        with _served(session) as url:
            self.announce(url)
            while not session.finished.is_set():
                try:
                    segment, clip = session.wanted.get(timeout=0.1)
                except Empty:
                    continue
                try:
                    clip.set_result(_gif(self.frames(segment), self.fps))
                except BaseException as error:
                    clip.set_exception(error)
                    raise
        if session.failure:
            raise session.failure
        return self.labels(pairs)

    def labels(self, pairs: Tensor) -> Tensor:
        """The answers in the file, as :meth:`collect` returns them; NaN also where there is none yet."""
        given = self._answers().given
        return torch.tensor([LABELS[given.get(pair, "skip")] for pair in self._rows(pairs)])

    def _answers(self) -> _Answers:
        return _Answers(self.path, self.digest)

    def _rows(self, pairs: Tensor) -> list[Pair]:
        if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.is_floating_point():
            raise ValueError(f"pairs have shape {tuple(pairs.shape)} and dtype {pairs.dtype}, expected [P, 2] integers")
        if wrong := [row for row in pairs.flatten().tolist() if not 0 <= row < self.count]:
            raise ValueError(f"pairs hold {wrong[0]}, expected rows from 0 to {self.count - 1}")
        return [(i, j) for i, j in pairs.tolist()]


class _Answers:
    """The file of answers about segments: ``given`` is what holds after all its lines, in the order of answering."""

    def __init__(self, path: Path, segments: str) -> None:
        self.path, self.segments = path, segments
        self.given: dict[Pair, str] = {}
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                record = json.loads(line)
                self._take((int(record["first"]), int(record["second"])), record["answer"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number} is no answer: {line[:80]!r} ({error})") from error
            if record.get("segments") != segments:
                raise ValueError(
                    f"{path} holds answers about other segments ({record.get('segments')} in line {number}, these are "
                    f"{segments}): name a new file, or give the segments that it was begun with"
                )
        if data[len(whole) :][: len(START)] != START[: len(data) - len(whole)]:
            raise ValueError(f"{path} ends with what is no answer: {data[len(whole) :][:80]!r}")
        self.length = len(whole)  # what follows was cut off when its writer was killed

    def add(self, pair: Pair, answer: str) -> None:
        """On the disk when it returns."""
        facts = {"answer": answer, "time": round(time.time(), 3), "segments": self.segments}
        line = json.dumps({"first": pair[0], "second": pair[1], **facts})
        with open(self.path, "ab") as file:
            file.truncate(self.length)
            file.write(f"{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        self.length += len(line) + 1
        self._take(pair, answer)

    def _take(self, pair: Pair, answer: str) -> None:
        if answer == "undo":
            del self.given[pair]
        elif answer in LABELS:
            self.given.pop(pair, None)
            self.given[pair] = answer
        else:
            raise ValueError(f"answer={answer!r}: must be undo or one of {', '.join(LABELS)}")


class _Session:
    """What is asked, and how far it is. The server's threads call all but the constructor."""

    def __init__(self, asked: list[Pair], answers: _Answers, question: str) -> None:
        self.asked, self.answers = asked, answers
        self.segments = {segment for pair in asked for segment in pair}
        self.page = Template(PAGE).substitute(question=html.escape(question)).encode()
        self.token = secrets.token_urlsafe(16)
        self.finished = threading.Event()
        self.failure: OSError | None = None
        self.wanted: Queue[tuple[int, Future[bytes]]] = Queue()
        self.lock = threading.Lock()

    @property
    def pair(self) -> Pair | None:
        """The first one without an answer."""
        return next((pair for pair in self.asked if pair not in self.answers.given), None)

    def state(self) -> dict[str, Any]:
        """What the page shows; ``keep`` are the segments of this pair and the next."""
        open_pairs = [pair for pair in self.asked if pair not in self.answers.given]
        answered = len(self.asked) - len(open_pairs)
        return {
            "answered": answered, "total": len(self.asked), "undo": answered > 0,
            "pair": open_pairs[0] if open_pairs else None, "keep": [s for pair in open_pairs[:2] for s in pair],
        }  # fmt: skip

    def post(self, action: str, body: dict[str, Any]) -> dict[str, Any]:
        """Do it and return the new state; what is about another pair than the one being asked is not done."""
        with self.lock:
            if action == "answer" and self.pair is not None and body["pair"] == list(self.pair):
                if body["answer"] not in LABELS:
                    raise ValueError(f"answer={body['answer']!r}")
                self.answers.add(self.pair, body["answer"])
            elif action == "undo":
                mine = [pair for pair in self.answers.given if pair in self.asked]
                if mine:
                    self.answers.add(mine[-1], "undo")
            return self.state()

    def clip(self, segment: int) -> bytes:
        """A GIF, once the thread of :meth:`HumanTeacher.collect` has drawn it."""
        drawn: Future[bytes] = Future()
        self.wanted.put((segment, drawn))
        return drawn.result(CLIP_SECONDS)


@contextmanager
def _served(session: _Session) -> Iterator[str]:
    """Serve it on a free port of 127.0.0.1; yields the address of the page."""
    handler = type("Handler", (_Handler,), {"session": session})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/{session.token}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        while not session.wanted.empty():
            session.wanted.get()[1].cancel()


class _Handler(BaseHTTPRequestHandler):
    session: _Session
    timeout = 30.0

    def do_GET(self) -> None:
        path = self._path()
        if path == "":
            self._reply(200, self.session.page, "text/html; charset=utf-8")
        elif path == "state":
            self._json(self.session.state())
        elif path and path.startswith("clip/"):
            segment = path.removeprefix("clip/")
            if not segment.isdecimal() or int(segment) not in self.session.segments:
                return self._reply(404)
            try:
                self._reply(200, self.session.clip(int(segment)), "image/gif")
            except BaseException:  # whatever drawing raised, collect() raises it
                self._reply(500)
        elif path is not None:
            self._reply(404)

    def do_POST(self) -> None:
        path = self._path()
        if path is None:
            return
        if path not in ("answer", "undo", "finish"):
            return self._reply(404)
        try:
            size = int(self.headers["Content-Length"])
            if not 0 <= size <= MOST_BYTES:
                raise ValueError(size)
            state = self.session.post(path, json.loads(self.rfile.read(size)))
        except (ValueError, KeyError, TypeError):
            return self._reply(400)
        except OSError as error:
            self.session.failure = error
            self.session.finished.set()
            return self._reply(500)
        self._json(state)
        if path == "finish" and state["pair"] is None:
            self.session.finished.set()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _path(self) -> str | None:
        """What follows the token; None, and refused, without it."""
        token, slash, rest = self.path.removeprefix("/").partition("/")
        if slash and hmac.compare_digest(token.encode(), self.session.token.encode()):
            return rest
        self._reply(403)
        return None

    def _json(self, value: dict[str, Any]) -> None:
        self._reply(200, json.dumps(value).encode(), "application/json")

    def _reply(self, status: int, body: bytes = b"", kind: str = "text/plain") -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        with suppress(ConnectionError):  # the page was closed meanwhile
            self.end_headers()
            self.wfile.write(body)


def _gif(frames: NDArray[np.uint8], fps: float) -> bytes:
    """An endless GIF."""
    from PIL import Image

    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise ValueError(f"frames have shape {frames.shape} and dtype {frames.dtype}, expected [T, H, W, 3] uint8")
    first, *others = [Image.fromarray(frame) for frame in frames]
    data = io.BytesIO()
    duration = 10 * max(2, round(100 / fps))
    first.save(data, format="GIF", save_all=True, append_images=others, duration=duration, loop=0)
    return data.getvalue()
