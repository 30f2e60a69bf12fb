"""Simulators in processes of their own, of which one that dies is replaced while the others go on."""

from __future__ import annotations

import copy
import inspect
import math
import multiprocessing
import signal
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import AsyncState, _async_worker
from gymnasium.vector.utils import CloudpickleWrapper, iterate

from ..batching import check_positive

DEAD = (EOFError, OSError)  # what a connection to a process raises that has died
ATTEMPTS = 3  # at one command in a row, before a worker that dies every time is given up


class RecoveringAsyncVectorEnv(AsyncVectorEnv):
    """Gymnasium's ``AsyncVectorEnv``, one process a row, in which a process that dies is replaced.

    A row whose process died (killed for its memory, crashed inside the simulator) ends its episode with an invalid
    sample: that step is rewarded with NaN, is truncated, shows the row's last observation, and says why in
    ``info["invalid"]`` of the finished episode. A new process then goes on with the next episode; other rows notice
    nothing. A process that dies in a reset is replaced, and the reset is done again, with the same seed. Attributes
    that were set by ``set_attr`` are set again.

    A replaced row's further episodes come from a seed that is made of the row's last one, so that they differ from
    those before; without one, from a random one. Exceptions that an environment raises are raised here, as Gymnasium
    does.

    Args:
        env_fns: make the environments, one a row.
        context: how processes are started: "fork", "forkserver" or "spawn"; None is Python's default. A program that
            has drawn pictures before needs "forkserver" or "spawn".
        autoreset_mode: of Gymnasium's three.

    Raises:
        RuntimeError: of ``reset`` and ``step``, if a row's process dies three times in a row.

    Warns:
        UserWarning: of each process that was replaced.
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gymnasium.Env[Any, Any]]],
        *,
        context: str | None = None,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
    ) -> None:
        super().__init__(env_fns, shared_memory=False, context=context, autoreset_mode=autoreset_mode)
        self.parent_pipes = [_Row(self, i, pipe) for i, pipe in enumerate(self.parent_pipes)]  # type: ignore[misc]

    def start_worker(self, row: int) -> Connection:
        """Start a process for ``row``, in place of the one it had, and return the connection to it."""
        context = multiprocessing.get_context(self.context)
        ours, theirs = context.Pipe()
        make = CloudpickleWrapper(self.env_fns[row])
        arguments: tuple[Any, ...] = (row, make, theirs, ours, None, self.error_queue, self.autoreset_mode, None)
        # The last one, a limit of how many run at once, came with Gymnasium 1.4.
        arguments = arguments[: len(inspect.signature(_async_worker).parameters)]
        process = context.Process(target=_async_worker, args=arguments, daemon=True)  # type: ignore[attr-defined]
        process.start()
        theirs.close()
        self.processes[row] = process
        return ours


class _Row:
    """The connection to a row's process, as ``AsyncVectorEnv`` uses it; behind it the process may change.

    A new process stands at the start of an episode. Until the old episode's end was told, and in ``NEXT_STEP`` the new
    one's start, steps are answered from here.
    """

    def __init__(self, env: RecoveringAsyncVectorEnv, row: int, pipe: Connection) -> None:
        self.env, self.row, self.pipe = env, row, pipe
        self.command: tuple[str, Any] = ("", None)  # the last one
        self.attributes: dict[str, Any] = {}
        self.seed: int | None = None
        self.replaced = 0
        self.reason: str | None = None  # of an end that is yet to be told
        self.start: tuple[Any, dict[str, Any]] | None = None  # of an episode that is yet to be told

    @property
    def closed(self) -> bool:
        return self.pipe.closed

    def close(self) -> None:
        self.pipe.close()

    def poll(self, timeout: float | None = 0.0) -> bool:
        return self._answers_here() or self.pipe.poll(timeout)

    def send(self, command: tuple[str, Any]) -> None:
        self.command = command
        name, data = command
        if name == "reset":
            self.seed = self.seed if data["seed"] is None else data["seed"]
            self.reason = self.start = None
        elif name == "_setattr":
            self.attributes[data[0]] = data[1]
        if not self._answers_here():
            self._send(command)

    def recv(self) -> tuple[Any, bool]:
        name, _ = self.command
        for _ in range(ATTEMPTS):
            if self._answers_here():
                return self._answer(), True
            try:
                return self.pipe.recv()  # type: ignore[no-any-return]
            except DEAD:
                if name == "close":
                    return None, True
            if not self._replace():
                return None, False  # the new one raised an error, which the caller raises
            if name == "reset":
                self.reason = self.start = None
            if name != "step":
                self._send(self.command)
        self._give_up(f"at {name!r}")

    def _answers_here(self) -> bool:
        return self.command[0] == "step" and (self.reason is not None or self.start is not None)

    def _answer(self) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The end of the lost episode, or the start of the next one."""
        mode = self.env.autoreset_mode
        assert self.start is not None
        if self.reason is None:
            (observation, info), self.start = self.start, None
            return observation, 0.0, False, False, info
        told, self.reason = {"invalid": self.reason}, None
        last = copy.deepcopy(list(iterate(self.env.observation_space, self.env.observations))[self.row])
        if mode is AutoresetMode.SAME_STEP:
            (observation, info), self.start = self.start, None
            return observation, math.nan, False, True, {"final_obs": last, "final_info": told, **info}
        if mode is AutoresetMode.DISABLED:
            self.start = None
        return last, math.nan, False, True, told

    def _replace(self) -> bool:
        """Put a new process, at the start of an episode, in place of one that died; False if that raised an error."""
        self.reason = f"{self._died()} and was replaced"
        warnings.warn(self.reason, stacklevel=5)
        for _ in range(ATTEMPTS):
            self.replaced += 1
            seed = None
            if self.seed is not None:
                seed = int(np.random.SeedSequence([self.seed, self.replaced]).generate_state(1)[0])
            self.pipe.close()
            self.pipe = self.env.start_worker(self.row)
            try:
                for command in (*(("_setattr", a) for a in self.attributes.items()), ("reset", {"seed": seed})):
                    self._send(command)
                    self.start, fine = self.pipe.recv()
                    if not fine:
                        return False
                return True
            except DEAD:
                pass
        self._give_up("while it started")

    def _give_up(self, when: str) -> NoReturn:
        self.env._state = AsyncState.DEFAULT  # so that it can be closed
        raise RuntimeError(f"{self._died()} {when}, {ATTEMPTS} times in a row")

    def _died(self) -> str:
        process = self.env.processes[self.row]
        process.join(5)
        process.kill()  # should it have closed its connection and live on
        process.join()
        code = process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        return f"the process of row {self.row} {how}"

    def _send(self, command: tuple[str, Any]) -> None:
        with suppress(ConnectionError):  # nobody is there, which recv finds, too
            self.pipe.send(command)


def make_async(
    env: str,
    num_envs: int = 1,
    *,
    context: str | None = None,
    autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
    **options: Any,
) -> RecoveringAsyncVectorEnv:
    """Simulators side by side, one process each, in which one that dies is replaced.

    Args:
        env: id of an environment, such as "ManipulationAlign-v0".
        num_envs: how many.
        context: see :class:`RecoveringAsyncVectorEnv`.
        autoreset_mode: the same.
        options: arguments of the environment.

    Raises:
        ValueError: if ``num_envs`` is less than 1.
    """
    check_positive(num_envs=num_envs)
    made = RecoveringAsyncVectorEnv(
        [partial(_make, env, options)] * num_envs, context=context, autoreset_mode=autoreset_mode
    )
    # What a checkpoint needs to build the same rows again; Gymnasium then makes ones that are not replaced.
    spec = copy.deepcopy(gymnasium.spec(env))
    modes = {"shared_memory": False, "autoreset_mode": autoreset_mode.value}
    spec.kwargs |= options | {"num_envs": num_envs, "vectorization_mode": "async", "vector_kwargs": modes}
    made.spec = spec
    return made


def _make(env: str, options: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    return gymnasium.make(env, **options)
