"""Which prompts episodes start from, and how often, by what has been learned about each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .base import EpisodeRule, EpisodeWrapper, VectorEpisodeWrapper, generation_env
from .episodes import Episodes
from .prompt_evolution import evolves


@dataclass
class PromptStatistics:
    """What is known of ``P`` prompts, from valid episodes only.

    The averages weigh all episodes alike up to ``1 / rate`` visits and then forget exponentially at ``rate``, because
    the policy changes.

    Attributes:
        visits: ``[P]`` int64, episodes seen.
        mean: ``[P]`` float64, mean reward; 0 before the first visit.
        variance: ``[P]`` float64, population variance of the reward.
        success: ``[P]`` float64, share of episodes whose reward was above the threshold.
    """

    visits: NDArray[np.int64]
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    success: NDArray[np.float64]

    @classmethod
    def empty(cls, count: int) -> PromptStatistics:
        """Nothing known of ``count`` prompts."""
        return cls(np.zeros(count, np.int64), *np.zeros((3, count)))

    @property
    def std(self) -> NDArray[np.float64]:
        """``[P]``, standard deviation of the reward: how much there is to choose between within a group."""
        return np.sqrt(self.variance)

    def add(self, prompt: int, reward: float, success: bool, rate: float) -> None:
        """Take one episode in."""
        self.visits[prompt] += 1
        step = max(1.0 / self.visits[prompt], rate)
        shift = reward - self.mean[prompt]
        self.mean[prompt] += step * shift
        self.variance[prompt] = (1.0 - step) * (self.variance[prompt] + step * shift**2)
        self.success[prompt] += step * (success - self.success[prompt])


Weights: TypeAlias = Callable[[PromptStatistics], NDArray[np.float64]]


def uniform(statistics: PromptStatistics) -> NDArray[np.float64]:
    """All prompts alike."""
    return np.ones(len(statistics.visits))


def hardest(statistics: PromptStatistics) -> NDArray[np.float64]:
    """``1 / rank`` by mean reward, the lowest first: independent of the reward's scale (Jiang et al. 2021, 2010.03934).

    Trap: prompts that are too hard to learn from are drawn most; prefer ``intermediate`` or ``spread`` where there are
    such.
    """
    rank = np.empty(len(statistics.mean))
    rank[np.argsort(statistics.mean, kind="stable")] = np.arange(1, len(rank) + 1)
    return 1.0 / rank


def intermediate(statistics: PromptStatistics) -> NDArray[np.float64]:
    """``p (1 - p)``, p the share of successes: most where success and failure are equally likely."""
    return statistics.success * (1.0 - statistics.success)


def spread(statistics: PromptStatistics) -> NDArray[np.float64]:
    """Standard deviation of the reward: a group whose rewards are all equal teaches nothing.

    Trap: a noisy reward makes its prompts look informative.
    """
    return statistics.std


STRATEGIES: dict[str, Weights] = {
    "uniform": uniform,
    "hardest": hardest,
    "intermediate": intermediate,
    "spread": spread,
}


class PromptCurriculumRule(EpisodeRule):
    """What :class:`PromptCurriculum` learns from finished episodes."""

    def __init__(
        self,
        env: Any,
        strategy: str | Weights = "spread",
        *,
        explore: float = 0.1,
        min_visits: int = 2,
        success_threshold: float = 0.5,
        rate: float = 0.05,
        order_by: str | Sequence[float] | None = None,
        order_episodes: int = 10_000,
        order_start: float = 0.1,
    ) -> None:
        if not callable(strategy) and strategy not in STRATEGIES:
            raise ValueError(f"strategy is {strategy!r}, expected a function or one of {', '.join(STRATEGIES)}")
        for name, value in {"explore": explore, "rate": rate, "order_start": order_start}.items():
            if not 0 <= value <= 1 or (value == 0 and name == "order_start"):
                raise ValueError(f"{name} is {value}, expected a number in [0, 1], for order_start above 0")
        if min_visits < 1 or order_episodes < 1:
            raise ValueError(f"min_visits={min_visits}, order_episodes={order_episodes}: expected at least 1")
        super().__init__(
            env,
            strategy=strategy,
            explore=explore,
            min_visits=min_visits,
            success_threshold=success_threshold,
            rate=rate,
            order_by=order_by,
            order_episodes=order_episodes,
            order_start=order_start,
        )
        self.strategy = strategy if callable(strategy) else STRATEGIES[strategy]
        self.explore, self.min_visits, self.rate = explore, min_visits, rate
        self.success_threshold = success_threshold
        self.order_episodes, self.order_start = order_episodes, order_start
        self._source = generation_env(env)
        if not getattr(self._source, "num_prompts", 0):
            raise ValueError(
                f"{self._source} draws no prompts from a table (it has no num_prompts): a batch that Gymnasium made of "
                "single environments is wrapped one by one, gymnasium.make_vec(..., wrappers=[PromptCurriculum])"
            )
        if evolves(env):
            raise ValueError(
                "PromptEvolution replaces the prompts that a curriculum has statistics of: use one of them"
            )
        self._order = self._ordered(order_by)
        self.statistics = PromptStatistics.empty(self._source.num_prompts)
        self._apply()

    def _ordered(self, order_by: str | Sequence[float] | None) -> NDArray[np.int64] | None:
        """The prompts from first to last; None where they are not ordered."""
        count = self._source.num_prompts
        if order_by is None:
            return None
        if isinstance(order_by, str):
            columns = self._source.table.columns if hasattr(self._source.table, "columns") else {}
            if order_by not in columns:
                raise ValueError(f"order_by is {order_by!r}, but the prompts' columns are {sorted(columns)}")
            order_by = columns[order_by]
        try:
            keys = np.array(order_by, np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"order_by must name or hold numbers, one a prompt: {error}") from error
        if keys.shape != (count,) or not np.isfinite(keys).all():
            raise ValueError(f"order_by has shape {keys.shape}, expected {count} finite numbers, one a prompt")
        return np.argsort(keys, kind="stable")

    @property
    def weights(self) -> NDArray[np.float64]:
        """``[P]``, how likely each prompt is to be drawn next; they sum to 1."""
        return self._source.prompt_weights.copy()  # type: ignore[no-any-return]

    def _apply(self) -> None:
        """Give the environment the distribution that follows from the statistics."""
        count, known = len(self.statistics.visits), self.statistics.visits >= self.min_visits
        weights = np.array(self.strategy(self.statistics), np.float64)
        if weights.shape != (count,) or not np.isfinite(weights).all() or (weights < 0).any():
            raise ValueError(
                f"strategy must return {count} finite weights that are not negative, got shape {weights.shape}"
            )
        # A prompt that is not known yet may be the best one: it gets the largest weight of those that are.
        weights[~known] = weights[known].max() if known.any() else 1.0
        allowed = np.ones(count, np.bool_)
        if self._order is not None:
            share = self.order_start + (1.0 - self.order_start) * min(1.0, self.episodes / self.order_episodes)
            allowed[self._order[max(1, int(np.ceil(share * count - 1e-9))) :]] = False  # 0.6 * 5 is above 3
        even = allowed / allowed.sum()
        weights = weights * allowed
        chosen = weights / weights.sum() if weights.sum() > 0 else even
        self._source.prompt_weights = (1.0 - self.explore) * chosen + self.explore * even

    def update(self, episodes: Episodes) -> None:
        """Takes a batch's rewards into the statistics of its prompts."""
        prompts = episodes.info.get("prompt_index", [None] * len(episodes))
        for prompt, reward in zip(prompts, episodes.rewards, strict=True):
            if prompt is not None and prompt >= 0 and np.isfinite(reward):  # below 0: given to reset
                self.statistics.add(int(prompt), float(reward), bool(reward > self.success_threshold), self.rate)
        self._apply()

    def _get_state(self) -> dict[str, Any]:
        return {name: values.tolist() for name, values in asdict(self.statistics).items()}

    def _set_state(self, state: Mapping[str, Any]) -> None:
        if len(state["visits"]) != len(self.statistics.visits):
            raise ValueError(
                f"the state is of {len(state['visits'])} prompts, but there are {len(self.statistics.visits)}"
            )
        floats = {name: np.array(state[name], np.float64) for name in ("mean", "variance", "success")}
        self.statistics = PromptStatistics(np.array(state["visits"], np.int64), **floats)
        self._apply()


class PromptCurriculum(PromptCurriculumRule, EpisodeWrapper):
    r"""Chooses which prompts episodes start from, and how often.

    The environment goes on drawing prompts from its rows' generators, at ``reset`` as at an automatic restart, but
    with these weights: rows with equal seeds still start from the same prompt, and equal seeds after equal histories
    give equal prompts. With a strategy's weights ``w`` over the prompts that are open,

    .. math:: p_i = (1 - \epsilon) \, w_i / \textstyle\sum_j w_j + \epsilon / P .

    The weights change between batches only, once every row has finished an episode. They follow the rewards at this
    place in the stack: put it inside of penalties that should not count. Prompts given to ``reset`` by an option are
    played as given. ``statistics`` and ``weights`` show what it knows and does.

    Args:
        env: an environment that draws prompts from a table, such as ``LLMAlign-v0``.
        strategy: "uniform", "hardest", "intermediate" (p (1 - p) of the success rate), "spread" (standard deviation of
            the reward), or a function of :class:`PromptStatistics` that returns one weight a prompt.
        explore: epsilon, the share of uniform draws; keeps every open prompt possible.
        min_visits: a prompt with fewer visits gets the largest weight of all.
        success_threshold: rewards above it count as success.
        rate: how fast old episodes are forgotten; 0 never.
        order_by: a numeric column of the prompts, or one number a prompt: prompts open from the lowest to the highest.
        order_episodes: after so many episodes all prompts are open; their share grows linearly until then.
        order_start: share of the prompts that are open at first.

    Raises:
        ValueError: for an unknown strategy, a number out of range, an environment without prompts, or an unusable
            column.
    """


class VectorPromptCurriculum(PromptCurriculumRule, VectorEpisodeWrapper):
    """:class:`PromptCurriculum` for a batch of environments."""
