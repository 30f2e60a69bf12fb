r"""A small policy that puts pieces in order: every piece is encoded, looks at the others, and is scored for each place.

With scores :math:`s_{kj}` of the shown piece :math:`j` for place :math:`k`, an answer is drawn place by place among the
pieces that are left (Plackett and Luce), so that its probability is exact:

.. math:: \log \pi(a) = \sum_{k=1}^{K} \log \frac{\exp s_{k a_k}}{\sum_{j \notin \{a_1 \dots a_{k-1}\}} \exp s_{k j}}

A piece is not told in which slot it is shown: permuting what is shown permutes the answers, and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ...trajectories import Trajectories
from ..randomness import seeded
from .clicker import PIECE, Clicker, distinct, empty
from .page_encoder import Attention, PageEncoder
from .policy import Decision, Evaluation, Policy, RowNoise, one_turn, sample_categorical

KEPT = 50_000  # encoded pieces of a frozen encoder, at most
SUMMARIES = 5  # of a piece: mean over all of it, and over each of its edges


class Jigsaw(nn.Module):
    """The network: pieces to scores for places.

    Args:
        num_pieces: K.
        width: of all features.
        stem: see :class:`.page_encoder.PageEncoder`.
        blocks: the same.
        page_layers: the encoder's attention layers.
        layers: attention layers over the pieces.
    """

    def __init__(
        self, num_pieces: int, width: int = 128, stem: int = 48, blocks: int = 4, page_layers: int = 2, layers: int = 2
    ) -> None:
        super().__init__()
        self.config = {
            "num_pieces": num_pieces, "width": width, "stem": stem, "blocks": blocks, "page_layers": page_layers,
            "layers": layers,
        }  # fmt: skip
        self.page = PageEncoder(width, stem, blocks, page_layers)
        self.enter = nn.Linear(SUMMARIES * width, width)
        self.layers = nn.ModuleList([Attention(width) for _ in range(layers)])
        # No biases: what is added to every piece alike drops out of each softmax.
        self.norm = nn.LayerNorm(width, bias=False)
        self.places = nn.Linear(width, num_pieces, bias=False)
        nn.init.zeros_(self.places.weight)  # all answers are equally likely at first

    def summaries(self, pieces: Tensor) -> Tensor:
        """``[N, h, w, 3]`` uint8 to ``[N, 5 width]``: means over the piece, its top, bottom, left and right edge."""
        x = self.page(pieces)
        edges = (x[:, 0], x[:, -1], x[:, :, 0], x[:, :, -1])
        return torch.cat([x.mean((1, 2)), *(edge.mean(1) for edge in edges)], 1)

    def forward(self, summaries: Tensor) -> tuple[Tensor, Tensor]:
        """``[S, K, 5 width]`` to scores ``[S, K places, K slots]`` and means over the pieces ``[S, width]``."""
        x = self.enter(summaries)
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        return self.places(x).transpose(1, 2), x.mean(1)


class JigsawPolicy(Policy):
    """Orders of pieces, for ``VisualJigsaw-v0``.

    Rows that show the same, as those of a group, share its encoding; so do pieces that are shown in several orders.
    The deterministic answer, with which the policy is evaluated unless told otherwise, is greedy: at each place in turn
    the best piece that is left. It need not be the likeliest of all answers.

    Args:
        network: scores the pieces.
        value_head: with a critic, which reads the mean over the pieces.
        freeze_page: keep the page encoder as it is and train the rest; pieces are then encoded once and for all.
    """

    first_observation_only = True
    deterministic_evaluation = True

    def __init__(self, network: Jigsaw, value_head: bool = False, freeze_page: bool = False) -> None:
        super().__init__()
        self.network, self.freeze_page, self.name = network, freeze_page, ""  # name: of the encoder's files, if any
        self._kept: dict[bytes, Tensor] = {}
        network.page.requires_grad_(not freeze_page)
        self.critic = nn.utils.skip_init(nn.Linear, network.config["width"], 1) if value_head else None
        if self.critic is not None:
            nn.init.zeros_(self.critic.weight)
            nn.init.zeros_(self.critic.bias)

    @classmethod
    def from_pretrained(
        cls, name: str | Path = "gui-clicker", num_pieces: int = 9, layers: int = 2, seed: int = 0, **options: Any
    ) -> Self:
        """The policy around the page encoder of a clicker.

        Args:
            name: of the clicker, embedded or a folder.
            num_pieces: K; the environment's.
            layers: attention layers over the pieces.
            seed: of the weights that are new.
            **options: as in the constructor.

        Raises:
            FileNotFoundError: if there is no such clicker.
            ValueError: for fewer than 2 pieces.
        """
        clicker = Clicker.load(name)
        sizes: dict[str, Any] = {k: clicker.config[k] for k in ("width", "stem", "blocks")}
        sizes |= {"page_layers": clicker.config["layers"], "layers": layers}
        policy = cls.untrained(num_pieces, seed, **sizes, **options)
        policy.network.page.load_state_dict(clicker.page.state_dict())
        policy.name = str(name)
        return policy

    @classmethod
    def untrained(
        cls, num_pieces: int, seed: int = 0, *, value_head: bool = False, freeze_page: bool = False, **sizes: Any
    ) -> Self:
        """The policy of a network with weights drawn from ``seed``; ``sizes`` as in :class:`Jigsaw`.

        Raises:
            ValueError: for fewer than 2 pieces.
        """
        if num_pieces < 2:
            raise ValueError(f"num_pieces is {num_pieces}, expected at least 2")
        with seeded(seed):
            return cls(Jigsaw(num_pieces, **sizes), value_head, freeze_page)

    @property
    def has_critic(self) -> bool:
        """Whether ``evaluate_actions`` returns values."""
        return self.critic is not None

    def spec(self) -> dict[str, Any]:
        """JSON-able description from which ``from_spec`` rebuilds the policy around saved tensors."""
        own = {"name": self.name, "value_head": self.has_critic, "freeze_page": self.freeze_page}
        return {**own, "network": self.network.config}

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Self:
        """Inverse of :meth:`spec`, but for the values of the trained parameters.

        Raises:
            ValueError: if a page encoder that is not trained came from no files, so that it cannot be had again.
        """
        options = {k: spec[k] for k in ("value_head", "freeze_page")}
        if not spec["freeze_page"]:
            return cls(empty(Jigsaw, spec["network"]), **options)
        if not spec["name"]:
            raise ValueError("the frozen page encoder came from no files: pass the policy as load(folder, policy=...)")
        network = {k: spec["network"][k] for k in ("num_pieces", "layers")}
        return cls.from_pretrained(spec["name"], **network, **options)

    @torch.no_grad()
    def act(self, observation: Any, noise: RowNoise, deterministic: bool = False) -> Decision:
        """Answer every row; consumes ``K`` numbers a row.

        Args:
            observation: ``tiles [B, K, h, w, 3]`` uint8, numpy or torch.
            noise: one stream a row.
            deterministic: at each place, the best piece that is left.

        Returns:
            actions ``[B, K]`` int64, numbers of slots from 1, and log_probs ``[B]``.
        """
        scores, _ = self._scores(observation)
        uniform, slots = noise.uniform(scores.shape[1]).to(scores.device), []
        left = torch.zeros_like(scores[:, 0])
        for k in range(scores.shape[1]):
            logits = scores[:, k] + left
            slots.append(logits.argmax(1) if deterministic else sample_categorical(logits, uniform[:, k]))
            left = left.scatter(1, slots[-1][:, None], -torch.inf)
        answer = torch.stack(slots, 1)
        return Decision(answer + 1, log_prob(scores, answer))

    def generate(
        self,
        observation: Any,
        noise: RowNoise,
        *,
        max_steps: int,
        terminal_actions: Collection[int] = (),
        deterministic: bool = False,
    ) -> Trajectories:
        """Play one-turn episodes.

        Raises:
            ValueError: if ``max_steps`` is not 1.
        """
        return one_turn(self, observation, self.act(observation, noise, deterministic), max_steps)

    def evaluate_actions(self, trajectories: Trajectories, *, entropy: bool = False) -> Evaluation:
        """Score recorded answers.

        The entropy is the sum over places of that of the piece drawn there, given the earlier ones of the answer: its
        expectation over answers is their entropy.

        Raises:
            ValueError: if the episodes are not of one turn, or an answer is no permutation.
        """
        if trajectories.mask.shape[1] != 1:
            raise ValueError(f"episodes have {trajectories.mask.shape[1]} decisions, but JigsawPolicy scores one")
        scores, means = self._scores(trajectories.observations)
        answer = trajectories.actions[:, 0].to(scores.device) - 1
        places = places_left(scores, answer)
        values = None
        if self.critic is not None:
            state = self.critic(means)
            values = torch.cat([state, torch.zeros_like(state)], 1)
        spread = -(places.exp() * places.nan_to_num(neginf=0.0)).sum((1, 2))
        return Evaluation(log_prob(scores, answer)[:, None], spread[:, None], values)

    def _scores(self, observation: Any) -> tuple[Tensor, Tensor]:
        """Scores ``[B, K places, K slots]`` and means over pieces ``[B, width]``.

        Raises:
            ValueError: for another number of pieces than the network's.
        """
        tiles, count = torch.as_tensor(observation["tiles"], device=self.device), self.network.config["num_pieces"]
        if tiles.shape[1] != count:
            raise ValueError(f"tiles has {tiles.shape[1]} pieces, but num_pieces of the policy is {count}")
        shown, row = distinct(tiles)
        pieces, which = distinct(shown.flatten(0, 1))
        scores, means = self.network(self._summaries(pieces)[which].unflatten(0, (-1, count)))
        return scores[row], means[row]

    def _summaries(self, pieces: Tensor) -> Tensor:
        """Of different pieces. Those of a frozen encoder are kept, and do not depend on what is encoded with them."""
        if not self.freeze_page:
            return torch.cat([self.network.summaries(part) for part in pieces.split(PIECE)])
        keys = [blake2b(piece.tobytes(), digest_size=16).digest() for piece in pieces.cpu().numpy()]
        if len(self._kept) + len(keys) > KEPT:
            self._kept.clear()
        for key, piece in zip(keys, pieces, strict=True):
            if key not in self._kept:
                with torch.no_grad():
                    self._kept[key] = self.network.summaries(piece[None])[0]
        return torch.stack([self._kept[key] for key in keys])


def places_left(scores: Tensor, answer: Tensor) -> Tensor:
    """Log-probabilities ``[B, K, K]`` of each slot at each place, given the earlier places; -inf for slots used there.

    Args:
        scores: ``[B, K places, K slots]``.
        answer: ``[B, K]`` int64, the slot at each place, from 0.

    Raises:
        ValueError: if an answer is no permutation.
    """
    count = scores.shape[1]
    every = torch.arange(count, device=answer.device)
    if not (answer.sort(1).values == every).all():
        raise ValueError("an answer that is no permutation cannot have been drawn by this policy")
    used = answer.argsort(1)[:, None, :] < every[:, None]  # the place at which each slot was used, before this one
    return scores.masked_fill(used, -torch.inf).log_softmax(2)


def log_prob(scores: Tensor, answer: Tensor) -> Tensor:
    """Log-probability ``[B]`` of answers; arguments as in :func:`places_left`."""
    return places_left(scores, answer).gather(2, answer[..., None])[..., 0].sum(1)


__all__ = ["Jigsaw", "JigsawPolicy", "log_prob", "places_left"]
