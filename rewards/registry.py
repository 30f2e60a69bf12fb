"""Names of rewards: the built-in table, ``register_reward``, and how a name, dict or function becomes a reward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from importlib import import_module
from typing import Any, TypeVar

from .reward import Reward

_PACKAGE = __name__.rpartition(".")[0]
_T = TypeVar("_T", bound=Callable[..., Any])

_BUILTIN = {
    "sum": "algebra:Sum",
    "product": "algebra:Product",
    "gate": "algebra:Gate",
    "clip": "algebra:Clip",
    "log_sigmoid": "algebra:LogSigmoid",
    "schedule": "algebra:Schedule",
    "normalize": "normalize:Normalize",
    "isolated": "isolate:Isolated",
    "sentiment": "text:Sentiment",
    "sentiment_density": "text:SentimentDensity",
    "length": "text:Length",
    "repetition": "text:Repetition",
    "story_sentiment": "text:story_sentiment",
    "regex": "match:Regex",
    "format": "match:Format",
    "exact_match": "match:ExactMatch",
    "math": "match:MathAnswer",
    "bleu": "references:Bleu",
    "rouge": "references:Rouge",
    "classifier": "models:SequenceClassifierReward",
    "judge": "judge:JudgeReward",
    "compressibility": "image:Compressibility",
    "incompressibility": "image:Incompressibility",
    "colourfulness": "image:Colourfulness",
    "symmetry": "image:Symmetry",
    "ocr": "ocr:Ocr",
    "image_quality": "image_quality:ImageQuality",
    "clip_score": "image_models:ClipScore",
    "pick_score": "image_models:PickScore",
    "aesthetic": "image_models:Aesthetic",
    "image_classifier": "image_classifier:ImageClassifier",
    "point_in_box": "points:PointInBox",
    "point_distance": "points:PointDistance",
    "point_format": "points:PointFormat",
    "adaptive_exploration": "points:AdaptiveExploration",
    "vision_r1": "boxes:VisionR1",
    "jigsaw": "jigsaw:Jigsaw",
    "choice": "choice:Choice",
}
# A string is loaded on first use, so that naming a reward costs no import.
_TABLE: dict[str, str | Callable[..., Any]] = {k: f"{_PACKAGE}.{path}" for k, path in _BUILTIN.items()}


def register_reward(name: str, target: str | _T | None = None) -> Callable[[_T], _T]:
    """Registers a reward under a name: as a decorator, or with a target (``"module:attribute"`` is imported on use).

    The target is a :class:`Reward` class, a function with TRL's signature (one that takes ``completions``), or a
    function that builds a reward from keyword arguments.

    Raises:
        ValueError: if the name is taken.
    """

    def add(entry: _T) -> _T:
        _add(name, entry)
        return entry

    if target is not None:
        _add(name, target)
    return add


def _add(name: str, entry: str | Callable[..., Any]) -> None:
    if not name or not isinstance(name, str):
        raise ValueError(f"the name of a reward must be a non-empty str, got {name!r}")
    if name in _TABLE:
        raise ValueError(f"reward {name!r} is already registered ({_path(_TABLE[name])}); choose another name")
    if isinstance(entry, str) and entry.count(":") != 1:
        raise ValueError(f"the target of reward {name!r} must read 'module:attribute', got {entry!r}")
    _TABLE[name] = entry


def reward_names() -> list[str]:
    """Returns every registered name, sorted."""
    return sorted(_TABLE)


def registered_paths() -> dict[str, str]:
    """Returns ``{name: "module:attribute"}`` of the rewards that are not built in, for a child process to register."""
    return {name: _path(entry) for name, entry in _TABLE.items() if name not in _BUILTIN}


def _path(entry: str | Callable[..., Any]) -> str:
    return entry if isinstance(entry, str) else f"{entry.__module__}:{entry.__qualname__}"


def name_of(entry: Callable[..., Any]) -> str:
    """Returns the name under which a class or function is registered.

    Raises:
        ValueError: if it is not.
    """
    for name, known in _TABLE.items():
        if known is entry or (isinstance(known, str) and known == _path(entry)):
            return name
    title = getattr(entry, "__qualname__", repr(entry))
    raise ValueError(f"{title} has no JSON form because it is not registered; decorate it with @register_reward(name)")


def _resolve(name: str) -> Callable[..., Any]:
    if name not in _TABLE:
        raise ValueError(f"unknown reward {name!r}; registered rewards: {', '.join(reward_names())}")
    entry = _TABLE[name]
    if isinstance(entry, str):
        module, _, attribute = entry.partition(":")
        entry = getattr(import_module(module), attribute)
        _TABLE[name] = entry
    return entry


def build(name: str, arguments: Mapping[str, Any]) -> Reward:
    """Builds the reward registered as ``name`` from the values of its JSON form.

    Raises:
        ValueError: if the name is unknown, or an argument is unknown, missing or not allowed.
    """
    target, values = _resolve(name), dict(arguments)
    if inspect.isclass(target) and issubclass(target, Reward):
        allowed = {f.name for f in fields(target) if f.init}
        if unknown := sorted(set(values) - allowed):
            raise ValueError(f"reward {name!r} has no argument {unknown[0]!r}; allowed: {', '.join(sorted(allowed))}")
        for key in set(target.parts) & set(values):
            part = values[key]
            values[key] = [as_reward(x) for x in part] if isinstance(part, list | tuple) else as_reward(part)
    elif "completions" in inspect.signature(target).parameters:
        from .function import FunctionReward

        target, values = FunctionReward, {"name": name, **values, "function": target}
    try:
        reward = target(**values)
    except TypeError as error:
        raise ValueError(f"reward {name!r} cannot be built from {sorted(arguments)}: {error}") from error
    if not isinstance(reward, Reward):
        raise ValueError(f"the builder of reward {name!r} returned a {type(reward).__name__}, expected a Reward")
    return reward


def _build_named(value: str) -> Reward:
    """Builds ``"name"`` or ``"name:argument"``, the value of the reward's main argument."""
    name, colon, text = value.partition(":")
    if not colon or value in _TABLE:
        return build(value, {})
    target = _resolve(name)
    key: str | None = getattr(target, "main_argument", None)
    if key is None:
        raise ValueError(f"reward {name!r} has no main argument, so that nothing may follow its name; got {value!r}")
    default = next(f.default for f in fields(target) if f.name == key)  # type: ignore[arg-type]
    kind = type(default) if isinstance(default, int | float) and not isinstance(default, bool) else str
    try:
        return build(name, {key: kind(text)})
    except ValueError as error:
        raise ValueError(f"reward {value!r}: {error}") from error


def from_dict(data: Mapping[str, Any]) -> Reward:
    """Builds a reward from ``Reward.to_dict()``. Only registered names are followed: a file cannot name a class.

    Raises:
        ValueError: if ``type`` is missing or unknown, or an argument is.
    """
    if not isinstance(data, Mapping) or not isinstance(data.get("type"), str):
        raise ValueError(f"a reward dict needs a 'type', one of: {', '.join(reward_names())}; got {data!r}")
    return build(data["type"], {key: value for key, value in data.items() if key != "type"})


def as_reward(value: str | Mapping[str, Any] | Callable[..., Any] | Reward) -> Reward:
    """Turns a registered name, a JSON form or a function with TRL's signature into a reward; a reward stays itself.

    ``"name:argument"`` gives a reward its main argument, the field named by its class attribute ``main_argument``:
    ``"symmetry:vertical"`` is ``{"type": "symmetry", "axis": "vertical"}``. The argument is read as a number where the
    field's default is one, otherwise as text.

    Raises:
        ValueError: if the name is unknown (the message lists those that exist), takes no argument, or the argument or
            the dict is malformed.
        TypeError: if the value is none of these.
    """
    from .function import FunctionReward
    from .trl import TrlReward

    if isinstance(value, Reward):
        return value
    if isinstance(value, TrlReward):
        return value.reward
    if isinstance(value, str):
        return _build_named(value)
    if isinstance(value, Mapping):
        return from_dict(value)
    if callable(value) and not inspect.isclass(value):
        return FunctionReward(value)
    given = f"the class {value.__name__}" if inspect.isclass(value) else f"a {type(value).__name__}"
    raise TypeError(f"a reward must be a registered name, a dict, a function or a Reward instance, got {given}")
