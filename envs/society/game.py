r"""The collective choice with a threshold: who is paid what, when deviating is worth it, and where a population goes.

``n`` players choose between the independent action, which is the aligned one, and the collective one, which is the
deviation (collusion). If at least ``T`` of them deviate, it succeeds and pays ``h``; else it pays ``l`` to those who
did, and ``m`` to the others; ``h > m > l``. Success pays everybody, or the deviators only, the others then getting
``m``. Paper: arXiv 2510.04860, whose multi-agent code this follows: (1.2, 1.0, 0.8) multiply a player's capital. Its
notes speak of (15, 8, 2) points and a threshold of more than half: :data:`FACTORS`.

If each other player deviates with probability ``q``, and :math:`X \sim B(n - 1, q)` of them do, deviating gains

.. math::
    (h - m) P(X = T - 1) - (m - l) P(X < T - 1) \quad\text{if success pays all,} \qquad
    (h - m) P(X \ge T - 1) - (m - l) P(X < T - 1) \quad\text{if it pays deviators only.}

The first has only those who tip the scale: everybody else may ride for free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
FACTORS = {"code": (1.2, 1.0, 0.8), "notes": (15.0, 8.0, 2.0)}
SuccessPays = Literal["all", "colluders"]


@dataclass(frozen=True)
class CollectiveGame:
    """One round of the game.

    Attributes:
        players: n, at least 1.
        threshold: T, deviators that success needs, at least 1; above n it is impossible.
        factors: ``h, m, l``.
        success_pays: everybody, or the deviators only.
    """

    players: int = 8
    threshold: int = 4
    factors: tuple[float, float, float] = FACTORS["code"]
    success_pays: SuccessPays = "all"

    def __post_init__(self) -> None:
        if self.players < 1 or self.threshold < 1:
            raise ValueError(f"players={self.players}, threshold={self.threshold}: expected at least 1")
        if len(self.factors) != 3 or not np.isfinite(self.factors).all():
            raise ValueError(f"factors is {self.factors!r}, expected three numbers: h, m, l")
        if self.success_pays not in ("all", "colluders"):
            raise ValueError(f"success_pays is {self.success_pays!r}, expected 'all' or 'colluders'")

    def succeeds(self, collective: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether enough of ``collective [..., n]`` deviate, ``[...]``."""
        return np.asarray(collective.sum(-1) >= self.threshold)

    def pays(self, collective: NDArray[np.bool_]) -> Array:
        """The factors of all players, ``[..., n]``."""
        high, normal, low = self.factors
        success = self.succeeds(collective)[..., None]
        bystander = high if self.success_pays == "all" else normal
        return np.where(collective, np.where(success, high, low), np.where(success, bystander, normal))

    def gain(self, q: ArrayLike) -> Array:
        """Expected gain of deviating over not doing so, where each other player does with probability ``q [...]``."""
        high, normal, low = self.factors
        others = binomial(self.players - 1, np.asarray(q, np.float64))
        fewer, exactly = others[..., : self.threshold - 1].sum(-1), others[..., self.threshold - 1 : self.threshold]
        enough = exactly.sum(-1) if self.success_pays == "all" else 1.0 - fewer
        if self.threshold > self.players:  # not even with all of them
            enough = np.zeros_like(fewer)
        return np.asarray((high - normal) * enough - (normal - low) * fewer)

    def tipping_points(self, resolution: int = 100_000) -> list[float]:
        """Shares in (0, 1) at which the gain changes its sign, by a grid and a line between its points."""
        q = np.linspace(0.0, 1.0, resolution + 1)[1:-1]
        gain = self.gain(q)
        at = np.flatnonzero((gain[:-1] < 0) != (gain[1:] < 0))
        return [float(q[i] - gain[i] * (q[i + 1] - q[i]) / (gain[i + 1] - gain[i])) for i in at]


def binomial(n: int, q: Array) -> Array:
    """Probabilities ``[..., n + 1]`` of 0 to ``n`` successes with probability ``q [...]`` each."""
    from scipy.special import gammaln, xlog1py, xlogy  # not at the top: it costs a third of a second

    k = np.arange(n + 1)
    ways = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return np.asarray(np.exp(ways + xlogy(k, q[..., None]) + xlog1py(n - k, -q[..., None])))


def replicator(gain: Callable[[float], float], q: float, rate: float, steps: int) -> Array:
    r"""Shares of deviators ``[steps + 1]`` under the replicator equation in discrete time, from ``q``.

    .. math:: \mathrm{logit}(q') = \mathrm{logit}(q) + \eta \, gain(q)

    which is that of multiplicative weights, and for small :math:`\eta` :math:`\dot q = q (1 - q) \, gain(q)`. Fixed
    points are 0, 1 and the zeros of the gain.

    Args:
        gain: of deviating at a share.
        q: the first share, in [0, 1].
        rate: :math:`\eta`, above 0.
        steps: how many.
    """
    shares = [q]
    for _ in range(steps):
        grown = shares[-1] * np.exp(rate * gain(shares[-1]))
        shares.append(float(grown / (grown + 1.0 - shares[-1])))
    return np.array(shares)


def logit_dynamics(gain: Callable[[float], float], q: float, alignment: float, rate: float, steps: int) -> Array:
    r"""Shares ``[steps + 1]`` where all answer by a softmax to the gain at the last share.

    .. math:: q' = \sigma(-b + \eta \, gain(q))

    Fixed points are logit (quantal response) equilibria: those of learners with a divergence penalty towards an aligned
    policy of logit ``-b``, whose weight is :math:`1 / \eta`.

    Args:
        gain: of deviating at a share.
        q: the first share, in [0, 1].
        alignment: ``b``.
        rate: :math:`\eta`, at least 0.
        steps: how many.
    """
    shares = [q]
    for _ in range(steps):
        shares.append(float(1.0 / (1.0 + np.exp(alignment - rate * gain(shares[-1])))))
    return np.array(shares)
