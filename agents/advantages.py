"""How much better an action was than expected: advantages on padded ``[B, T]`` tensors, and on groups of episodes.

``mask`` is True where the policy chose the action. Every other position is padding or was written by the environment;
it gets an advantage of 0 and changes no other position's, except that a reward paid there belongs to the decision
before it. Nothing here carries gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

GroupAdvantage = Literal["zscore", "batch_zscore", "centered", "leave_one_out", "none"]


@torch.no_grad()
def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, bootstrap: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    r"""Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438) over the policy's own decisions.

    .. math:: \delta_t = R_t + \gamma V_{t'} - V_t, \quad A_t = \delta_t + \gamma \lambda A_{t'}, \quad G_t = A_t + V_t

    where :math:`t'` is the policy's next decision and :math:`R_t` sums the rewards from ``t`` up to, not including,
    ``t'``: a span written by the environment takes no time, and its rewards go to the decision before it. Rewards
    before the first decision belong to none. After the last decision the value is 0, or for rows in ``bootstrap`` the
    value of the state that follows it.

    Args:
        rewards: ``[B, T]`` float, 0 at padding.
        values: ``[B, T + 1]`` float, column ``t`` the value of the state before action ``t``.
        mask: ``[B, T]`` bool.
        bootstrap: ``[B]`` bool, the episode would have continued after its last action (cut by a budget).
        gamma: discount in [0, 1].
        lam: trace decay in [0, 1].

    Returns:
        advantages and returns, each ``[B, T]``, 0 where the mask is False.

    Raises:
        ValueError: if ``values`` does not have one column more than ``rewards``.
    """
    batch, steps = mask.shape
    if values.shape != (batch, steps + 1):
        raise ValueError(f"values has shape {tuple(values.shape)}, expected [B, T + 1] = {(batch, steps + 1)}")
    after_last = steps - mask.flip(1).int().argmax(1) if steps else torch.zeros_like(mask.sum(1))
    next_value = values.gather(1, after_last[:, None])[:, 0] * bootstrap
    carried, pending = torch.zeros_like(next_value), torch.zeros_like(next_value)
    advantages = torch.zeros_like(values[:, :-1])
    for t in reversed(range(steps)):
        own = mask[:, t]
        pending = pending + rewards[:, t]
        advantage = pending + gamma * next_value - values[:, t] + gamma * lam * carried
        advantages[:, t] = advantage.where(own, 0.0)
        carried = advantage.where(own, carried)
        next_value = values[:, t].where(own, next_value)
        pending = pending.masked_fill(own, 0.0)
    return advantages, (advantages + values[:, :-1]).where(mask, 0.0)


@torch.no_grad()
def reward_to_go(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    r"""Discounted sum of the rewards from each decision on, :math:`\sum_{k \ge t} \gamma^{k - t} R_k`, ``[B, T]``.

    Decisions and rewards are counted as in :func:`gae`, of which this is the case of zero values and ``lam = 1``.

    Args:
        rewards: ``[B, T]`` float, 0 at padding.
        mask: ``[B, T]`` bool.
        gamma: discount in [0, 1].
    """
    values = rewards.new_zeros(len(rewards), rewards.shape[1] + 1)
    return gae(rewards, values, mask, torch.zeros_like(mask[:, :1]).squeeze(1), gamma, 1.0)[0]


@torch.no_grad()
def group_advantages(
    returns: Tensor, group: Tensor, valid: Tensor, kind: GroupAdvantage = "zscore", eps: float = 1e-4
) -> Tensor:
    r"""Advantage of an episode over the others that began from the same state; no critic.

    With mean :math:`m`, standard deviation :math:`s` (ddof 1) and size :math:`G` of the valid episodes of a group:

    - ``zscore``: :math:`(r_i - m) / (s + \epsilon)`, GRPO (Shao et al. 2024, arXiv:2402.03300).
    - ``batch_zscore``: the same with the standard deviation of all valid episodes, Flow-GRPO (arXiv:2505.05470).
    - ``centered``: :math:`r_i - m`, Dr. GRPO (Liu et al. 2025, arXiv:2503.20783).
    - ``leave_one_out``: :math:`r_i - \frac{1}{G-1} \sum_{j \ne i} r_j = \frac{G}{G-1} (r_i - m)`, RLOO (Ahmadian et
      al. 2024, arXiv:2402.14740).
    - ``none``: :math:`r_i`.

    Except for ``none``, a group says nothing and gives exactly 0 if it has fewer than two valid episodes (deviation
    from verl, which passes the raw reward of a group of one) or if its returns are equal up to float noise: their range
    is at most ``1e-6 * max(1, |max|)``. Without this, dividing noise of 1e-8 by its own deviation would yield
    advantages of order 1.

    Args:
        returns: ``[B]`` float; entries of invalid rows may be NaN.
        group: ``[B]`` integer, equal for episodes from the same state, in any order.
        valid: ``[B]`` bool; other rows get 0 and are left out of the statistics.
        kind: which of the above.
        eps: added to the standard deviation.

    Returns:
        ``[B]``, the dtype of ``returns``.

    Raises:
        ValueError: if ``kind`` is unknown.
    """
    if kind not in get_args(GroupAdvantage):
        raise ValueError(f"kind is {kind!r}, expected one of {', '.join(get_args(GroupAdvantage))}")
    kept = returns.double().where(valid, 0.0)
    if kind == "none":
        return kept.to(returns.dtype)
    names, index = group.unique(return_inverse=True)
    zeros = kept.new_zeros(len(names))
    size = zeros.index_add(0, index, valid.double())
    mean = zeros.index_add(0, index, kept) / size.clamp(min=1)
    centered = (kept - mean[index]).where(valid, 0.0)
    high = zeros.scatter_reduce(0, index, kept.where(valid, -torch.inf), "amax", include_self=False)
    low = zeros.scatter_reduce(0, index, kept.where(valid, torch.inf), "amin", include_self=False)
    informative = (size >= 2) & (high - low > 1e-6 * high.abs().clamp(min=1))
    if kind == "zscore":
        variance = zeros.index_add(0, index, centered.square()) / (size - 1).clamp(min=1)
        scale = 1 / (variance.sqrt() + eps).masked_fill(~informative, 1.0)
    elif kind == "batch_zscore":
        spread = kept[valid].std() if int(valid.sum()) > 1 else kept.new_zeros(())
        scale = (1 / (spread + eps)).expand_as(zeros)
    elif kind == "leave_one_out":
        scale = size / (size - 1).clamp(min=1)
    else:
        scale = torch.ones_like(zeros)
    return (centered * scale[index]).where(informative[index], 0.0).to(returns.dtype)


@torch.no_grad()
def prompt_scores(
    returns: Tensor,
    prompts: Sequence[str],
    seen: Mapping[str, Sequence[float]],
    min_count: int = 2,
    ddof: int = 0,
    eps: float = 1e-6,
) -> Tensor:
    r"""How each return compares with those seen of its prompt, :math:`(r_i - m_p) / (s_p + \epsilon)`, ``[B]``.

    Unlike in :func:`group_advantages` the mean :math:`m_p` and the deviation :math:`s_p` may reach back over earlier
    batches, so that a batch needs no two episodes of a prompt: the running statistics of DDPO (Black et al. 2023,
    arXiv:2305.13301). Where fewer than ``min_count`` returns of a prompt were seen, both are taken over the batch.
    Statistics whose returns are equal up to float noise say nothing and give exactly 0.

    Args:
        returns: ``[B]`` float, finite.
        prompts: ``B`` of them.
        seen: by prompt, the returns that count, those of this batch included.
        min_count: returns of a prompt from which on its own statistics are taken.
        ddof: 0 for the deviation of the population (DDPO), 1 for that of a sample (B2-DiffuRL).
        eps: added to the deviation.
    """
    batch = torch.as_tensor(returns.tolist(), dtype=torch.float64)
    scores = torch.zeros_like(batch)
    for i, prompt in enumerate(prompts):
        known = torch.tensor(seen.get(prompt, ()), dtype=torch.float64)
        if len(known) < min_count:
            known = batch
        high, low = known.max(), known.min()
        if len(known) > ddof and high - low > 1e-6 * max(1.0, known.abs().max().item()):
            scores[i] = (batch[i] - known.mean()) / (known.std(correction=ddof) + eps)
    return scores.to(returns)


@torch.no_grad()
def whiten(advantages: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale to mean 0 and standard deviation 1 (ddof 1) over the positions of ``mask``.

    Exactly 0 everywhere when there are fewer than two positions or their values are equal up to float noise (see
    :func:`group_advantages`).

    Args:
        advantages: ``[B, T]`` float.
        mask: ``[B, T]`` bool.

    Returns:
        ``[B, T]``, 0 where the mask is False.
    """
    index = torch.zeros(int(mask.sum()), dtype=torch.int64, device=mask.device)
    chosen = advantages[mask]
    scaled = group_advantages(chosen, index, torch.ones_like(index, dtype=torch.bool), "zscore", eps=1e-12)
    return torch.zeros_like(advantages).masked_scatter(mask, scaled)
