r"""Losses of a preferred over another output, as functions of log-likelihoods or of surrogates of these.

With the log-ratios :math:`\ell = \log \pi(y) - \log \pi_{ref}(y)` of the chosen (``w``) and rejected (``l``) output,
the *implicit reward* of an output is :math:`\beta \ell`, and the margin is :math:`h = \beta(\ell_w - \ell_l)`.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor
from torch.nn import functional as F

PreferenceLoss = Literal["sigmoid", "robust", "ipo"]


def log_ratio_difference(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor
) -> Tensor:
    r""":math:`\ell_w - \ell_l`, without gradient through the reference; all ``[B]``.

    Exactly 0 where policy and reference agree. A constant added to the log-likelihoods of both outputs, such as the
    normaliser of an unnormalised model, cancels.
    """
    return (chosen - reference_chosen.detach()) - (rejected - reference_rejected.detach())


def preference_loss(
    difference: Tensor, beta: float, kind: PreferenceLoss = "sigmoid", label_smoothing: float = 0.0
) -> Tensor:
    r"""Loss of each pair, ``[B]``, from :math:`d = \ell_w - \ell_l`.

    With :math:`h = \beta d`, :math:`f(h) = -\log \sigma(h)` and label smoothing :math:`\epsilon`:

    - ``sigmoid``: :math:`(1 - \epsilon) f(h) + \epsilon f(-h)`. DPO (Rafailov et al. 2023, arXiv:2305.18290), with
      smoothing conservative DPO: its minimum is at :math:`\sigma(h) = 1 - \epsilon` instead of infinity.
    - ``robust``: :math:`[(1 - \epsilon) f(h) - \epsilon f(-h)] / (1 - 2\epsilon)` (Chowdhury et al. 2024,
      arXiv:2403.00409). If labels are flipped with probability :math:`\epsilon`, its mean is :math:`f` of the true.
    - ``ipo``: :math:`(d - \frac{1}{2\beta})^2` (Azar et al. 2023, arXiv:2310.12036, where beta is :math:`\tau`): a
      finite optimum for deterministic preferences too. Deviation from TRL, which averages over tokens: sums, as in the
      paper.

    Diffusion-DPO (Wallace et al. 2023, arXiv:2311.12908) is ``sigmoid`` on log-likelihood surrogates
    :math:`-\|\hat\epsilon - \epsilon\|^2` at equal noise and time, with beta half of its :math:`\beta`: 2500 for the
    5000 of the authors' code, where the squared error is a mean over dimensions; divided by their number for a sum.

    Args:
        difference: ``[B]`` float, see :func:`log_ratio_difference`.
        beta: above 0; how strongly the divergence from the reference holds back. 0.01 to 0.5 for texts.
        kind: which of the above.
        label_smoothing: in [0, 0.5), the share of labels taken to be wrong; 0 for ``ipo``.

    Raises:
        ValueError: if an argument is outside its range.
    """
    check_preference_loss(kind, beta, label_smoothing)
    if kind == "ipo":
        return (difference - 1 / (2 * beta)).square()
    margin, e = beta * difference, label_smoothing
    right, wrong = -F.logsigmoid(margin), -F.logsigmoid(-margin)
    if kind == "robust":
        return ((1 - e) * right - e * wrong) / (1 - 2 * e)
    return (1 - e) * right + e * wrong


def check_preference_loss(kind: str, beta: float, label_smoothing: float) -> None:
    """Raise a ValueError for what :func:`preference_loss` cannot be called with."""
    if kind not in get_args(PreferenceLoss):
        raise ValueError(f"loss={kind!r}: must be one of {', '.join(get_args(PreferenceLoss))}")
    if not beta > 0:
        raise ValueError(f"beta={beta}: must be above 0")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing={label_smoothing}: must be in [0, 0.5)")
    if kind == "ipo" and label_smoothing:
        raise ValueError(f"label_smoothing={label_smoothing}: loss='ipo' takes none, its optimum is finite without")
