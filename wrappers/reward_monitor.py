"""The reward that is given, watched against what was meant: gold reward, length, repetition, the weight of terms."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..rewards import Repetition, Reward, as_reward
from .base import EpisodeRule, EpisodeWrapper, VectorEpisodeWrapper
from .episodes import Episodes, Numbers, score_episodes
from .normalize_reward import UNNORMALIZED
from .transform_reward import json_form

MONITOR_PREFIX = "monitor/"
GOLD = "gold"


class RewardMonitorRule(EpisodeRule):
    """What :class:`RewardMonitor` finds out about finished episodes."""

    def __init__(
        self,
        env: Any,
        gold: str | Mapping[str, Any] | Callable[..., Any] | Reward | None = None,
        *,
        episodes_per_point: int = 64,
        window: int = 20,
        threshold: float = 4.0,
    ) -> None:
        if episodes_per_point < 2 or window < 4 or not threshold > 0:
            raise ValueError(
                f"episodes_per_point={episodes_per_point}, window={window}, threshold={threshold}: "
                "expected at least 2, at least 4, and above 0"
            )
        self.gold = None if gold is None else as_reward(gold)
        super().__init__(
            env,
            gold=json_form(self.gold),
            episodes_per_point=episodes_per_point,
            window=window,
            threshold=threshold,
        )
        self.episodes_per_point, self.window, self.threshold = episodes_per_point, window, threshold
        self.history: list[dict[str, float]] = []
        self.alarms: list[str] = []
        self._collected: list[dict[str, float]] = []  # episodes since the last point
        self._alarmed = False

    def transform(self, episodes: Episodes) -> Episodes:
        """Leaves rewards as they are; adds the gold reward as a term, and the newest point of the history."""
        terms = {}
        if self.gold is not None:
            self.gold.set_progress(self.episodes)
            terms[GOLD] = score_episodes(self.gold, episodes).values
        point = self.history[-1] if self.history else {}
        info = {MONITOR_PREFIX + name: [value] * len(episodes) for name, value in point.items()}
        return replace(episodes, terms={**episodes.terms, **terms}, info={**episodes.info, **info})

    def update(self, episodes: Episodes) -> None:
        """Collects a batch, and adds a point to the history when there are enough episodes for one."""
        texts = episodes.info.get("completion")
        repetition = Repetition().score(texts).values if texts and all(isinstance(t, str) for t in texts) else None
        for i in np.flatnonzero(episodes.valid):
            facts = {"proxy": float(episodes.rewards[i]), "length": float(episodes.lengths[i])}
            if repetition is not None:
                facts["repetition"] = float(repetition[i])
            # What NormalizeReward was given is the whole reward, no term of it.
            terms = {f"term/{k}": float(v[i]) for k, v in episodes.terms.items() if k != UNNORMALIZED}
            self._collected.append(facts | terms)
        if len(self._collected) >= self.episodes_per_point:
            self.history.append(self._point(self._collected))
            self._collected = []
            self._check()

    def _point(self, rows: list[dict[str, float]]) -> dict[str, float]:
        """The numbers of one point."""
        values = {
            key: np.array([r.get(key, np.nan) for r in rows]) for key in dict.fromkeys(k for r in rows for k in r)
        }
        proxy, gold = values["proxy"], values.pop(f"term/{GOLD}", None)
        terms = {key.removeprefix("term/"): v for key, v in values.items() if key.startswith("term/")}
        first = self.history[0] if self.history else {}
        point = {
            "proxy": float(proxy.mean()),
            "proxy_std": float(proxy.std()),
            "length": float(values["length"].mean()),
        }
        point["length_drift"] = point["length"] / first.get("length", point["length"]) - 1.0
        if "repetition" in values:
            point["repetition"] = float(np.nanmean(values["repetition"]))
        if gold is not None and np.isfinite(gold).any():
            point |= {"gold": float(np.nanmean(gold)), "gold_std": float(np.nanstd(gold))}
            point["correlation"] = correlation(proxy, gold)
            point["gap"] = _rise(first, point, "proxy") - _rise(first, point, "gold")
            recent = [p for p in [*self.history, point] if "gold" in p][-self.window :]
            proxies, golds = (np.array([p[key] for p in recent]) for key in ("proxy", "gold"))
            point["trend_correlation"] = correlation(ranks(proxies), ranks(golds))
        point |= {f"share/{name}": share for name, share in shares(proxy, terms).items()}
        return point

    def _check(self) -> None:
        """Warn when the proxy rises while gold falls; once, until that is over."""
        found = self.divergence()
        if found is not None and not self._alarmed:
            self.alarms.append(found)
            warnings.warn(found, stacklevel=6)
        self._alarmed = found is not None

    def divergence(self) -> str | None:
        """One sentence if the proxy has risen while gold fell, significantly, over a recent stretch; else None.

        Stretches of 1, 2, 4, ... windows up to the whole history are tested.
        """
        points = [p for p in self.history if "gold" in p]
        length = self.window
        while length <= len(points):
            proxy, gold = (np.array([p[key] for p in points[-length:]]) for key in ("proxy", "gold"))
            up, down = slope_t(proxy), slope_t(gold)
            if up > self.threshold and down < -self.threshold:
                return (
                    f"the reward rose while the gold reward fell over the last {length} points "
                    f"({length * self.episodes_per_point} episodes or more): reward {proxy[0]:.3g} to {proxy[-1]:.3g} "
                    f"(t = {up:.1f}), gold {gold[0]:.3g} to {gold[-1]:.3g} (t = {down:.1f}). The policy is exploiting "
                    "the reward: stop here, go back to the checkpoint where gold was highest, or raise the KL weight"
                )
            length *= 2
        return None

    def report(self) -> str:
        """The first and the newest point of the history, side by side, and all alarms."""
        if not self.history:
            return f"no point yet: {len(self._collected)} of {self.episodes_per_point} episodes"
        first, last = self.history[0], self.history[-1]
        lines = [
            f"{len(self.history)} points of {self.episodes_per_point} episodes or more",
            f"{'':24}{'first':>10}{'now':>10}",
        ]
        lines += [f"{name:24}{first.get(name, np.nan):10.3f}{value:10.3f}" for name, value in last.items()]
        golds = [p.get("gold", -np.inf) for p in self.history]
        if max(golds) > -np.inf:
            lines.append(f"gold was highest at point {int(np.argmax(golds)) + 1}: {max(golds):.3f}")
        share = {name: value for name, value in last.items() if name.startswith("share/")}
        if len(share) > 1 and max(share.values()) > 0.9:
            name = max(share, key=lambda key: share[key])
            lines.append(f"the term {name.removeprefix('share/')!r} alone decides the reward ({share[name]:.0%})")
        return "\n".join([*lines, *(self.alarms or ["no alarm"])])

    def _get_state(self) -> dict[str, Any]:
        return {
            "history": [dict(point) for point in self.history],
            "alarms": list(self.alarms),
            "alarmed": self._alarmed,
            "collected": [dict(row) for row in self._collected],
            "gold": None if self.gold is None else self.gold.get_state(),
        }

    def _set_state(self, state: Mapping[str, Any]) -> None:
        self.history = [dict(point) for point in state["history"]]
        self.alarms, self._alarmed = list(state["alarms"]), bool(state["alarmed"])
        self._collected = [dict(row) for row in state["collected"]]
        if self.gold is not None:
            self.gold.set_state(state["gold"])


class RewardMonitor(RewardMonitorRule, EpisodeWrapper):
    """Watches the reward (the *proxy*) against a *gold* reward that is scored but never given.

    Rewards pass unchanged. The gold reward of each episode is logged as ``reward/gold``. Every ``episodes_per_point``
    valid episodes make one point of ``history``; the newest one is in the info of every finished episode:

    * ``monitor/proxy``, ``monitor/gold`` and their standard deviations over episodes, ``monitor/correlation`` between
      the two over the episodes of the point (Pearson), ``monitor/trend_correlation`` between their means over the
      last ``window`` points (Spearman);
    * ``monitor/gap``: rise of the proxy since the first point minus that of gold, each in standard deviations over
      episodes (the larger of then and now);
    * ``monitor/length``, ``monitor/length_drift`` (relative to the first point), ``monitor/repetition``;
    * ``monitor/share/<term>``: the share of the reward's variance that goes through each term, from a linear regression
      of the reward on its terms (Pratt 1987, in absolute values): 1 is a reward that one term decides alone.

    It warns when the proxy rose while gold fell (the alignment ceiling; Lambert & Calandra 2023, arXiv 2311.00168; Gao
    et al. 2023, arXiv 2210.10760): when over a recent stretch of points the t-statistics of both slopes exceed
    ``threshold`` in opposite directions. Without gold it never warns: a longer or more repetitive answer is not by
    itself a hacked one, and alarms that are often wrong are soon ignored. ``report()`` sums it up.

    Args:
        env: the environment.
        gold: what :func:`~aligngym.rewards.as_reward` takes; better judged, slower or dearer than the proxy.
        episodes_per_point: episodes a point, at least 2; complete batches are never split.
        window: fewest points, at least 4, over which a trend is tested.
        threshold: of both t-statistics. Simulated runs of 100 points (tests/wrappers/test_reward_monitor.py says how):
            no alarm in 800 healthy runs; alarms in 13 of 700 in which gold was the opposite of the reward and the
            policy did not move; both known hacks found in 200 of 200 runs, at the median 26 (heavy tails) and 17
            (saturating gold) points after gold's peak. With a window of 10 the 2 % become 16 %.

    Raises:
        ValueError: for an unknown gold reward or a number out of range.

    Warns:
        UserWarning: when the proxy rises while gold falls.
    """


class VectorRewardMonitor(RewardMonitorRule, VectorEpisodeWrapper):
    """:class:`RewardMonitor` for a batch of environments."""


def slope_t(values: Numbers) -> float:
    """The t-statistic of the slope of ``values [n]``, ``n`` > 2, over their positions; 0 where all are equal."""
    time = np.arange(len(values)) - (len(values) - 1) / 2
    slope = float(time @ values / (time @ time))
    residual = values - values.mean() - slope * time
    error = np.sqrt(residual @ residual / (len(values) - 2) / (time @ time))
    # A straight line has no residual but rounding's.
    floor = 1e-12 * (1.0 + np.abs(values).max())
    return 0.0 if abs(slope) < floor else float(slope / max(error, floor))


def correlation(a: Numbers, b: Numbers) -> float:
    """Pearson's correlation of two arrays ``[n]`` where both are numbers; NaN where one of them does not vary."""
    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both], b[both]
    if len(a) < 2 or not np.ptp(a) > 0 or not np.ptp(b) > 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def ranks(values: Numbers) -> NDArray[np.float64]:
    """``[n]``, the rank of each value from 0; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


def shares(rewards: Numbers, terms: Mapping[str, Numbers]) -> dict[str, float]:
    r"""Share of each term in the variance of the reward, :math:`|b_k \mathrm{cov}(t_k, r)|` over their sum.

    The ``b`` are the coefficients of the least-squares regression of the rewards ``[n]`` on the terms, ``[n]`` each,
    which for a weighted sum are its weights. Terms that do not vary or do not always apply have none.
    """
    used = {k: v for k, v in terms.items() if np.isfinite(v).all() and np.ptp(v) > 0}
    if not used or not np.ptp(rewards) > 0:
        return {}
    columns = np.stack(list(used.values()), 1)
    columns, centred = columns - columns.mean(0), rewards - rewards.mean()
    coefficients = np.linalg.lstsq(columns / columns.std(0), centred, rcond=1e-6)[0] / columns.std(0)
    parts = np.abs(coefficients * (columns.T @ centred))
    return dict(zip(used, (parts / parts.sum()).tolist(), strict=True)) if parts.sum() > 0 else {}


def _rise(first: Mapping[str, float], point: Mapping[str, float], name: str) -> float:
    """How far a mean has risen since the first point, in the larger standard deviation over episodes, then or now."""
    if name not in first or point[name] == first[name]:
        return 0.0
    # A reward that never varied at first (a rule that nobody broke yet) must not make the rise infinite.
    std = max(first[f"{name}_std"], point[f"{name}_std"])
    return (point[name] - first[name]) / std if std > 0 else float("nan")
