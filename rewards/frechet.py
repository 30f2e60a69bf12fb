"""How far two sets of images are apart, by Gaussians fitted to their features."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def frechet_distance(features_a: ArrayLike, features_b: ArrayLike) -> float:
    r"""The squared 2-Wasserstein distance of two Gaussians that have the means and covariances of two samples.

    .. math:: \|\mu_a - \mu_b\|^2 + \mathrm{tr}(C_a + C_b - 2 (C_a C_b)^{1/2})

    (Heusel et al. 2017, arXiv 1706.08500, where the features are those of an Inception network: the "FID".) Numbers are
    comparable for one network and for one size of the samples only: from ``n`` rows the covariance is estimated with
    an error that raises the distance, the more the fewer rows a feature there are.

    Deviation from the paper's code: the trace of the root is computed as the sum of the singular values of
    :math:`C_a^{1/2} C_b^{1/2}`, which is the same number, needs symmetric eigenproblems only and stays real where a
    covariance is singular.

    Args:
        features_a: ``[N, D]``, at least two rows.
        features_b: ``[M, D]``, at least two rows.

    Returns:
        The distance, at least 0.

    Raises:
        ValueError: for other shapes, or numbers that are not finite.
    """
    mean_a, root_a, variance_a = _moments("features_a", features_a)
    mean_b, root_b, variance_b = _moments("features_b", features_b)
    if mean_a.shape != mean_b.shape:
        raise ValueError(f"features_a has {len(mean_a)} features, features_b has {len(mean_b)}: expected as many")
    overlap = np.linalg.svd(root_a @ root_b, compute_uv=False).sum()
    return max(0.0, float(((mean_a - mean_b) ** 2).sum() + variance_a + variance_b - 2 * overlap))


def _moments(name: str, features: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Returns mean ``[D]``, the root of the unbiased covariance ``[D, D]``, and the covariance's trace."""
    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim != 2 or len(rows) < 2 or not rows.shape[1]:
        raise ValueError(f"{name} must be [N, D] with N at least 2 and D at least 1, got shape {list(rows.shape)}")
    if not np.isfinite(rows).all():
        raise ValueError(f"{name} holds numbers that are not finite")
    covariance = np.atleast_2d(np.cov(rows, rowvar=False))
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return rows.mean(0), root, float(np.trace(covariance))
