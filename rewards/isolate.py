"""A reward in a child process, which is killed when one sample takes too long: the only limit that always holds."""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from .registry import from_dict, register_reward, registered_paths, reward_names
from .reward import Reward, RewardScores, Text, is_column, reason_of, row_of

_POSIX = os.name == "posix"
_PACKAGE = __name__.rpartition(".")[0]


@dataclass
class Isolated(Reward):
    """Scores samples one by one in a child process; one that takes too long fails, and the process is replaced.

    Unlike a thread, a process can be stopped whatever it does, and what it prints or allocates does not reach the
    caller. It is no sandbox: it runs with the caller's rights. The reward travels as JSON, so it must have a JSON form
    and keep no running state; of the columns, those that JSON can hold are sent.

    Attributes:
        reward: What is scored.
        timeout: Seconds allowed for each sample.
        startup_timeout: Seconds allowed for starting the process and loading the reward in it.
        memory_gb: Limit on its address space, on POSIX systems; None: no limit.
    """

    reward: Reward
    timeout: float
    startup_timeout: float = field(default=120.0, kw_only=True)
    memory_gb: float | None = field(default=None, kw_only=True)
    _child: _Child | None = field(default=None, init=False, repr=False, compare=False)

    parts: ClassVar[tuple[str, ...]] = ("reward",)
    transient: ClassVar[tuple[str, ...]] = ("_child",)

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise ValueError(f"timeout must be positive, got {self.timeout}")
        if self.reward.get_state():
            raise ValueError("a reward with running state (normalize, schedule) cannot be isolated; isolate its parts")
        self.reward.to_dict()

    def load(self) -> None:
        """Starts the child process."""
        self._started()

    def close(self) -> None:
        """Ends the child process; the next call starts another."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def _started(self) -> _Child:
        # A forked process has the parent's child but neither the thread that reads from it nor a right to it.
        if self._child is None or self._child.owner != os.getpid():
            # Room for the watchdog: a child whose parent died is ended by the kernel soon after its time is up.
            header = {
                "reward": self.reward.to_dict(),
                "register": registered_paths(),
                "memory_gb": self.memory_gb,
                "alarm": math.ceil(2 * self.timeout + 5),
            }
            self._child = _Child(header, self.startup_timeout)
        return self._child

    def _score(self, completions: list[Text], prompts: list[Text] | None, columns: dict[str, Any]) -> RewardScores:
        values = np.full(len(completions), np.nan)
        reasons: list[str | None] = [None] * len(completions)
        terms: dict[str, np.ndarray] = {}
        for i, completion in enumerate(completions):
            row = {key: _plain(value) for key, value in row_of(columns, i).items() if is_column(columns[key])}
            request = {"completion": completion, "prompt": None if prompts is None else prompts[i], "row": row}
            try:
                reply = self._started().ask(json.dumps(request), self.timeout)
            except (TimeoutError, ChildProcessError, TypeError, ValueError) as error:
                reasons[i] = reason_of(error)
                if not isinstance(error, TypeError | ValueError):  # those: the request itself has no JSON form
                    self.close()
                continue
            if "error" in reply:
                raise ValueError(reply["error"])
            values[i] = np.nan if reply["value"] is None else reply["value"]
            reasons[i] = reply["reason"]
            for key, value in reply["terms"].items():
                terms.setdefault(key, np.full(len(completions), np.nan))[i] = np.nan if value is None else value
        return RewardScores(values, terms, reasons)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


class _Child:
    """A process that runs :func:`serve`; one line of JSON each way a request."""

    def __init__(self, header: Mapping[str, Any], startup_timeout: float) -> None:
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"from {_PACKAGE}.isolate import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
            encoding="utf-8",
            start_new_session=_POSIX,
        )
        self.owner = os.getpid()
        self.lock = threading.Lock()
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=_read, args=(self.process, self.lines), daemon=True, name="isolated reward").start()
        self.close = weakref.finalize(self, _kill, self.process, self.owner)
        try:
            reply = self.ask(json.dumps(header), startup_timeout)
        except (TimeoutError, ChildProcessError) as error:
            self.close()
            raise RuntimeError(f"the process of an isolated reward did not start: {error}") from error
        if "error" in reply:
            self.close()
            raise RuntimeError(f"the process of an isolated reward did not start: {reply['error']}")

    def ask(self, line: str, seconds: float) -> dict[str, Any]:
        """Sends one request and waits for its reply.

        Raises:
            TimeoutError: if none comes in time.
            ChildProcessError: if the process has ended.
        """
        assert self.process.stdin is not None
        try:
            with self.lock:  # two threads must not take each other's replies
                self.process.stdin.write(line + "\n")
                self.process.stdin.flush()
                answer = self.lines.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"took longer than {seconds:g} s") from None
        except OSError:
            answer = ""
        if not answer:
            raise ChildProcessError(f"the process of the reward ended with code {self.process.wait()}")
        reply: dict[str, Any] = json.loads(answer)
        return reply


def _read(process: subprocess.Popen[str], lines: queue.SimpleQueue[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put("")


def _kill(process: subprocess.Popen[str], owner: int) -> None:
    """Kills the process and whatever it started, unless it belongs to the process that this one was forked from."""
    if os.getpid() != owner:
        return
    if process.poll() is None:
        if _POSIX:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()
    assert process.stdin is not None
    try:
        process.stdin.close()
    except BrokenPipeError:  # an unread request was still buffered
        return


def serve() -> None:
    """Runs in the child process: reads the reward, then scores one sample a line until its input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the reward prints must not mix with the replies
    logging.disable(logging.WARNING)

    def reply(message: Mapping[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    header = json.loads(sys.stdin.readline())
    try:
        reward = _prepared(header)
    except Exception as error:  # told to the parent
        reply({"error": reason_of(error)})
        return
    reply({})
    for line in sys.stdin:
        if _POSIX:
            signal.setitimer(signal.ITIMER_REAL, header["alarm"])
        try:
            reply(_scored(reward, json.loads(line)))
        except (TypeError, ValueError) as error:  # a programming error, raised again in the parent
            reply({"error": str(error)})
        if _POSIX:
            signal.setitimer(signal.ITIMER_REAL, 0)


def _prepared(header: Mapping[str, Any]) -> Reward:
    if _POSIX:
        import resource

        # The kernel ends the process at the alarm, even inside a C function that no Python handler would interrupt.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        if header["memory_gb"] is not None:
            limit = int(header["memory_gb"] * 2**30)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for name, path in header["register"].items():
        if name not in reward_names():
            register_reward(name, path)
    reward = from_dict(header["reward"])
    reward.load()
    return reward


def _scored(reward: Reward, request: Mapping[str, Any]) -> dict[str, Any]:
    prompts = None if request["prompt"] is None else [request["prompt"]]
    columns = {key: [value] for key, value in request["row"].items()}
    scores = reward.score([request["completion"]], prompts, **columns)
    plain = {key: None if np.isnan(entry[0]) else float(entry[0]) for key, entry in scores.terms.items()}
    value = None if np.isnan(scores.values[0]) else float(scores.values[0])
    return {"value": value, "reason": scores.reasons[0], "terms": plain}
