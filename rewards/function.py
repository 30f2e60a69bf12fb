"""Rewards that are plain functions, with TRL's signature, and a time limit for them."""

from __future__ import annotations

import inspect
import queue
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from .registry import name_of
from .reward import Reward, RewardScores, Text, is_column, reason_of

_R = TypeVar("_R")


def call_with_timeout(call: Callable[[], _R], seconds: float | None) -> _R:
    """Calls a function in a daemon thread and waits at most ``seconds``; None: waits for as long as it takes.

    The thread cannot be killed: after a timeout it runs on until its call returns, and holds its memory. A call that
    never releases the interpreter lock (one huge integer power, a regular expression that backtracks) delays the
    caller too; only a process can stop it, see :class:`aligngym.rewards.Isolated`.

    Raises:
        TimeoutError: if the call did not end in time.
        Exception: whatever the call raises.
    """
    results: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def work() -> None:
        try:
            results.put((True, call()))
        except BaseException as error:  # raised again in the caller's thread
            results.put((False, error))

    threading.Thread(target=work, daemon=True, name="reward").start()
    try:
        done, value = results.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"took longer than {seconds:g} s") from None
    if not done:
        raise value if isinstance(value, Exception) else RuntimeError(f"the reward ended its thread: {value!r}")
    return value  # type: ignore[no-any-return]


@dataclass
class FunctionReward(Reward):
    """A function ``f(prompts=, completions=, **columns) -> list[float | None]``, synchronous or ``async``.

    None means "does not apply". NaN, an infinity or an entry that is no number fails that sample; an exception fails
    every sample of the call, with the reason ``"TypeError: ..."``. A function without ``**kwargs`` is given only the
    columns that it names.

    Attributes:
        function: The function; one that is registered has a JSON form.
        timeout: Seconds allowed for each sample. With it the function is called once a sample, so that a sample that
            hangs costs only itself; leave it None for functions that compare the samples of a batch. See
            :func:`call_with_timeout` for what it cannot stop.
        name: Defaults to the name of the function.
    """

    function: Callable[..., Any]
    timeout: float | None = None

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"function must be callable, got {type(self.function).__name__}")
        if self.timeout is not None and not self.timeout > 0:
            raise ValueError(f"timeout must be positive or None, got {self.timeout}")
        if self.name is None:
            self.name = getattr(self.function, "__name__", type(self.function).__name__)

    def _score(self, completions: list[Text], prompts: list[Text] | None, columns: dict[str, Any]) -> RewardScores:
        count = len(completions)
        asked: list[Any] = list(prompts) if prompts is not None else [None] * count
        if self.timeout is None:
            values, reasons = self._call(asked, completions, columns)
        else:
            values, reasons = [], []
            for i in range(count):
                row = {key: value[i : i + 1] if is_column(value) else value for key, value in columns.items()}
                one = self._call([asked[i]], [completions[i]], row)
                values, reasons = values + one[0], reasons + one[1]
        return RewardScores(np.array(values, dtype=np.float64), {}, reasons)

    def _call(
        self, prompts: list[Any], completions: list[Text], columns: Mapping[str, Any]
    ) -> tuple[list[float], list[str | None]]:
        """Calls the function once and checks what it returns."""
        count = len(completions)
        if count == 0:
            return [], []
        arguments = self._accepted({**columns, "prompts": prompts, "completions": completions})
        try:
            returned = self._run(arguments)
        except Exception as error:  # whatever a reward raises must not end the run
            return [np.nan] * count, [reason_of(error)] * count
        try:
            results = list(returned)
        except TypeError:
            raise TypeError(
                f"reward {self.name!r} must return a list with one entry a completion, got {type(returned).__name__}"
            ) from None
        if len(results) != count:
            raise ValueError(f"reward {self.name!r} must return {count} values, one a completion, got {len(results)}")
        checked = [_number(result) for result in results]
        return [value for value, _ in checked], [reason for _, reason in checked]

    def _run(self, arguments: dict[str, Any]) -> Any:
        def call() -> Any:
            result = self.function(**arguments)
            return _run_async(result) if inspect.isawaitable(result) else result

        # asyncio.run refuses a thread whose loop already runs (a notebook), hence a thread of its own there too.
        if self.timeout is None and not _loop_runs():
            return call()
        return call_with_timeout(call, self.timeout)

    def _accepted(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Leaves out the columns that a function without ``**kwargs`` does not name."""
        try:
            parameters = inspect.signature(self.function).parameters
        except (TypeError, ValueError):  # some built-in functions have no signature
            return arguments
        if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
            return arguments
        return {key: value for key, value in arguments.items() if key in parameters}

    def to_dict(self) -> dict[str, Any]:
        """Returns ``{"type": registered name, "timeout": ..., "name": ...}``.

        Raises:
            ValueError: if the function is not registered.
        """
        return {"type": name_of(self.function), "timeout": self.timeout, "name": self.name}


def _loop_runs() -> bool:
    """Whether this thread already runs an asyncio loop; asks without importing asyncio, which is slow to load."""
    if "asyncio" not in sys.modules:
        return False
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _run_async(result: Awaitable[Any]) -> Any:
    import asyncio

    async def wait() -> Any:
        return await result

    return asyncio.run(wait())


def _number(result: Any) -> tuple[float, str | None]:
    """Returns ``(value, reason)`` of one entry that a function returned."""
    if result is None:
        return np.nan, None
    try:
        value = float(result)
    except (TypeError, ValueError) as error:
        return np.nan, reason_of(error)
    return (value, None) if np.isfinite(value) else (np.nan, f"returned {value}")
