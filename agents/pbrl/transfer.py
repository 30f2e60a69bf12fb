r"""Cross-task preference alignment: preferences of one task carried over to another by the geometry of its segments.

Gromov-Wasserstein transport matches ``M`` source segments with ``N`` target segments so that distances :math:`C` within
the tasks agree, and a pair of target segments takes the labels of the source pairs that it is matched with:

.. math::
    T = \arg\min_{T \ge 0} \sum_{i i' j j'} (C^s_{i i'} - C^t_{j j'})^2 \, T_{i j} T_{i' j'}, \qquad
    T 1 = 1/M, \quad T' 1 = 1/N

    z(j, j') = \sum_{i \ne i'} T_{i j} T_{i' j'} \, z(i, i') \; / \; \sum_{i \ne i'} T_{i j} T_{i' j'}

A label is the probability that the first is preferred. No target label is used, and states of the two tasks are never
compared. PEARL (Liu et al. 2024, arXiv 2306.03615). Distances cannot tell best from worst: segments that are their own
mirror image can be matched either way round, and then all labels are right or all wrong; see :func:`contradict`.

Deviations: labels are divided by their weight, as the sum alone is below 1/N^2 and always prefers the second; several
starts, as the problem is not convex; :class:`AlignmentConfig` and the two baselines are ours, as the paper is silent.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..agent import AgentConfig
from .segments import Segments

Array = NDArray[np.float64]
Metric = Literal["euclidean", "cosine"]
Features = Literal["state_action", "state", "action"]

ROUNDING = 1e-9  # a share of the weight of a pair below this is no match, nor is a label so close to 0.5 on a side
NEAR = 0.05  # values closer than this share of the product plan's value count as equal


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig(AgentConfig):
    """How preferences are aligned.

    Attributes:
        clusters: groups that k-means divides the segments of each task into; at least 2.
        per_cluster: segments drawn from each of them for one transport problem; at least 1.
        starts: couplings that the solver starts from; at least 1.
        metric: distance of two segments of a task.
        features: what of a segment it compares.
        num_labels: target pairs to label; at least 1.
        max_ambiguity: a share of ambiguous problems above this is warned of; in [0, 1].
    """

    clusters: int = 2
    per_cluster: int = 2
    starts: int = 6
    metric: Metric = "euclidean"
    features: Features = "state_action"
    num_labels: int = 500
    max_ambiguity: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(("clusters",), lambda v: v >= 2, "at least 2")
        self.require(("per_cluster", "starts", "num_labels"), lambda v: v >= 1, "at least 1")
        self.require(("max_ambiguity",), lambda v: 0 <= v <= 1, "in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class AlignmentReport:
    """What became of an alignment.

    Attributes:
        value: mean transport loss; 0 if source and target have the same distances.
        values: that of each problem.
        problems: how many were solved.
        ambiguity: share of them in which matches of (nearly) equal value give opposite labels.
    """

    value: float
    values: tuple[float, ...]
    problems: int
    ambiguity: float


def segment_features(segments: Segments, features: Features = "state_action") -> Array:
    """``[N, F]`` float64: the steps of each segment in a row, every dimension standardised over all; equal lengths."""
    _one_of("features", features, get_args(Features))
    mask = segments.mask
    if not len(mask) or not bool((mask == mask[:1]).all()):
        raise ValueError(f"segments have {sorted(set(mask.sum(1).tolist()))} steps, expected all of one length")
    chosen = [x for name, x in (("state", segments.observations), ("action", segments.actions)) if name in features]
    steps: Array = torch.cat(chosen, 2)[:, mask[0]].double().cpu().numpy()
    spread = steps.std((0, 1))
    moves = spread > 1e-6 * np.abs(steps).max((0, 1))  # the deviation of a constant is rounding only
    standard: Array = (steps - steps.mean((0, 1))) / np.where(moves, spread, np.inf)
    return standard.reshape(len(standard), -1)


def distance_matrix(segments: Segments, *, metric: Metric = "euclidean", features: Features = "state_action") -> Array:
    """Distances between a task's segments, divided by the largest, so that the scale of the task cancels.

    Metrics are of :func:`segment_features`; ``cosine`` is 1 less the cosine of the angle. Returns ``[N, N]`` float64 in
    [0, 1], symmetric, 0 on the diagonal; all 0 if the segments are all the same.
    """
    found = segment_features(segments, features)
    distances = _between(found, found, metric) * (1 - np.eye(len(found)))
    return distances / (distances.max() or 1.0)


def gromov_wasserstein(
    source: Array, target: Array, *, starts: int = 6, rng: np.random.Generator
) -> tuple[Array, float]:
    """Plan and value of the best of :func:`gromov_wasserstein_starts`."""
    return min(gromov_wasserstein_starts(source, target, starts=starts, rng=rng), key=lambda run: run[1])


def gromov_wasserstein_starts(
    source: Array, target: Array, *, starts: int = 6, rng: np.random.Generator
) -> list[tuple[Array, float]]:
    """Gromov-Wasserstein plans by conditional gradients (POT), squared loss, uniform weights: a local optimum each.

    The first start is the product plan. Others are random one-to-one matches; if M is not N, what is closest to one.

    Args:
        source: ``[M, M]`` distances. Integers are converted: POT would round the plan to integers, that is to 0.
        target: ``[N, N]`` distances.
        starts: at least 1.
        rng: draws the starts.

    Returns:
        plans ``[M, N]`` float64, rows of 1/M and columns of 1/N, and the loss of each. Mémoli's distance is the square
        root of the least possible loss, divided by 2.

    Raises:
        ValueError: for matrices that are not square or not finite, or fewer than 1 start.
        ImportError: without POT.
    """
    try:
        from ot.gromov import gromov_wasserstein as solve  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError("Gromov-Wasserstein needs POT: pip install 'aligngym[robot]'") from error
    source, target = _square(source, "source"), _square(target, "target")
    if starts < 1:
        raise ValueError(f"starts={starts}: must be at least 1")
    m, n = len(source), len(target)
    initial = [np.full((m, n), 1 / (m * n)), *(_random_coupling(m, n, rng) for _ in range(starts - 1))]
    plans = [np.asarray(solve(source, target, loss_fun="square_loss", G0=start), np.float64) for start in initial]
    return [(plan, transport_loss(source, target, plan)) for plan in plans]


def transport_loss(source: Array, target: Array, plan: Array) -> float:
    """The loss that Gromov-Wasserstein transport minimises; symmetric distances, any plan ``[M, N]``."""
    rows, columns = plan.sum(1), plan.sum(0)
    loss = rows @ source**2 @ rows + columns @ target**2 @ columns - 2 * np.sum((source @ plan @ target) * plan)
    return max(float(loss), 0.0)  # rounding gives -1e-17


def transfer_labels(plan: Array, labels: Array) -> Array:
    """Labels of target pairs from those of the source pairs that ``plan`` matches them with.

    Args:
        plan: ``[M, N]``, at least 0.
        labels: ``[M, M]``, how probably the row is preferred to the column; NaN where unknown. Diagonal unread.

    Returns:
        ``[N, N]`` float64, NaN on the diagonal and where nothing is known. ``z(i, k) + z(k, i) = 1`` is kept.
    """
    labels = _square(labels, "labels", finite=False)
    if plan.ndim != 2 or len(plan) != len(labels):
        raise ValueError(f"plan has shape {plan.shape}, expected ({len(labels)}, target segments)")
    known = ~np.isnan(labels) & ~np.eye(len(labels), dtype=bool)
    weight = plan.T @ known @ plan
    enough = weight > ROUNDING * np.outer(plan.sum(0), plan.sum(0))
    np.fill_diagonal(enough, False)
    total = plan.T @ np.where(known, labels, 0.0) @ plan
    return np.divide(total, weight, out=np.full_like(weight, np.nan), where=enough)


def contradict(runs: Sequence[tuple[Array, float]], labels: Array, near: float) -> bool:
    """Whether plans (of :func:`gromov_wasserstein_starts`) within ``near`` of the least loss give opposite labels."""
    best = min(value for _, value in runs)
    sides = np.array([transfer_labels(plan, labels) for plan, value in runs if value <= best + near]) - 0.5
    return bool(((sides > ROUNDING).any(0) & (sides < -ROUNDING).any(0)).any())


def kmeans(features: Array, clusters: int, least: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """K-means with a guard against clusters that are empty or too small.

    After ten k-means++ starts without ``least`` members in every cluster, the features ``[N, F]`` are cut into equal
    parts along the direction in which they vary most. Returns ``[N]`` int64 in [0, clusters).
    """
    from scipy.cluster.vq import ClusterError, kmeans2

    if len(features) < clusters * least:
        raise ValueError(f"{len(features)} segments: too few for {clusters} clusters of at least {least}")
    centred = features - features.mean(0)
    if not np.abs(centred).max() > 1e-12:
        raise ValueError("all segments are the same: they cannot be clustered")
    for _ in range(10 if len(np.unique(features, axis=0)) >= clusters else 0):
        try:
            found = kmeans2(features, clusters, minit="++", missing="raise", rng=rng)[1]
        except ClusterError:  # one became empty
            continue
        if np.bincount(found, minlength=clusters).min() >= least:
            return np.asarray(found, np.int64)
    rank = (centred @ np.linalg.svd(centred, full_matrices=False)[2][0]).argsort().argsort()
    return np.asarray(rank * clusters // len(features), np.int64)


def align_preferences(
    source: Segments, source_labels: Array, target: Segments, config: AlignmentConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor, AlignmentReport]:
    """Label pairs of target segments by many small transport problems.

    A problem has ``per_cluster`` segments of each cluster of either task, two of the source a labelled pair
    across clusters. Its target pairs across clusters take labels.

    Args:
        source: ``M`` segments of equal length.
        source_labels: ``[M, M]``, as in :func:`transfer_labels`.
        target: ``N`` segments of equal length. Length and states may be others than the source's.
        config: sizes, distances, number of labels.
        rng: draws clusters, problems and starts.

    Returns:
        pairs ``[num_labels, 2]`` int64 of rows of ``target`` (a pair that is drawn again is there again), labels
        ``[num_labels]`` float32 in [0, 1], and how it went. More ambiguity than allowed is a UserWarning.

    Raises:
        ValueError: if there are too few segments, or too few labels between the clusters.
    """
    source_labels = _square(source_labels, "source_labels", finite=False)
    if len(source_labels) != len(source):
        raise ValueError(f"source_labels have shape {source_labels.shape}, but there are {len(source)} source segments")
    sizes = config.clusters, config.per_cluster
    parts = [kmeans(segment_features(s, config.features), *sizes, rng) for s in (source, target)]
    labelled = np.argwhere((parts[0][:, None] != parts[0]) & ~np.isnan(source_labels))
    if not len(labelled):
        raise ValueError("source_labels: no labelled pair has its segments in two clusters")
    distances = [distance_matrix(s, metric=config.metric, features=config.features) for s in (source, target)]
    pairs, found, count, ambiguous, values = [], [], 0, 0, list[float]()
    while count < config.num_labels:
        if len(values) == 20 * config.num_labels:
            raise ValueError(f"source_labels are too few: {count} labels after {len(values)} transport problems")
        i, j = _draw(parts[0], config, rng, rng.choice(labelled)), _draw(parts[1], config, rng)
        problem, known = (distances[0][np.ix_(i, i)], distances[1][np.ix_(j, j)]), source_labels[np.ix_(i, i)]
        runs = gromov_wasserstein_starts(*problem, starts=config.starts, rng=rng)
        plan, value = min(runs, key=lambda run: run[1])
        ambiguous += contradict(runs, known, NEAR * transport_loss(*problem, np.full_like(plan, 1 / plan.size)))
        labels = transfer_labels(plan, known)
        kept = np.argwhere(np.triu(parts[1][j][:, None] != parts[1][j]) & ~np.isnan(labels))
        pairs.append(j[kept])
        found.append(labels[tuple(kept.T)])
        values.append(value)
        count += len(kept)
    share = ambiguous / len(values)
    if share > config.max_ambiguity:
        warnings.warn(
            f"{share:.0%} of the transport problems have solutions of nearly equal value that give opposite "
            "labels: these distances may not tell best from worst; compare some labels with the truth",
            stacklevel=2,
        )
    report = AlignmentReport(value=float(np.mean(values)), values=tuple(values), problems=len(values), ambiguity=share)
    kept_pairs, kept_labels = (torch.from_numpy(np.concatenate(x)[: config.num_labels]) for x in (pairs, found))
    return kept_pairs, kept_labels.float(), report


def similarity_labels(
    source: Segments, labels: Array, target: Segments, *, features: Features = "state_action", temperature: float = 0.1
) -> Array:
    """The baseline "PT+Sim": a target segment matches source segments by a softmax of cosine similarity / temperature.

    Features, standardised within each task, must be as many in both. Returns as :func:`transfer_labels`.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: must be above 0")
    distance = _between(segment_features(source, features), segment_features(target, features), "cosine")
    weights: Array = np.exp((distance.min(0) - distance) / temperature)
    return transfer_labels(weights / weights.sum(0) / len(target), labels)


def distance_labels(source: Segments, labels: Array, target: Segments, *, features: Features = "state_action") -> Array:
    """The baseline "PT+Dis": matches by inverse Euclidean distance; otherwise as :func:`similarity_labels`."""
    distance = _between(segment_features(source, features), segment_features(target, features), "euclidean")
    weights: Array = 1 / (distance + 1e-8)
    return transfer_labels(weights / weights.sum(0) / len(target), labels)


def transfer_accuracy(labels: NDArray[Any] | Tensor, truth: NDArray[Any] | Tensor) -> float:
    """Share of pairs whose label is on the side of the truth; a label of exactly 0.5 counts half.

    Shapes are the same. Pairs of which the truth is 0.5, or one is NaN, are left out; a ValueError if none is left.
    """
    given, true = np.asarray(labels, np.float64), np.asarray(truth, np.float64)
    if given.shape != true.shape:
        raise ValueError(f"labels have shape {given.shape}, truth {true.shape}: expected the same")
    judged = ~np.isnan(given) & ~np.isnan(true) & (true != 0.5)
    if not judged.any():
        raise ValueError("no pair has both a label and a truth other than 0.5")
    return float((np.sign(given - 0.5) * np.sign(true - 0.5) + 1)[judged].mean() / 2)


def _between(first: Array, second: Array, metric: Metric) -> Array:
    from scipy.spatial.distance import cdist

    _one_of("metric", metric, get_args(Metric))
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"segments have {first.shape[1]} and {second.shape[1]} numbers: they cannot be compared")
    if metric == "euclidean":
        return np.asarray(cdist(first, second), np.float64)
    # A segment of zeros has no direction: it is at a right angle to all.
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (first, second))
    return np.asarray((1 - a @ b.T).clip(0), np.float64)


def _random_coupling(m: int, n: int, rng: np.random.Generator) -> Array:
    """A vertex of the plans with uniform weights: overlaps of [0, 1] cut into m and into n parts, in random orders."""
    rows, columns = np.arange(m + 1) / m, np.arange(n + 1) / n
    overlaps: Array = np.minimum.outer(rows[1:], columns[1:]) - np.maximum.outer(rows[:-1], columns[:-1])
    return np.clip(overlaps, 0, None)[np.ix_(rng.permutation(m), rng.permutation(n))]


def _draw(clusters: NDArray[Any], config: AlignmentConfig, rng: np.random.Generator, pair: Any = ()) -> NDArray[Any]:
    """``[clusters * per_cluster]`` members, those of ``pair`` among them, in random order."""
    drawn = list(pair)
    for cluster in range(config.clusters):
        others = np.setdiff1d(np.flatnonzero(clusters == cluster), pair)
        drawn.extend(rng.choice(others, config.per_cluster - sum(clusters[i] == cluster for i in pair), replace=False))
    return rng.permutation(np.array(drawn, np.int64))


def _square(matrix: Array, name: str, *, finite: bool = True) -> Array:
    matrix = np.asarray(matrix, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"{name} has shape {matrix.shape}, expected a square")
    if finite and not np.isfinite(matrix).all():
        raise ValueError(f"{name} has NaN or infinite entries")
    return matrix


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(allowed)}")
