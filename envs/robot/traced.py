"""What dm_control's tasks observe and reward, computed by their own code, on arrays of JAX that are being traced.

A task of the suite is Python on NumPy: it reads ``physics.named.data.xpos["torso", "z"]`` and the like, and computes
with them. It is given a physics here whose numbers are :class:`Traced`: arrays that answer NumPy's functions and
operators with JAX's, by NumPy's own protocols for that (NEP 13 and NEP 18). So nothing of a task is written twice.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np


class Traced(np.lib.mixins.NDArrayOperatorsMixin):
    """An array of JAX that NumPy's functions and operators take, and that is indexed as NumPy's are.

    Args:
        values: the array.
    """

    def __init__(self, values: Any) -> None:
        self.values = values

    def __array_ufunc__(self, function: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        return _jax(function, inputs, options) if method == "__call__" else NotImplemented

    def __array_function__(self, function: Callable[..., Any], types: Any, inputs: Any, options: Any) -> Any:
        return _jax(function, inputs, options)

    def __getitem__(self, key: Any) -> Any:
        # JAX takes no lists as indices.
        key = tuple(np.asarray(k) if isinstance(k, list) else k for k in (key if isinstance(key, tuple) else (key,)))
        return Traced(self.values[key])

    def __iter__(self) -> Iterator[Traced]:
        return map(Traced, self.values)

    def __bool__(self) -> bool:
        raise TypeError("the task decides by a number that is only known when it runs, which MJX cannot trace")

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.values, name)
        if callable(found) and not hasattr(found, "dtype"):
            return lambda *inputs, **options: _wrap(found(*_unwrap(inputs), **_unwrap(options)))
        return _wrap(found)


def trace_task(simulator: Any, data: Any, changed: Mapping[str, Any]) -> tuple[Any, Any]:
    """The flat observation and the reward of a state of MJX.

    Args:
        simulator: the suite's environment.
        data: of MJX, one state.
        changed: fields of the model, by name, that are other arrays than the simulator's.
    """
    import jax.numpy as jnp

    physics = _view(simulator.physics, data, changed)
    with _traceable(sys.modules[type(simulator.task).__module__]):
        observation = simulator.task.get_observation(physics)
        reward = simulator.task.get_reward(physics)
    parts = [jnp.ravel(jnp.asarray(_unwrap(values), jnp.float32)) for values in observation.values()]
    return jnp.concatenate(parts), jnp.asarray(_unwrap(reward), jnp.float32).reshape(())


def _jax(function: Any, inputs: Any, options: Any) -> Any:
    """JAX's function of the same name."""
    import jax.numpy as jnp

    home = jnp.linalg if getattr(function, "__module__", "") == "numpy.linalg" else jnp
    return _wrap(getattr(home, function.__name__)(*_unwrap(inputs), **_unwrap(options)))


def _wrap(values: Any) -> Any:
    return Traced(values) if hasattr(values, "dtype") and not isinstance(values, np.ndarray) else values


def _unwrap(values: Any) -> Any:
    """The arrays of JAX in it, which may be nested."""
    if isinstance(values, tuple | list):
        return type(values)(map(_unwrap, values))
    if isinstance(values, dict):
        return {key: _unwrap(value) for key, value in values.items()}
    return values.values if isinstance(values, Traced) else values


class _Fields:
    """A struct of MuJoCo, such as its data, whose arrays are traced.

    Args:
        own: of the simulator; says which shapes the arrays have.
        traced: what is read instead, by name.
        otherwise: where fields that are not there are read; None where they may not be.
    """

    def __init__(self, own: Any, traced: Callable[[str], Any], otherwise: Any = None) -> None:
        self._own, self._traced, self._otherwise = own, traced, otherwise

    def __getattr__(self, name: str) -> Any:
        values = self._traced(name)
        if values is not None:
            return Traced(values.reshape(np.shape(getattr(self._own, name))))
        if self._otherwise is None:
            raise AttributeError(f"MJX does not compute {name!r}")
        return getattr(self._otherwise, name)


class _Named:
    """The same, indexed by the names of what the arrays hold numbers of."""

    def __init__(self, own: Any, fields: _Fields) -> None:
        self._own, self._fields = own, fields

    def __getattr__(self, name: str) -> Any:
        values = getattr(self._fields, name)
        return _Indexed(getattr(self._own, name), values) if isinstance(values, Traced) else getattr(self._own, name)


class _Indexed:
    def __init__(self, own: Any, values: Traced) -> None:
        self._own, self._values = own, values

    def __getitem__(self, key: Any) -> Any:
        return self._values[self._own._convert_key(key)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._values, name)


def _view(physics: Any, data: Any, changed: Mapping[str, Any]) -> Any:
    """A physics of the same class, with all its methods, that reads ``data`` and the ``changed`` model."""
    fields = _Fields(physics.data, lambda name: getattr(data, name, None))
    model = _Fields(physics.model, changed.get, otherwise=physics.model)
    named = type("Named", (), {"data": _Named(physics.named.data, fields), "model": _Named(physics.named.model, model)})
    view: Any = object.__new__(type("Physics", (type(physics),), {"data": fields, "model": model, "named": named}))
    vars(view).update(vars(physics))
    return view


class _NumPy:
    """NumPy, but that ``asarray`` leaves a traced array as it is; there is no protocol for it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def asarray(values: Any, *options: Any) -> Any:
        return values if isinstance(values, Traced) else np.asarray(values, *options)


def _float(value: Any) -> Any:
    return value * 1.0 if isinstance(value, Traced) else builtins.float(value)


def _all(values: Any) -> Any:
    return np.all(values) if isinstance(values, Traced) else builtins.all(values)


def _largest(*values: Any) -> Any:
    return np.maximum(*values) if builtins.any(isinstance(v, Traced) for v in values) else builtins.max(*values)


def _smallest(values: Any) -> Any:
    listed = list(values)
    return np.min(np.stack(listed)) if isinstance(listed[0], Traced) else builtins.min(listed)


@contextmanager
def _traceable(module: Any) -> Iterator[None]:
    """Let the built-in functions that the suite's tasks use take traced arrays, in this module."""
    replaced = {"np": _NumPy(), "float": _float, "all": _all, "max": _largest, "min": _smallest}
    before = {name: vars(module)[name] for name in replaced if name in vars(module)}
    vars(module).update(replaced)
    try:
        yield
    finally:
        for name in replaced:
            del vars(module)[name]
        vars(module).update(before)
